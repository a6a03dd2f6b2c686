"""The demo film's file in ComfyUI's own loader: a causal Wan there, whose network makes the same numbers as ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from comfyui_qvg.qvg.models.demo_film.weights import WEIGHTS
from safetensors.torch import load_file

from ..golden_wan import TOLERANCE, deviation
from ..untrained_film import untrained
from .conftest import comfyui

PROGRAM = Path(__file__).with_name("core_film.py")


@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "shipped"])
def test_both_networks_make_the_same_numbers(tmp_path: Path, trained: bool) -> None:
    if trained and not WEIGHTS.is_file():
        pytest.skip("assets/demo_film.safetensors is not there yet")
    home, python = comfyui()
    file, out = WEIGHTS if trained else untrained(tmp_path / "film.safetensors"), tmp_path / "flows.safetensors"
    done = subprocess.run(
        [str(python), str(PROGRAM), str(home), str(file), str(out)],
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1", **os.environ},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    flows = load_file(out)
    names = [name.removeprefix("core.") for name in flows if name.startswith("core.")]
    deviations = {name: deviation(flows[f"ours.{name}"], flows[f"core.{name}"]) for name in names}
    assert len(names) == 4 and max(deviations.values()) < TOLERANCE, deviations
