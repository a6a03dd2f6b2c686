"""Makes `.venv` in the repository root, fills it with pinned packages, and starts the demo or the tests in it. Stdlib only.

`install.py --demo` and `--test` hand over to `main`. A stamp in `.venv`, written last, says what it was made from: while that
still holds, a start asks neither pip nor the network. A torch that the interpreter already has is used in place, never replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
STAMPS = {"demo": ("demo",), "test": ("test", "demo")}  # what an install for a goal is also good for
PROGRAMS = {"demo": "qvg", "test": "pytest"}
OWNER_MARK = "made-by-qvg-install"  # a .venv without it is somebody else's
UNFINISHED_MARK = "qvg-install-unfinished"
OLDEST_TORCH = (2, 4)  # older ones are left alone, and .venv gets its own
MOST_PROCESSES = 4  # of the tests: each takes up to 2 GB
TESTED_PYTHONS = "3.10 to 3.13"


class BootstrapError(Exception):
    """What the person at the terminal has to mend; the message gives the value, the rule and the way out."""


class FoundTorch(NamedTuple):
    """A torch that the running interpreter already has."""

    version: str
    folder: str


# ---------------------------------------------------------------------------------------------------------------- what there is


def find_torch() -> FoundTorch | None:
    """The torch of this interpreter, by its metadata alone: importing it would cost seconds at every start."""
    try:
        found = importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    return FoundTorch(found.version, str(Path(str(found.locate_file(""))).resolve()))


def is_usable(torch: FoundTorch) -> bool:
    """Whether it is new enough and really imports."""
    numbers = torch.version.split("+")[0].split(".")[:2]
    if not all(number.isdigit() for number in numbers) or tuple(map(int, numbers)) < OLDEST_TORCH:
        return False
    return run_child([sys.executable, "-c", "import torch"])[0] == 0


def requirement_lines(file: Path) -> list[str]:
    """The requirements of a file, with those of the files it names by `-r`, without comments."""
    lines: list[str] = []
    for line in (raw.split("#")[0].strip() for raw in file.read_text(encoding="utf-8").splitlines()):
        if line.startswith("-r "):
            lines += requirement_lines(file.parent / line[3:].strip())
        elif line:
            lines.append(line)
    return lines


def without_torch(lines: Sequence[str]) -> list[str]:
    """The lines that do not ask for torch itself."""
    return [line for line in lines if not line.startswith("torch==")]


def stamp(root: Path, goal: str, torch: FoundTorch | None) -> dict[str, str]:
    """Everything that `.venv` depends on. Paths too: a moved clone or interpreter leaves scripts that point nowhere."""
    lines = requirement_lines(root / "tools" / f"requirements-{goal}.txt")
    return {
        "root": str(root),
        "python": f"{platform.python_version()} {sys.prefix}",
        "torch": f"{torch.version} {torch.folder}" if torch else "none",
        "requirements": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def run_child(
    command: Sequence[str], environment: dict[str, str] | None = None, tell: Callable[[str], None] | None = None
) -> tuple[int, str]:
    """(exit code, output) of a command that needs no keyboard. `tell` hears every line. An interrupt ends all it has started."""
    # In a session of its own: a Ctrl-C reaches this process alone, which then ends the child, and its children, at one moment.
    own_session = os.name != "nt"
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        errors="replace",
        start_new_session=own_session,
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                lines.append(line)
                if tell:
                    tell(line)
            child.wait()
        except BaseException:
            if own_session:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
            child.wait()
            raise
    return child.returncode, "".join(lines)


# -------------------------------------------------------------------------------------------------------------------- the .venv


def program(venv: Path, name: str) -> Path:
    """A program inside `.venv`, spelled as this system does."""
    return venv / "Scripts" / f"{name}.exe" if os.name == "nt" else venv / "bin" / name


def stamp_file(venv: Path, goal: str) -> Path:
    """Where the stamp of an install for `goal` lies."""
    return venv / f"qvg-{goal}-stamp.json"


def runs_inside(venv: Path) -> bool:
    """Whether this script runs on `.venv`'s own Python."""
    return Path(sys.prefix).resolve() == venv.resolve()


def is_ready(venv: Path, goal: str, wanted: dict[str, str]) -> bool:
    """Whether `.venv` was finished from exactly what is wanted now, and its parts are still there."""
    try:
        found = json.loads(stamp_file(venv, goal).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    packages = [*venv.glob("lib/python*/site-packages/qvg-*.dist-info"), *venv.glob("Lib/site-packages/qvg-*.dist-info")]
    programs = [program(venv, "python"), program(venv, PROGRAMS[goal])]
    intact = bool(packages) and (venv / "pyvenv.cfg").exists() and all(file.exists() for file in programs)
    # From inside, the interpreter and the torch it was made from cannot be seen.
    compared = ("root", "requirements") if runs_inside(venv) else tuple(wanted)
    same = isinstance(found, dict) and all(found.get(key) == wanted[key] for key in compared)
    return intact and same and not (venv / UNFINISHED_MARK).exists()


def refuse_foreign(venv: Path) -> None:
    """Raise where `.venv` is a working environment that this script did not make: it is not ours to delete."""
    if (venv / "pyvenv.cfg").exists() and program(venv, "python").exists() and not (venv / OWNER_MARK).exists():
        raise BootstrapError(
            f"{venv} was made by something else, and install.py only replaces its own; rename or delete it, then run this again"
        )


def refuse_own_python(venv: Path) -> None:
    """Raise where this very script runs on `.venv`'s Python: nobody can rebuild the floor they stand on."""
    if runs_inside(venv):
        raise BootstrapError(f"{sys.executable} is the .venv that has to be rebuilt; type 'deactivate', then run this again")


def refuse_no_ensurepip() -> None:
    """Raise where Python comes without what `.venv` needs, as Debian's and Ubuntu's does."""
    try:
        import ensurepip  # noqa: F401  (looked for, not used)
        import venv  # noqa: F401
    except ImportError as error:
        raise BootstrapError(no_ensurepip_sentence()) from error


def no_ensurepip_sentence() -> str:
    """What to type where `ensurepip` is missing."""
    if shutil.which("apt"):
        sudo = "" if os.geteuid() == 0 else "sudo "
        way_out = f"type '{sudo}apt install python{sys.version_info.major}.{sys.version_info.minor}-venv'"
    else:
        way_out = "install Python from https://www.python.org/downloads"
    return f"{sys.executable} has no ensurepip, which making .venv needs; {way_out}, then run this again"


def remove_folder(folder: Path, attempts: int = 5) -> None:
    """Delete a folder, patiently: a pip whose starter was killed, or a virus scanner, may hold on to it for a moment."""
    for left in reversed(range(attempts)):
        try:
            return shutil.rmtree(folder)
        except OSError:
            if not left:
                raise
            time.sleep(0.5)


def remove(venv: Path) -> None:
    """Delete `.venv`; what makes it look whole goes first, lest an interrupt leaves something to be taken for one."""
    if venv.is_symlink() or venv.is_file():
        venv.unlink()
    elif venv.exists():
        for file in (*(stamp_file(venv, goal) for goal in STAMPS), venv / "pyvenv.cfg"):
            file.unlink(missing_ok=True)
        remove_folder(venv)


def make_venv(venv: Path, torch: FoundTorch | None) -> None:
    """An empty `.venv`, in which `torch` can be seen if there is one."""
    venv.mkdir()
    (venv / OWNER_MARK).write_text("install.py made this folder and may delete it.\n", encoding="utf-8")
    in_venv = sys.prefix != sys.base_prefix
    options = ["--system-site-packages"] if torch and not in_venv else []
    command = [sys.executable, "-m", "venv", *options, str(venv)]
    code, output = run_child(command)
    if code:
        # Some distributions ship an ensurepip that imports and then fails.
        sentence = no_ensurepip_sentence() if "ensurepip" in output else f"'{command[0]} -m venv' failed: {last_line(output)}"
        raise BootstrapError(sentence)
    if torch and in_venv:
        show_packages(venv, torch)


def show_packages(venv: Path, torch: FoundTorch) -> None:
    """Let `.venv` see the packages of the venv this script runs in; `--system-site-packages` would show its base's instead."""
    folders = [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    _, own = run_child([str(program(venv, "python")), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    lines = dict.fromkeys([torch.folder, *folders])
    Path(own.strip(), "qvg_parent_packages.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------- packages


def last_line(output: str) -> str:
    """The last line that says something: of pip's errors the first, which names the cause."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no output"])[0 if errors else -1][:300]


def tell_of_downloads(line: str) -> None:
    """Pass on what takes long of pip's lines: downloads of 10 MB and more, and the unpacking."""
    size = re.search(r"Downloading (\S+?)-\d\S* \((\d{2,})[.\d]* MB\)", line)
    if size:
        say(f"  downloading {size[1]} ({size[2]} MB)")
    elif line.startswith("Installing collected packages:"):
        say(f"  installing {line.count(',') + 1} package(s)")


def pip_install(venv: Path, scratch: Path, arguments: Sequence[str]) -> None:
    """`pip install` inside `.venv`, with its temporary files in `scratch`."""
    # A user's own pip settings (`--user`, `--target`) would install past .venv.
    environment = {key: value for key, value in os.environ.items() if key not in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")}
    environment |= {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    command = [str(program(venv, "python")), "-m", "pip", "install", "--progress-bar", "off", *arguments]
    code, output = run_child(command, environment, tell_of_downloads)
    if code:
        raise BootstrapError(
            f"pip could not install the pinned packages for Python {platform.python_version()} ({last_line(output)}); "
            f"the first run needs the network, some GB of disk and Python {TESTED_PYTHONS}; see to these, then run this again"
        )


def install_packages(root: Path, venv: Path, goal: str, torch: FoundTorch | None) -> None:
    """The pinned packages of `goal`, then this repository itself as the editable package `comfyui_qvg`."""
    lines = requirement_lines(root / "tools" / f"requirements-{goal}.txt")
    scratch = venv / "qvg-scratch"  # inside, so that even a killed install leaves nothing elsewhere
    scratch.mkdir()
    requirements, constraints = scratch / "requirements.txt", scratch / "constraints.txt"
    requirements.write_text("\n".join(without_torch(lines) if torch else lines) + "\n", encoding="utf-8")
    # Nothing among the packages asks for torch today; should one do so tomorrow, it gets the version that is there.
    constraints.write_text(f"torch=={torch.version}\n" if torch else "", encoding="utf-8")
    # Beside a shared torch, equal versions may be there already, but their programs (pytest, ruff) are not in .venv.
    own_copies = ["--ignore-installed"] if torch else []
    try:
        pip_install(venv, scratch, [*own_copies, "-r", str(requirements), "-c", str(constraints)])
        pip_install(venv, scratch, ["--no-deps", "--no-build-isolation", "-e", str(root)])
    finally:
        remove_folder(scratch)
    code, output = run_child([str(program(venv, "python")), "-c", "import torch, comfyui_qvg"])
    if code:
        raise BootstrapError(
            f"the new .venv cannot import torch and comfyui_qvg ({last_line(output)}); "
            "run this with a Python that has no torch of its own, or with another version of Python"
        )


# -------------------------------------------------------------------------------------------------------------------- all of it


@contextlib.contextmanager
def all_or_nothing(undo: Callable[[], None]) -> Iterator[None]:
    """Undo what was made if it is not finished, whatever the reason, Ctrl-C included."""
    try:
        yield
    except BaseException:
        undo()
        raise


def build(root: Path, venv: Path, goal: str, found: FoundTorch | None) -> None:
    """Make `.venv` anew. What fails on the way is deleted again."""
    torch = found if found and is_usable(found) else None
    if torch:
        say(f"making .venv with this interpreter's torch {torch.version} (once; takes a minute or so)")
    else:
        say("making .venv with pinned packages, torch among them (once; takes minutes, most of them to download)")
    remove(venv)
    with all_or_nothing(lambda: remove(venv)):
        make_venv(venv, torch)
        install_packages(root, venv, goal, torch)
        write_stamps(root, venv, goal, found)


def extend(root: Path, venv: Path, goal: str, found: FoundTorch | None) -> None:
    """Add the packages of `goal` to a `.venv` that is whole. If pip refuses, what was there still serves."""
    say(f"adding the pinned packages for --{goal} to .venv (once)")
    # Who is killed in the middle leaves this mark, and the next start builds anew. A refusal by pip has changed nothing.
    unfinished = venv / UNFINISHED_MARK
    unfinished.touch()
    try:
        install_packages(root, venv, goal, found if found and is_usable(found) else None)
    except BootstrapError:
        unfinished.unlink()
        raise
    unfinished.unlink()
    write_stamps(root, venv, goal, found)


def write_stamps(root: Path, venv: Path, goal: str, found: FoundTorch | None) -> None:
    """Say of `.venv` that it is finished: the last step of an install."""
    for good_for in STAMPS[goal]:
        stamp_file(venv, good_for).write_text(json.dumps(stamp(root, good_for, found), indent=1), encoding="utf-8")


def ensure_venv(root: Path, goal: str) -> Path:
    """The `.venv` of the repository, made or completed if need be."""
    venv = root / ".venv"
    found = find_torch()
    if is_ready(venv, goal, stamp(root, goal, found)):
        return venv
    refuse_own_python(venv)
    refuse_foreign(venv)
    refuse_no_ensurepip()
    smaller = [part for part in STAMPS[goal] if part != goal]
    if any(is_ready(venv, part, stamp(root, part, found)) for part in smaller):
        extend(root, venv, goal, found)
    else:
        build(root, venv, goal, found)
    return venv


def shared_out(cores: int) -> list[str]:
    """pytest's options for the whole suite: a process for each core, up to four, and the tests of a file in one of them, which
    share what the file has made. Plugins are not loaded by themselves (see `main`), so this one is named."""
    return ["-p", "xdist.plugin", "-n", str(min(cores, MOST_PROCESSES)), "--dist", "loadfile"] if cores > 1 else []


def command_line(root: Path, venv: Path, goal: str, extra: Sequence[str]) -> list[str]:
    """What to start. pytest by its script: `python -m pytest` would put the root on sys.path."""
    if goal == "test":
        return [str(program(venv, "pytest")), *(extra or shared_out(os.cpu_count() or 1))]
    named = any(option == "--out" or option.startswith("--out=") for option in extra)
    out = [] if named else ["--out", str(root / "demo_out")]
    if not named:
        say(f"the files will be in {root / 'demo_out'}")
    return [str(program(venv, "qvg")), "demo", *out, *extra]


def hand_over(command: list[str]) -> int:
    """Become the program, so that Ctrl-C and the exit code are its own. Windows cannot: there it is started and waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    with subprocess.Popen(command) as child:
        while True:
            try:
                return 130 if child.wait() == 0xC000013A else child.returncode  # STATUS_CONTROL_C_EXIT
            except KeyboardInterrupt:
                continue  # the terminal has told the child too; it decides how to end


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def end_tidily_when_told() -> None:
    """Make a polite kill or a closed terminal unwind as Ctrl-C does, so that no half-made .venv and no pip stay behind."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)


def main(arguments: Sequence[str]) -> int:
    """`arguments`: `--demo` or `--test`, then what the program gets. The exit code, unless this process becomes the program."""
    goal = arguments[0].removeprefix("--")
    end_tidily_when_told()
    try:
        venv = ensure_venv(ROOT, goal)
        command = command_line(ROOT, venv, goal, arguments[1:])
        if goal == "test":
            os.chdir(ROOT)  # pytest finds its settings and tests here
            # Plugins that happen to lie beside a shared torch must not change our tests.
            os.environ.setdefault("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        return hand_over(command)
    except BootstrapError as error:
        print(f"qvg: {error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("qvg: interrupted; run the same command again, it starts over where that is needed.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"qvg: .venv in {ROOT} could not be made or started ({error}); see to its rights and disk space.", file=sys.stderr)
        return 2
