"""Importing the library is free: no Triton, no GPU, no ComfyUI, no CUDA start-up, and nobody else's names or dice are touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROBE = """
import importlib, json, sys, types

names, root = json.loads(sys.argv[1]), sys.argv[2]
for absent in ("triton", "comfy", "comfy_api", "folder_paths"):
    sys.modules[absent] = None  # whoever imports it gets ImportError
package = sys.modules["comfyui_qvg"] = types.ModuleType("comfyui_qvg")
package.__path__ = [root]

import torch

dice = torch.get_rng_state()
for name in names:
    importlib.import_module("comfyui_qvg." + name)
print(json.dumps({
    "bare": sorted({name.split(".")[0] for name in sys.modules} & {"qvg", "nodes", "kernels"}),
    "cuda": torch.cuda.is_initialized(),
    "dice": bool(torch.equal(dice, torch.get_rng_state())),
    "path": root in sys.path,
}))
"""


def library_modules() -> list[str]:
    """Every module of qvg/ and kernels/ but the Triton twins, which import Triton by their nature."""
    files = [file for folder in ("qvg", "kernels") for file in (ROOT / folder).rglob("*.py") if file.name != "triton_kernel.py"]
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return sorted(".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts)


@pytest.fixture(scope="module")
def after_import(tmp_path_factory) -> dict[str, object]:
    """What a fresh Python looks like after importing all of it."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(library_modules()), str(ROOT)],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_imports_without_triton_and_comfyui(after_import):
    assert after_import


def test_cuda_is_not_started(after_import):
    assert after_import["cuda"] is False


def test_no_bare_names(after_import):
    assert after_import["bare"] == []
    assert after_import["path"] is False


def test_the_global_generator_is_untouched(after_import):
    assert after_import["dice"] is True


def test_no_bare_names_in_the_tests_themselves():
    ours = [name for name in ("qvg", "nodes", "kernels") if str(ROOT) in str(getattr(sys.modules.get(name), "__file__", ""))]
    assert ours == []
    assert str(ROOT) not in sys.path
