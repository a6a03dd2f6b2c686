"""ComfyUI's own causal Wan makes the official numbers, and so does ours made of ComfyUI's layers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from ..golden_wan import TOLERANCE, deviation, golden
from .conftest import comfyui

PROGRAM = Path(__file__).with_name("core_golden_wan.py")


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What both make inside ComfyUI's Python."""
    home, python = comfyui()
    out = tmp_path_factory.mktemp("golden") / "flows.safetensors"
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(
        [str(python), str(PROGRAM), str(home), str(out)], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return load_file(out)


@pytest.mark.parametrize("whose", ["core", "ours"])
def test_every_pass_is_the_official_one(flows: dict[str, Tensor], whose: str) -> None:
    passes = [name for name in golden() if name != "text"]
    deviations = {name: deviation(flows[f"{whose}.{name}"], golden()[name]) for name in passes}
    assert len(passes) == 21 and max(deviations.values()) < TOLERANCE, deviations


def test_the_two_match_each_other(flows: dict[str, Tensor]) -> None:
    passes = [name for name in golden() if name != "text"]
    deviations = {name: deviation(flows[f"ours.{name}"], flows[f"core.{name}"]) for name in passes}
    assert max(deviations.values()) < TOLERANCE, deviations
