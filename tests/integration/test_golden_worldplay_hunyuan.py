"""ComfyUI's own HunyuanVideo 1.5 with WorldPlay's layers makes the official numbers, and those of our compact network."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.positions.rope import pairs_apart
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..golden_worldplay_hunyuan import CHUNKS, GUIDED_CHUNKS, golden, weights
from ..helpers import assert_close
from .conftest import comfyui

PROGRAM = Path(__file__).with_name("core_golden_worldplay_hunyuan.py")


@pytest.fixture(scope="module", params=["as released", "converted"])
def latents(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What both make inside ComfyUI's Python, of the file as it is released and as qvg convert makes it."""
    home, python = comfyui()
    folder = tmp_path_factory.mktemp("golden")
    file = folder / "model.safetensors"
    save_file(weights(), file)
    if request.param == "converted":
        file, released = folder / "worldplay.safetensors", file
        assert main(["convert", str(released), str(file), "--dtype", "fp32"]) == 0
    command = [str(python), str(PROGRAM), str(home), str(file), str(folder / "out.safetensors")]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors")


def test_it_makes_the_official_numbers(latents: dict[str, Tensor]) -> None:
    """The text pass, seven chunks of four steps, the last one on a selected memory, and two chunks with guidance."""
    for name in "kv":
        official = golden()[f"text.{name}"]
        assert_close(name, pairs_apart(official) if name == "k" else official, latents[f"core.text.{name}"], 1e-5)
    for index in range(CHUNKS):
        assert_close(f"chunk {index}", golden()[f"latent.{index}"], latents[f"core.vendor.{index}"], 4e-5)
    for index in range(GUIDED_CHUNKS):
        assert_close(f"guided chunk {index}", golden()[f"guided.latent.{index}"], latents[f"core.guided.{index}"], 4e-5)


def test_it_matches_our_compact_network(latents: dict[str, Tensor]) -> None:
    """In every mode."""
    names = [name.removeprefix("ours.") for name in latents if name.startswith("ours.") and ".text." not in name]
    assert len(names) == CHUNKS + 3 + 3 + GUIDED_CHUNKS
    for name in names:
        assert_close(name, latents[f"ours.{name}"], latents[f"core.{name}"], 4e-5)


def test_it_is_the_same_where_weights_stay_in_the_file_until_they_are_used(latents: dict[str, Tensor]) -> None:
    chunks = [name for name in latents if name.startswith("lazy.")]
    assert len(chunks) in (0, CHUNKS)  # a ComfyUI that has no such thing makes none
    for chunk in chunks:
        assert_close(chunk, latents[chunk.replace("lazy.", "core.")], latents[chunk], 1e-6)
