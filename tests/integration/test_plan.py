"""What QVG Plan says, against what ComfyUI's own network takes, and the node in a real ComfyUI."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from comfyui_qvg.qvg import PRESETS
from comfyui_qvg.qvg.models.shapes import SHAPES
from comfyui_qvg.qvg.plan import Video, plan
from comfyui_qvg.qvg.plan.activations import Block, activations

from .conftest import _comfyui


@pytest.mark.parametrize(("name", "frames"), [("self-forcing-1.3b", 3), ("self-forcing-1.3b", 1), ("krea-14b", 3)])
def test_a_pass_takes_what_is_planned_for_it(name: str, frames: int) -> None:
    """480 x 832, every tensor of ComfyUI's network counted: 80 to 100 per cent of the bound."""
    home, python = _comfyui()
    network = SHAPES[name]
    sizes = [str(home), *map(str, (network.layers, network.heads, network.mlp, frames))]
    script = Path(__file__).with_name("count_activations.py")
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run([str(python), str(script), *sizes], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout.splitlines()[-1])
    block = Block(batch=1, tokens=frames * 1560, frame_values=0, span_tokens=0)
    bound = activations(network, block, PRESETS["balanced"], triton=True).total(0)
    # The block's keys and values are counted with the cache.
    assert 0.8 * bound <= counted["peak"] <= bound + counted["held_by_the_cache"]
    assert counted["peak"] - counted["held_by_the_cache"] <= bound
    assert counted["weights"] == plan(network, Video(832, 480, 81), PRESETS["balanced"]).weights_bytes
