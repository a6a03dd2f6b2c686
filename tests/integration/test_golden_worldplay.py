"""ComfyUI's own Wan 2.2 with WorldPlay's layers makes the official numbers, and those of our compact network."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..golden_worldplay import CHUNKS, GOLDEN, TEXT, weights
from ..helpers import assert_close
from .conftest import comfyui

PROGRAM = Path(__file__).with_name("core_golden_worldplay.py")
# ComfyUI takes Wan's text channels to be 4096 unless the file says otherwise.
METADATA = {"config": json.dumps({"transformer": {"text_dim": TEXT}})}


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What both make inside ComfyUI's Python."""
    home, python = comfyui()
    folder = tmp_path_factory.mktemp("golden")
    save_file(weights(), folder / "worldplay.safetensors", METADATA)
    command = [str(python), str(PROGRAM), str(home), str(folder / "worldplay.safetensors"), str(folder / "out.safetensors")]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors")


def test_every_chunk_is_the_official_one(latents: dict[str, Tensor]) -> None:
    """Seven chunks of four steps, the last two on a selected memory."""
    for index in range(CHUNKS):
        assert_close(f"chunk {index}", GOLDEN[f"latent.{index}"], latents[f"core.vendor.{index}"], 4e-5)


@pytest.mark.parametrize("mode", ["vendor", "persistent", "incremental"])
def test_it_matches_our_compact_network(latents: dict[str, Tensor], mode: str) -> None:
    chunks = [name.removeprefix("ours.") for name in latents if name.startswith(f"ours.{mode}.")]
    assert len(chunks) == (CHUNKS if mode == "vendor" else 3)
    for chunk in chunks:
        assert_close(chunk, latents[f"ours.{chunk}"], latents[f"core.{chunk}"], 4e-5)


def test_it_is_the_same_where_weights_stay_in_the_file_until_they_are_used(latents: dict[str, Tensor]) -> None:
    chunks = [name for name in latents if name.startswith("lazy.")]
    assert len(chunks) in (0, CHUNKS)  # a ComfyUI that has no such thing makes none
    for chunk in chunks:
        assert_close(chunk, latents[chunk.replace("lazy.", "core.")], latents[chunk], 1e-6)
