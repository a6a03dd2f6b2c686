"""The workflows for ComfyUI's causal Wan, run as they are on a tiny random checkpoint whose files have the real ones' names.

Text encoders are replaced and pictures made smaller; lengths, settings and everything else stay. How they look and open in the
page: tests/browser.
"""

from __future__ import annotations

import copy
import json
import re
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from comfyui_qvg.qvg import PRESETS
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.plan import Video, Weights, plan

from . import tiny_vae, tiny_wan
from .client import ROOT, Client, Prompt

SELF, CAUSAL = "self_forcing_dmd.pt", "causal_forcing-framewise.safetensors"
KREA = "krea-realtime-video-14b.safetensors"
TEXT, VAE = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors"
FOLDERS = {SELF: "diffusion_models", CAUSAL: "diffusion_models", KREA: "diffusion_models", TEXT: "text_encoders", VAE: "vae"}
# The model, the video's frames, the size it is made in here, and for the plan: network and what differs from the preset. Sizes
# are large enough for a span to fill up in so many frames; in a window spans are cut to it.
WORKFLOWS: dict[str, tuple[str, int, tuple[int, int], str, dict[str, Any]]] = {
    "self_forcing_t2v": (SELF, 81, (160, 112), "self-forcing-1.3b", {}),
    "causal_forcing_t2v": (CAUSAL, 81, (160, 112), "causal-forcing-1.3b", {}),
    "causal_forcing_i2v": (CAUSAL, 161, (128, 64), "causal-forcing-1.3b", {}),
    "self_forcing_long": (SELF, 477, (96, 64), "self-forcing-1.3b", {"sink_frames": 3, "window_frames": 21}),
    "krea_t2v": (KREA, 81, (160, 112), "krea-14b", {"offload": "cpu"}),
}


def graph(name: str) -> dict[str, Any]:
    """As the page saves it."""
    found: dict[str, Any] = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def program(name: str) -> Prompt:
    """As the page sends it."""
    found: Prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def note(name: str) -> str:
    """What one sees at once, and what is folded away under it."""
    texts = [node["widgets_values"][0] for node in graph(name)["nodes"] if node["type"] == "MarkdownNote"]
    return "\n".join(texts)


def shrunk(prompt: Prompt, width: int, height: int) -> Prompt:
    """In another size, with random numbers for prompts."""
    prompt = copy.deepcopy(prompt)
    (encoder,) = (key for key, step in prompt.items() if step["class_type"] == "CLIPLoader")
    del prompt[encoder]
    for seed, step in enumerate(prompt.values()):
        inputs, title = step["inputs"], step["_meta"]["title"].lower()
        if step["class_type"] == "CLIPTextEncode":
            step.update(class_type="TestingPrompt", inputs={"seed": seed, "prompts": 1, "tokens": 12})
        elif step["class_type"] == "PrimitiveInt" and title in ("width", "height"):
            inputs["value"] = {"width": width, "height": height}[title]
        elif isinstance(inputs.get("width"), int):
            inputs.update(width=width, height=height)
    return prompt


@pytest.fixture
def files(client: Client) -> Path:
    """What the loaders ask for."""
    models = client.base / "models"
    for name, folder in FOLDERS.items():
        (models / folder).mkdir(parents=True, exist_ok=True)
        (models / folder / name).unlink(missing_ok=True)
    torch.save(
        {"generator_ema": {f"model.{key}": value for key, value in tiny_wan.state_dict().items()}}, models / FOLDERS[SELF] / SELF
    )
    tiny_wan.write(models / FOLDERS[CAUSAL] / CAUSAL)
    tiny_wan.write(models / FOLDERS[KREA] / KREA)
    tiny_vae.write(models / FOLDERS[VAE] / VAE)
    return models


def test_every_workflow_of_this_family_is_tried() -> None:
    others = ("worldplay", "longcat", "dreamx", "longlive2")
    files = {file.stem for file in (ROOT / "workflows").glob("*.json") if not file.stem.startswith(others)}
    assert files == {*WORKFLOWS, "demo_world", "demo_compare", "demo_forever", "demo_film"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_loaders_say_where_their_files_are(name: str) -> None:
    """The page offers the models of a template that are not there, by these."""
    wanted = {WORKFLOWS[name][0], TEXT, VAE}
    found = {}
    for node in graph(name)["nodes"]:
        for model in node["properties"].get("models", ()):
            assert model["name"] in node["widgets_values"] and model["directory"] == FOLDERS[model["name"]]
            assert model["url"].startswith("https://huggingface.co/") and "/resolve/main/" in model["url"]
            found[model["name"]] = model["url"].rsplit("/", 1)[1]
    assert found == {file: file for file in wanted}
    assert all(file in note(name) for file in wanted)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_notes_say_what_is_planned(name: str) -> None:
    _, frames, _, network, changes = WORKFLOWS[name]
    text = " ".join(note(name).split())
    kept = next((step["inputs"]["weights"] for step in program(name).values() if step["class_type"] == "QVGPlan"), "bf16")
    make_plan = partial(plan, networks()[network], Video(832, 480, frames), weights=Weights(kept), triton=True)
    found = make_plan(PRESETS["balanced"].with_changes(**changes))
    assert f"{found.peak_bytes / 1e9:.1f} GB at the worst moment" in text
    assert f"{(found.cache_peak_bytes - found.away_bytes) / 1e9:.1f} GB of it the cache" in text
    assert f"{frames} frames" in text and f"{found.exact_cache_bytes / 1e9:.1f} GB" in text
    if found.away_bytes:
        assert f"beside the weights it takes {found.streamed_bytes / 1e9:.1f} GB" in text
    if "window_frames" in changes:
        assert f"{make_plan(PRESETS['balanced']).cache_peak_bytes / 1e9:.1f} GB here" in text


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
    assert sorted(missing) == [("value_not_in_list", file) for file in sorted((WORKFLOWS[name][0], TEXT, VAE))]
    plans = [at for at, node in program(name).items() if node["class_type"] == "QVGPlan"]
    assert code == (200 if plans else 400)
    if plans:  # it needs no model, and answers before anything is downloaded
        shown = client.wait(answer["prompt_id"])
        assert (shown.status, [*shown.outputs]) == ("success", plans)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", WORKFLOWS)
def test_it_runs_from_end_to_end(client: Client, name: str) -> None:
    _, frames, size, _, _ = WORKFLOWS[name]
    seen, prompt = len(client.log()), shrunk(program(name), *size)
    with client.new_files("output/QVG") as made:
        result = client.run(prompt)
    assert result.status == "success", result.messages
    (file,) = made
    with av.open(str(file)) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (*size, Fraction(16))
        assert sum(1 for _ in video.decode(stream)) == frames
        assert json.loads(video.metadata["prompt"]).keys() == prompt.keys()
    texts = [output["text"][0] for output in result.outputs.values() if "text" in output]
    (report,) = (text for text in texts if text.startswith(f"causal Wan, {(frames - 1) // 4 + 1} latent frames"))
    ratio = float(re.search(r"^ratio ([\d.]+)x", report, re.MULTILINE)[1])  # type: ignore[index]
    assert ratio > 1.2 and ("codes " in report or "a whole span go" in report), report
    # Block size, steps and sigmas are those that the model was trained with.
    said = client.log()[seen:]
    assert "trained" not in said and "WARNING" not in said, said
    assert "the cache holds" not in said  # what an interrupted or failed run says
