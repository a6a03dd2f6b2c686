"""The workflows for LongCat-Video, run as they are on a tiny random checkpoint whose files have the real ones' names.

The text encoder is replaced and pictures made smaller; lengths, settings and everything else stay. How the workflows look and
open in the page: tests/browser.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest
from comfyui_qvg.qvg import PRESETS
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.plan import Video, plan
from safetensors.torch import save_file

from .. import tiny_longcat
from . import tiny_vae
from .client import Client
from .test_longcat import NETWORK, SHAPE
from .test_workflows import TEXT, VAE, graph, note, program, shrunk

MODEL, LORA = "LongCat_TI2V_comfy_bf16.safetensors", "cfg_step_lora.safetensors"
FOLDERS = {MODEL: "diffusion_models", LORA: "loras", TEXT: "text_encoders", VAE: "vae"}
SIZE = (96, 64)
# Files, pictures, segments, and texts that run side by side.
WORKFLOWS: dict[str, tuple[tuple[str, ...], int, int, int]] = {
    "longcat_t2v": ((MODEL, TEXT, VAE), 93, 1, 2),
    "longcat_continue": ((MODEL, LORA, TEXT, VAE), 893, 11, 1),
}


@pytest.fixture
def files(client: Client) -> Path:
    """What the loaders ask for."""
    models = client.base / "models"
    for name, folder in FOLDERS.items():
        (models / folder).mkdir(parents=True, exist_ok=True)
        (models / folder / name).write_bytes(b"")
    save_file(tiny_longcat.repacked(NETWORK), models / FOLDERS[MODEL] / MODEL)
    save_file(tiny_longcat.lora(tiny_longcat.DISTILLS, shape=SHAPE), models / FOLDERS[LORA] / LORA)
    tiny_vae.write(models / FOLDERS[VAE] / VAE)
    return models


@pytest.mark.parametrize("name", WORKFLOWS)
def test_loaders_say_where_their_files_are(name: str) -> None:
    """The page offers the models of a template that are not there, by these."""
    found = {}
    for node in graph(name)["nodes"]:
        for model in node["properties"].get("models", ()):
            assert model["name"] in node["widgets_values"] and model["directory"] == FOLDERS[model["name"]]
            assert model["url"].startswith("https://huggingface.co/") and "/resolve/main/" in model["url"]
            found[model["name"]] = model["url"].rsplit("/", 1)[1]
    assert found == {file: file for file in WORKFLOWS[name][0]}
    assert all(file in note(name) for file in found)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_notes_say_what_is_planned(name: str) -> None:
    _, frames, _, branches = WORKFLOWS[name]
    network, text = replace(networks()["longcat-13b"], branches=branches), " ".join(note(name).split())
    found = plan(network, Video(832, 480, frames), PRESETS["balanced"], triton=True)
    assert f"{found.peak_bytes / 1e9:.1f} GB at the worst moment" in text
    assert f"{found.streamed_bytes / 1e9:.1f} GB" in text and f"{frames} pictures" in text
    # One segment that begins with a text remembers nothing; two do.
    longer = plan(network, Video(832, 480, max(frames, 173)), PRESETS["balanced"], triton=True)
    assert f"{longer.cache_peak_bytes / 1e9:.1f} GB of it" in text
    assert f"which would be {longer.exact_cache_bytes / 1e9:.1f} GB at 16 bits" in text
    if name == "longcat_continue":
        long = plan(network, Video(832, 480, frames, block_frames=5), PRESETS["balanced"], triton=True)
        assert f"{long.cache_end_bytes / 1e9:.1f} GB, not {long.exact_cache_bytes / 1e9:.1f}" in text


@pytest.mark.parametrize("name", WORKFLOWS)
def test_without_the_models_nothing_else_is_missing(client: Client, files: Path, name: str) -> None:
    for file, folder in FOLDERS.items():
        (files / folder / file).unlink(missing_ok=True)
    code, answer = client.post("/prompt", {"prompt": program(name)})
    missing = [
        (error["type"], error["extra_info"]["received_value"])
        for node in answer["node_errors"].values()
        for error in node["errors"]
    ]
    assert code == 400 and sorted(missing) == [("value_not_in_list", file) for file in sorted(WORKFLOWS[name][0])]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", WORKFLOWS)
def test_it_runs_from_end_to_end(client: Client, name: str) -> None:
    _, frames, segments, _ = WORKFLOWS[name]
    seen, prompt = len(client.log()), shrunk(program(name), *SIZE)
    with client.new_files("output/QVG") as made:
        result = client.run(prompt)
    assert result.status == "success", result.messages
    (file,) = made
    with av.open(str(file)) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (*SIZE, Fraction(15))
        assert sum(1 for _ in video.decode(stream)) == frames
        assert json.loads(video.metadata["prompt"]).keys() == prompt.keys()
    texts = [output["text"][0] for output in result.outputs.values() if "text" in output]
    (report,) = (text for text in texts if text.startswith(f"LongCat-Video, {(frames - 1) // 4 + 1} latent frames"))
    assert f"{segments} segment" in report
    if segments > 1:
        assert float(re.search(r"^ratio ([\d.]+)x", report, re.MULTILINE)[1]) > 1.2, report  # type: ignore[index]
        assert "through the VAE (as released)" in report
    said = client.log()[seen:]
    assert "WARNING" not in said and "the memory is free" not in said, said
