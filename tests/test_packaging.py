"""What is published, what is installed, and what is not."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .archive import left_out, published_files, unpack

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SHIPPED_BY_COMFYUI = {"torch", "torchvision", "torchaudio", "numpy", "safetensors", "einops", "psutil", "pillow", "scipy", "av"}
PACK_FOLDERS = ("qvg", "kernels", "nodes", "assets", "docs", "workflows", "locales", "web")


@pytest.mark.parametrize(
    "path",
    [
        ".ci/run",
        ".comfyignore",
        ".gitignore",
        ".pre-commit-config.yaml",
        ".venv/pyvenv.cfg",
        "Makefile",
        "benchmarks/rows.py",
        "demo_out/demo.json",
        "tests/conftest.py",
        "tests/qvg/cache/test_kv_cache.py",
        "tools/bootstrap.py",
        "tools/requirements-demo.txt",
    ],
)
def test_left_out_of_the_archive(path):
    assert left_out(path)


def test_the_pack_is_in_the_archive():
    needed = ["__init__.py", "install.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md", "CHANGELOG.md"]
    needed += [
        file.relative_to(ROOT).as_posix()
        for folder in PACK_FOLDERS
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    assert [path for path in needed if left_out(path)] == []


# What ComfyUI does with a pack: load its folder under a name of its own choosing, call the entry point, read the schemas. The
# stand-in for ComfyUI comes from this checkout, and nothing else does.
LOAD = """
import asyncio, importlib.util, json, sys

pack, checkout = sys.argv[1:]
spec = importlib.util.spec_from_file_location("standin", checkout + "/tests/nodes/standin.py")
standin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(standin)
sys.modules.update(standin.modules())

spec = importlib.util.spec_from_file_location("pack_of_comfyui", pack + "/__init__.py", submodule_search_locations=[pack])
module = sys.modules["pack_of_comfyui"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
nodes = asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
from pack_of_comfyui.qvg.models.demo_world import load_demo_world
load_demo_world()
from pack_of_comfyui.qvg.models.demo_film.weights import load_demo_film
load_demo_film()
print(json.dumps({
    "nodes": sorted(standin.object_info(node)["name"] for node in nodes),
    "of_the_checkout": sorted(
        name for name, module in sys.modules.items()
        if str(getattr(module, "__file__", "")).startswith(tuple(f"{checkout}/{top}/" for top in ("kernels", "nodes", "qvg")))
    ),
}))
"""


def test_the_pack_works_from_what_is_published_and_nothing_else(tmp_path):
    pack = unpack(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(pack), str(ROOT)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    golden = json.loads((ROOT / "tests" / "nodes" / "object_info.json").read_text(encoding="utf-8"))["nodes"]
    assert json.loads(done.stdout) == {"nodes": sorted(golden), "of_the_checkout": []}


def test_what_is_published_is_small_and_for_users():
    files = published_files()
    assert {path.split("/")[0] for path in files if "/" in path} <= {*PACK_FOLDERS, "benchmarks"}
    bytes_of = {path: (ROOT / path).stat().st_size for path in files}
    # Nine of them are the demo world's weights, nine the demo film's, three the pages' pictures and rows.
    assert sum(bytes_of.values()) < 26e6
    assert all(f"web/docs/{name}.md" in files for name in ("QVGKVCache", "QVGSampler"))
    assert all(f"docs/{name}.md" in files for name in ("comfyui", "format", "memory", "models"))


def test_no_link_is_dead_in_the_archive():
    published, missing = set(published_files()), []
    for page in (path for path in published if path.endswith(".md")):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
            target = ((ROOT / page).parent / link).resolve().relative_to(ROOT).as_posix()
            missing += [] if target in published or any(path.startswith(f"{target}/") for path in published) else [(page, link)]
    assert missing == []


def test_what_manager_runs_needs_no_tools_and_installs_nothing(tmp_path):
    """`python install.py` in the unpacked archive; a pip that is called would fail here, and so would this."""
    pack = unpack(tmp_path)
    (tmp_path / "no" / "pip").mkdir(parents=True)
    (tmp_path / "no" / "pip" / "__init__.py").write_text("raise SystemExit('pip was called')", encoding="utf-8")
    before = sorted(pack.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-B", str(pack / "install.py")],
        cwd=pack,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "no")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "") and "Nothing is installed" in done.stdout
    assert sorted(pack.rglob("*")) == before


def test_installing_the_pack_installs_nothing():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.strip() and not line.startswith("#")] == []
    assert PROJECT["project"]["dependencies"] == []


def test_extras_do_not_replace_what_comfyui_ships():
    extras = PROJECT["project"]["optional-dependencies"]
    assert {"demo", "bench", "test"} <= set(extras)
    assert {Requirement(line).name for lines in extras.values() for line in lines}.isdisjoint(SHIPPED_BY_COMFYUI)


def test_what_the_registry_reads():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert project["name"] == "qvg"
    assert project["license"] == {"file": "LICENSE"}
    assert project["requires-python"] == ">=3.10"
    assert all(part.isdigit() for part in project["version"].split(".")) and project["version"].count(".") == 2
    assert comfy["requires-comfyui"] == ">=0.21.0"
    assert comfy["DisplayName"] == "QVG: long memory for video models"
    assert comfy["PublisherId"] and project["urls"]["Repository"]


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.lstrip().startswith("Apache License")
    assert "Version 2.0, January 2004" in text
    assert "Copyright 2026 The QVG authors" in text


def test_every_package_is_listed():
    folders = {
        file.parent.relative_to(ROOT) for top in ("qvg", "kernels", "nodes") for file in (ROOT / top).rglob("__init__.py")
    } | {Path()}
    on_disk = {".".join(("comfyui_qvg", *folder.parts)) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {"comfyui_qvg": "."}


def test_the_command_line_program():
    assert PROJECT["project"]["scripts"] == {"qvg": "comfyui_qvg.__main__:main"}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("goal", ["demo", "test"])
def test_every_python_gets_one_pin_of_each_package(goal, python):
    lines = (ROOT / "tools" / f"requirements-{goal}.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    assert all([specifier.operator for specifier in pin.specifier] == ["=="] for pin in pins)
    chosen = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    assert sorted(chosen) == sorted({pin.name for pin in pins})


def test_the_root_imports_nothing_that_needs_comfyui():
    """Tests and tools name the root `comfyui_qvg` without running this file; whoever does run it must not need ComfyUI for it."""
    spec = importlib.util.spec_from_file_location("comfyui_qvg_probe", ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
