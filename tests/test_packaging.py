"""What is published, what is installed, and what is not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pathspec
import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SHIPPED_BY_COMFYUI = {"torch", "torchvision", "torchaudio", "numpy", "safetensors", "einops", "psutil", "pillow", "scipy", "av"}
PACK_FOLDERS = ("qvg", "kernels", "nodes", "assets", "workflows", "locales", "web")


def left_out(path: str) -> bool:
    """Whether .comfyignore keeps `path` out of the archive, read as `comfy node pack` reads it."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    return pathspec.GitIgnoreSpec.from_lines(lines).match_file(path)


@pytest.mark.parametrize(
    "path",
    [
        ".ci/run",
        ".comfyignore",
        ".gitignore",
        ".pre-commit-config.yaml",
        ".venv/pyvenv.cfg",
        "CONTRIBUTING.md",
        "Makefile",
        "benchmarks/results/decode.jsonl",
        "demo_out/demo.json",
        "tests/conftest.py",
        "tests/qvg/test_cache.py",
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
    assert PROJECT["project"]["scripts"] == {"qvg": "comfyui_qvg.qvg.cli:main"}


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
