"""install.py and tools/bootstrap.py: what they say, what they leave behind. No network, and no real .venv."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX process groups")


def load(path: Path, name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_install(folder: Path, *arguments: str, flags: tuple[str, ...] = (), path: Path | None = None):
    """Run `folder`/install.py as a person would, with `path` in front of Python's own modules."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, *flags, str(folder / "install.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def is_one_sentence(text: str) -> bool:
    """One line for a person, and no traceback."""
    return text.startswith("qvg: ") and text.count("\n") == 1 and text.endswith(".\n")


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone with nothing in it but what install.py needs."""
    folder = tmp_path / "ComfyUI-QVG"
    (folder / "tools").mkdir(parents=True)
    for name in ("install.py", "tools/bootstrap.py", "tools/requirements-demo.txt", "tools/requirements-test.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def archive(tmp_path) -> Path:
    """The pack as it is published: without tools/."""
    shutil.copy(ROOT / "install.py", tmp_path)
    return tmp_path


def fake_module(folder: Path, name: str, source: str) -> Path:
    """A folder for PYTHONPATH in which `name` is `source`."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source, encoding="utf-8")
    return folder


# ------------------------------------------------------------------------------------------------------------ without an argument


def test_no_argument_reports_and_installs_nothing(clone):
    before = sorted(clone.rglob("*"))
    done = run_install(clone)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 10
    assert [line.split()[0] for line in lines[1:]] == ["Python", "torch", "device", "Triton", "ComfyUI", "Next:"]
    assert "python install.py --demo" in lines[-1]
    assert sorted(clone.rglob("*")) == before


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "ascii"])
def test_a_pipe_that_lacks_letters_of_the_folder_s_name(tmp_path, encoding, monkeypatch):
    """As ComfyUI-Manager starts it on Windows, where the user's folder has the user's name."""
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    pack = tmp_path / "Иван猫é" / "custom_nodes" / "qvg"
    pack.mkdir(parents=True)
    shutil.copy(ROOT / "install.py", pack)
    done = subprocess.run([sys.executable, str(pack / "install.py")], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert str(pack.parents[1]).encode(encoding, "backslashreplace") in done.stdout


def test_no_argument_without_torch(archive):
    done = run_install(archive, flags=("-I", "-S"))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) <= 10
    assert "torch    not installed" in done.stdout


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise OSError('c10.dll not found\\nlong story')", "installed but broken: OSError: c10.dll not found\n"),
        ("import sympy_of_long_ago", "installed but broken: ModuleNotFoundError: No module named 'sympy_of_long_ago'\n"),
        ("", "installed but broken: AttributeError"),
        ("__version__ = '1.0'", "CPU (AttributeError"),
    ],
)
def test_no_argument_with_a_broken_torch(archive, tmp_path, source, said):
    done = run_install(archive, path=fake_module(tmp_path / "fake", "torch", source), flags=("-S",))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) <= 10
    assert said in done.stdout


def test_it_sees_the_comfyui_it_is_in(tmp_path):
    install = load(ROOT / "install.py", "install_under_test")
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "qvg"
    pack.mkdir(parents=True)
    assert install.describe_comfyui(str(tmp_path))[0] is False
    assert "version unknown" in install.describe_comfyui(str(pack))[1]
    version = tmp_path / "ComfyUI" / "comfyui_version.py"
    version.write_text('__version__ = "0.33.1"\n')
    assert install.describe_comfyui(str(pack)) == (True, f"0.33.1 at {tmp_path / 'ComfyUI'}")
    version.write_text('__version__ = "0.3.70"\n')
    assert "needs 0.21 or newer" in install.describe_comfyui(str(pack))[1]


def test_triton_is_named_for_what_this_version_does_with_it(tmp_path, monkeypatch):
    install = load(ROOT / "install.py", "install_under_test")
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    assert install.describe_triton(str(tmp_path)) == "not found; this version has no kernels for it and computes in torch"
    (tmp_path / "kernels" / "kmeans").mkdir(parents=True)
    (tmp_path / "kernels" / "kmeans" / "triton_kernel.py").touch()
    assert install.describe_triton(str(tmp_path)) == "not found; optional, used on NVIDIA and AMD GPUs where it is present"
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(install.importlib.metadata, "version", lambda name: "3.9" if name == "triton-windows" else _missing(name))
    assert install.describe_triton(str(tmp_path)).startswith("3.9 found; optional")


def _missing(name):
    raise PackageNotFoundError(name)


def test_an_old_python_gets_a_sentence():
    ast.parse((ROOT / "install.py").read_text(encoding="utf-8"), feature_version=(3, 8))
    install = load(ROOT / "install.py", "install_under_test")
    assert "Python 3.9 is too old: QVG needs 3.10" in install.python_complaint((3, 9, 1))
    assert install.python_complaint((3, 10, 0)) is None


# ---------------------------------------------------------------------------------------------------------------- --demo, --test


@pytest.mark.parametrize("option", ["--demo", "--test"])
def test_without_bootstrap_a_sentence(archive, option):
    done = run_install(archive, option, flags=("-S",))
    assert done.returncode == 2
    assert is_one_sentence(done.stderr)
    assert option in done.stderr and "tools/bootstrap.py" in done.stderr and "clone" in done.stderr


def test_an_unknown_option_gets_a_sentence(archive):
    done = run_install(archive, "--dmeo", flags=("-S",))
    assert done.returncode == 2
    assert is_one_sentence(done.stderr) and "'--dmeo'" in done.stderr


def test_no_ensurepip_gets_a_sentence_and_leaves_nothing(clone, tmp_path):
    fake = fake_module(tmp_path / "fake", "ensurepip", "raise ImportError('no ensurepip here')")
    done = run_install(clone, "--demo", flags=("-S",), path=fake)
    assert done.returncode == 2
    assert is_one_sentence(done.stderr) and "ensurepip" in done.stderr
    assert "venv'" in done.stderr or "python.org" in done.stderr
    assert not (clone / ".venv").exists()


def test_an_ensurepip_that_fails_gets_the_same_sentence(clone, tmp_path):
    fake = fake_module(tmp_path / "fake", "venv", "raise SystemExit('Command ensurepip returned non-zero exit status 1.')")
    (fake / "venv" / "__main__.py").touch()
    # The fake raises on import, which the check before would do; only the real one's subprocess may meet it.
    source = (clone / "tools" / "bootstrap.py").read_text(encoding="utf-8").replace("        import venv  # noqa: F401\n", "")
    (clone / "tools" / "bootstrap.py").write_text(source, encoding="utf-8")
    done = run_install(clone, "--demo", flags=("-S",), path=fake)
    assert done.returncode == 2
    assert is_one_sentence(done.stderr) and "ensurepip" in done.stderr
    assert not (clone / ".venv").exists()


# --------------------------------------------------------------------------------------------------------- the stamp and the rest


@pytest.fixture
def bootstrap(clone, monkeypatch) -> ModuleType:
    """bootstrap.py of a clone, on a Python that has no torch."""
    module = load(clone / "tools" / "bootstrap.py", "bootstrap_under_test")
    monkeypatch.setattr(module, "find_torch", lambda: None)
    return module


@pytest.fixture
def pretend(bootstrap, monkeypatch) -> list[str]:
    """Replace the slow parts by ones that only make the files; the list tells which ran."""
    ran: list[str] = []

    def make_venv(venv: Path, torch: object) -> None:
        ran.append("venv")
        (venv / "bin").mkdir(parents=True)
        (venv / bootstrap.OWNER_MARK).touch()
        (venv / "pyvenv.cfg").touch()
        file = bootstrap.program(venv, "python")
        file.parent.mkdir(exist_ok=True)
        file.touch()

    def install_packages(root: Path, venv: Path, goal: str, torch: object) -> None:
        ran.append(f"install {goal}")
        (venv / "lib" / "python3" / "site-packages" / "qvg-0.1.0.dist-info").mkdir(parents=True, exist_ok=True)
        for each in bootstrap.STAMPS[goal]:
            bootstrap.program(venv, bootstrap.PROGRAMS[each]).touch()

    monkeypatch.setattr(bootstrap, "make_venv", make_venv)
    monkeypatch.setattr(bootstrap, "install_packages", install_packages)
    return ran


def test_the_second_start_does_nothing(bootstrap, clone, pretend):
    bootstrap.ensure_venv(clone, "demo")
    assert pretend == ["venv", "install demo"]
    bootstrap.ensure_venv(clone, "demo")
    assert pretend == ["venv", "install demo"]


def test_tests_are_added_to_the_demo_and_include_it(bootstrap, clone, pretend):
    bootstrap.ensure_venv(clone, "demo")
    bootstrap.ensure_venv(clone, "test")
    assert pretend == ["venv", "install demo", "install test"]
    bootstrap.ensure_venv(clone, "demo")
    bootstrap.ensure_venv(clone, "test")
    assert len(pretend) == 3


def test_one_install_for_the_tests_serves_the_demo(bootstrap, clone, pretend):
    bootstrap.ensure_venv(clone, "test")
    bootstrap.ensure_venv(clone, "demo")
    assert pretend == ["venv", "install test"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda venv, clone: (venv / "bin" / "python").unlink(),
        lambda venv, clone: (venv / "bin" / "qvg").unlink(),
        lambda venv, clone: shutil.rmtree(venv / "lib"),
        lambda venv, clone: (venv / "pyvenv.cfg").unlink(),
        lambda venv, clone: (venv / "qvg-demo-stamp.json").write_text("{"),
        lambda venv, clone: (venv / "qvg-demo-stamp.json").write_text("[]"),
        lambda venv, clone: (venv / "qvg-demo-stamp.json").unlink(),
        lambda venv, clone: (venv / "qvg-install-unfinished").touch(),
        lambda venv, clone: shutil.rmtree(venv),
        lambda venv, clone: (shutil.rmtree(venv), venv.mkdir()),
        lambda venv, clone: (shutil.rmtree(venv), venv.touch()),
        lambda venv, clone: (clone / "tools" / "requirements-demo.txt").write_text("torch==2.13.0\nnumpy==2.4.6\n"),
    ],
)
@POSIX
def test_a_broken_or_outdated_venv_is_rebuilt(bootstrap, clone, pretend, damage):
    damage(bootstrap.ensure_venv(clone, "demo"), clone)
    bootstrap.ensure_venv(clone, "demo")
    assert pretend == ["venv", "install demo"] * 2
    bootstrap.ensure_venv(clone, "demo")
    assert len(pretend) == 4


def test_another_torch_or_python_or_place_rebuilds(bootstrap, clone, pretend, monkeypatch):
    bootstrap.ensure_venv(clone, "demo")
    monkeypatch.setattr(bootstrap, "is_usable", lambda torch: True)
    monkeypatch.setattr(bootstrap, "find_torch", lambda: bootstrap.FoundTorch("2.9.0+cu128", "/somewhere"))
    bootstrap.ensure_venv(clone, "demo")
    assert len(pretend) == 4
    monkeypatch.setattr(bootstrap.platform, "python_version", lambda: "3.99.0")
    bootstrap.ensure_venv(clone, "demo")
    assert len(pretend) == 6
    moved = clone.rename(clone.parent / "moved")
    bootstrap.ensure_venv(moved, "demo")
    assert len(pretend) == 8


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_an_interrupted_install_leaves_nothing(bootstrap, clone, pretend, monkeypatch, error):
    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(bootstrap, "install_packages", fail)
    with pytest.raises(error):
        bootstrap.ensure_venv(clone, "demo")
    assert not (clone / ".venv").exists()


def test_a_refused_addition_keeps_the_demo_and_a_killed_one_does_not(bootstrap, clone, pretend, monkeypatch):
    install = bootstrap.install_packages

    def fail(error: BaseException) -> None:
        def raise_it(*_arguments: object) -> None:
            raise error

        monkeypatch.setattr(bootstrap, "install_packages", raise_it)

    bootstrap.ensure_venv(clone, "demo")
    fail(bootstrap.BootstrapError("offline"))
    with pytest.raises(bootstrap.BootstrapError):
        bootstrap.ensure_venv(clone, "test")
    bootstrap.ensure_venv(clone, "demo")
    assert pretend == ["venv", "install demo"]
    fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        bootstrap.ensure_venv(clone, "test")
    monkeypatch.setattr(bootstrap, "install_packages", install)
    bootstrap.ensure_venv(clone, "demo")
    assert pretend == ["venv", "install demo"] * 2


def test_somebody_elses_venv_is_not_deleted(bootstrap, clone, pretend):
    venv = clone / ".venv"
    bootstrap.program(venv, "python").parent.mkdir(parents=True)
    bootstrap.program(venv, "python").touch()
    (venv / "pyvenv.cfg").touch()
    with pytest.raises(bootstrap.BootstrapError, match="made by something else"):
        bootstrap.ensure_venv(clone, "demo")
    assert (venv / "pyvenv.cfg").exists()
    assert pretend == []


def test_a_torch_that_is_there_is_neither_installed_nor_replaced(bootstrap, clone, monkeypatch):
    calls: list[tuple[list[str], list[str]]] = []

    def pip_install(venv: Path, scratch: Path, arguments: list[str]) -> None:
        calls.append((arguments, [file.read_text() for file in sorted(scratch.iterdir())]))

    monkeypatch.setattr(bootstrap, "pip_install", pip_install)
    monkeypatch.setattr(bootstrap, "run_child", lambda command: (0, ""))
    venv = clone / ".venv"
    venv.mkdir()
    bootstrap.install_packages(clone, venv, "test", bootstrap.FoundTorch("2.9.0+cu128", "/somewhere"))
    bootstrap.install_packages(clone, venv, "test", None)
    (with_torch, (constraints, lines)), _, (without_torch, (no_constraints, all_lines)), _ = calls
    assert constraints == "torch==2.9.0+cu128\n" and no_constraints == ""
    assert "torch==2.13.0\n" in all_lines and all_lines.replace("torch==2.13.0\n", "") == lines
    assert "--ignore-installed" in with_torch and "--ignore-installed" not in without_torch
    assert list(venv.iterdir()) == []


@pytest.mark.parametrize("version", ["1.13.1", "2.3.0+cu121", "unknown"])
def test_an_old_torch_is_not_used(bootstrap, version):
    assert not bootstrap.is_usable(bootstrap.FoundTorch(version, "/somewhere"))


def test_a_torch_that_does_not_import_is_not_used(bootstrap, monkeypatch):
    for code, usable in ((0, True), (1, False)):
        monkeypatch.setattr(bootstrap, "run_child", lambda command, code=code: (code, ""))
        assert bootstrap.is_usable(bootstrap.FoundTorch("2.9.0", "/somewhere")) is usable


def test_a_refusal_by_pip_gets_a_sentence(bootstrap, clone, pretend, monkeypatch, capsys):
    def run_child(command: list[str], *_arguments: object) -> tuple[int, str]:
        return 1, "Looking\nERROR: No matching distribution found for torch==2.13.0\nERROR: more\n"

    def install_packages(root: Path, venv: Path, goal: str, torch: object) -> None:
        bootstrap.pip_install(venv, venv, ["-r", "requirements.txt"])

    monkeypatch.setattr(bootstrap, "run_child", run_child)
    monkeypatch.setattr(bootstrap, "install_packages", install_packages)
    monkeypatch.setattr(bootstrap, "end_tidily_when_told", lambda: None)
    assert bootstrap.main(["--demo"]) == 2
    said = capsys.readouterr().err
    assert is_one_sentence(said) and "No matching distribution found for torch==2.13.0" in said and "network" in said
    assert not (clone / ".venv").exists()


def test_requirements_name_each_other(bootstrap, clone):
    test, demo = (bootstrap.requirement_lines(clone / "tools" / f"requirements-{goal}.txt") for goal in ("test", "demo"))
    assert set(demo) < set(test)
    assert "torch==2.13.0" in demo
    assert not any("#" in line or line.startswith("-") for line in test)


def test_what_is_started(bootstrap, clone, capsys, monkeypatch):
    venv = clone / ".venv"
    qvg, pytest_program = str(bootstrap.program(venv, "qvg")), str(bootstrap.program(venv, "pytest"))
    assert bootstrap.command_line(clone, venv, "demo", []) == [qvg, "demo", "--out", str(clone / "demo_out")]
    assert str(clone / "demo_out") in capsys.readouterr().out
    assert bootstrap.command_line(clone, venv, "demo", ["--frames", "8", "--out=x"]) == [qvg, "demo", "--frames", "8", "--out=x"]
    assert bootstrap.command_line(clone, venv, "test", ["-k", "cache"]) == [pytest_program, "-k", "cache"]
    monkeypatch.setattr(bootstrap.os, "cpu_count", lambda: 1)
    assert bootstrap.command_line(clone, venv, "test", []) == [pytest_program]
    for cores, processes in ((2, "2"), (64, "4")):
        monkeypatch.setattr(bootstrap.os, "cpu_count", lambda cores=cores: cores)
        whole = bootstrap.command_line(clone, venv, "test", [])
        assert whole == [pytest_program, "-p", "xdist.plugin", "-n", processes, "--dist", "loadfile"]


def calling_bootstrap(*calls: str) -> list[str]:
    """The command of a fresh Python that calls these functions of bootstrap.py."""
    code = f"import sys\nsys.path.insert(0, {str(ROOT / 'tools')!r})\nimport bootstrap\n"
    return [sys.executable, "-S", "-c", code + "".join(f"bootstrap.{call}\n" for call in calls)]


@POSIX
def test_handing_over_keeps_the_exit_code_and_ctrl_c():
    """The program takes the script's place, so an interrupt sent to the one reaches the other, which decides how to end."""
    child = "try:\n print('up', flush=True)\n __import__('time').sleep(600)\nexcept KeyboardInterrupt:\n raise SystemExit(130)"
    command = calling_bootstrap("end_tidily_when_told()", f"hand_over([sys.executable, '-S', '-c', {child!r}])")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130


@POSIX
def test_an_interrupt_ends_all_that_was_started(tmp_path):
    """pip starts processes of its own; none of them may go on writing into a .venv that is being deleted."""
    grandchild = f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', {grandchild!r}])"
    command = calling_bootstrap(f"run_child([sys.executable, '-S', '-c', {child!r}])")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, "the grandchild outlived the interrupt"
        time.sleep(0.02)


def test_the_stamp_is_plain_json(bootstrap, clone, pretend):
    venv = bootstrap.ensure_venv(clone, "demo")
    written = json.loads((venv / "qvg-demo-stamp.json").read_text())
    assert written == bootstrap.stamp(clone, "demo", None)
    assert set(written) == {"root", "python", "torch", "requirements"}
