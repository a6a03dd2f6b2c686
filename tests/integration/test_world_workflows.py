"""The workflows for HY-WorldPlay, run as they are on tiny random checkpoints whose files have the real ones' names.

Text and vision encoders are replaced and pictures made smaller; lengths, settings and everything else stay. Their VAEs are core's
classes made small, put in by a node: ComfyUI reads no sizes off these two VAEs' files, and full-sized ones would take minutes.
How the workflows look and open in the page: tests/browser.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from comfyui_qvg.qvg import PRESETS, CacheSpec
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.plan import Video, plan
from PIL import Image
from safetensors.torch import save_file

from ..golden_worldplay_hunyuan import weights
from . import tiny_worldplay
from .client import Client, Prompt
from .test_workflows import graph, note, program

FIVE, EIGHT = "wan_distilled_model/model.pt", "ar_distilled_action_model/model.safetensors"
FILES_5B = {
    FIVE: "diffusion_models",
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": "text_encoders",
    "wan2.2_vae.safetensors": "vae",
}
FILES_8B = {
    EIGHT: "diffusion_models",
    "qwen_2.5_vl_7b_fp8_scaled.safetensors": "text_encoders",
    "byt5_small_glyphxl_fp16.safetensors": "text_encoders",
    "sigclip_vision_patch14_384.safetensors": "clip_vision",
    "hunyuanvideo15_vae_fp16.safetensors": "vae",
}
# Network, its files, width and height as shipped, those it is made in here, pictures per second. As small as spans still pay.
WORKFLOWS: dict[str, tuple[str, dict[str, str], tuple[int, int], tuple[int, int], int]] = {
    "worldplay_5b_i2v": ("worldplay-5b", FILES_5B, (1280, 704), (192, 128), 16),
    "worldplay_8b_i2v": ("worldplay-8b", FILES_8B, (832, 480), (96, 96), 24),
    "worldplay_return": ("worldplay-5b", FILES_5B, (1280, 704), (192, 128), 16),
}
LATENTS = 32
PICTURES = 4 * LATENTS - 3
CONTEXT = {"worldplay-5b": 16, "worldplay-8b": 20}
REPLACED = ("CLIPLoader", "DualCLIPLoader", "CLIPVisionLoader")


def shrunk(name: str) -> Prompt:
    """In another size, with random numbers for prompts and for what is seen in the picture."""
    network, _, _, (width, height), _ = WORKFLOWS[name]
    is_8b, prompt = network == "worldplay-8b", copy.deepcopy(program(name))
    for key in [key for key, step in prompt.items() if step["class_type"] in REPLACED]:
        del prompt[key]
    text = ("TestingHunyuanPrompt", {"letters": 3, "valid": 9}) if is_8b else ("TestingPrompt", {"prompts": 1, "tokens": 12})
    for seed, step in enumerate(prompt.values()):
        title, inputs = step["_meta"]["title"], step["inputs"]
        if step["class_type"] == "CLIPTextEncode":
            step.update(class_type=text[0], inputs={"seed": seed, **text[1]})
        elif step["class_type"] == "CLIPVisionEncode":
            step.update(class_type="TestingClipVision", inputs={"image": inputs["image"], "seed": seed})
        elif step["class_type"] == "VAELoader":
            step.update(class_type="TestingAnyVAE", inputs={"kind": "hunyuan 1.5" if is_8b else "wan 2.2"})
        elif title in ("Width", "Height"):
            inputs["value"] = {"Width": width, "Height": height}[title]
    return prompt


def titled(prompt: Prompt, kind: str, title: str = "") -> str:
    (key,) = (key for key, step in prompt.items() if step["class_type"] == kind and title in step["_meta"]["title"])
    return key


@pytest.fixture
def files(client: Client) -> Path:
    """What the loaders ask for. Encoders' files are only to be chosen."""
    models = client.base / "models"
    for name, folder in (FILES_5B | FILES_8B).items():
        (models / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (models / folder / name).write_bytes(b"")
    tiny_worldplay.write(models / "diffusion_models" / FIVE)
    save_file(weights(4096), models / "diffusion_models" / EIGHT)
    Image.effect_noise((120, 90), 60).convert("RGB").save(client.base / "input" / "example.png")
    return models


@pytest.mark.parametrize("name", WORKFLOWS)
def test_loaders_say_where_their_files_are(name: str) -> None:
    """The page offers the models of a template that are not there, by these."""
    wanted, found = WORKFLOWS[name][1], {}
    for node in graph(name)["nodes"]:
        for model in node["properties"].get("models", ()):
            assert model["name"] in node["widgets_values"] and model["directory"] == wanted[model["name"]]
            assert model["url"].startswith("https://huggingface.co/") and "/resolve/main/" in model["url"]
            assert model["url"].endswith("/" + model["name"])
            found[model["name"]] = model["directory"]
    assert found == wanted and all(file in note(name) for file in wanted)


@pytest.fixture
def windows(client: Client) -> Iterator[None]:
    """ComfyUI's folders as they are listed on Windows."""
    client.post("/testing/separators", {"separator": "\\"})
    yield
    client.post("/testing/separators", {"separator": "/"})


def loading(name: str, separator: str) -> Prompt:
    """The workflow's own loader, and what its MODEL was trained with."""
    prompt = program(name)
    loader = copy.deepcopy(prompt[titled(prompt, "QVGLoadWorldPlay")])
    loader["inputs"]["file"] = loader["inputs"]["file"].replace("/", separator)
    return {
        "loader": loader,
        "sigmas": {"class_type": "QVGTrainedSigmas", "inputs": {"model": ["loader", 0]}},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["sigmas", 0]}},
    }


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("separator", ["/", "\\"])
@pytest.mark.parametrize("name", ["worldplay_5b_i2v", "worldplay_8b_i2v"])
def test_files_in_folders_are_found_in_the_way_of_any_system(client: Client, name: str, separator: str) -> None:
    result = client.run(loading(name, separator))
    assert result.status == "success", result.messages


@pytest.mark.usefixtures("files", "windows")
@pytest.mark.parametrize("separator", ["/", "\\"])
@pytest.mark.parametrize("name", ["worldplay_5b_i2v", "worldplay_8b_i2v"])
def test_the_templates_find_their_files_on_windows(client: Client, name: str, separator: str) -> None:
    listed = client.get("/object_info/QVGLoadWorldPlay")["QVGLoadWorldPlay"]["input"]["required"]["file"][1]["options"]
    assert WORKFLOWS[name][1].keys() & {each.replace("\\", "/") for each in listed} and not any("/" in each for each in listed)
    result = client.run(loading(name, separator))
    assert result.status == "success", result.messages


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_of_ours_is_refused_on_windows(client: Client, files: Path, name: str) -> None:
    for file, folder in WORKFLOWS[name][1].items():
        if folder == "vae":
            (files / folder / file).unlink()
    prompt = program(name)
    code, answer = client.post("/prompt", {"prompt": prompt})
    assert {prompt[node]["class_type"] for node in answer["node_errors"]} == {"VAELoader"}
    if code == 200:  # what needs no VAE runs
        client.wait(answer["prompt_id"])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_notes_say_what_is_planned_and_what_the_licence_excludes(name: str) -> None:
    network, _, size, _, _ = WORKFLOWS[name]
    text, shape = " ".join(note(name).split()), networks()[network]
    config = PRESETS["balanced"].with_changes(sink_frames=0, recent_frames=0)
    found = plan(shape, Video(*size, PICTURES), config, triton=True)
    assert f"{found.peak_bytes / 1e9:.1f} GB at the worst moment" in text
    assert f"{found.cache_peak_bytes / 1e9:.1f}" in text and f"{found.exact_cache_bytes / 1e9:.1f} GB" in text
    context, tokens = CONTEXT[network], size[0] // shape.token_pixels * (size[1] // shape.token_pixels)
    spec = CacheSpec(shape.layers, shape.heads, shape.head_dim, tokens, context)
    small = spec.predict(config.with_changes(span_frames=context), context).total
    assert f"{spec.exact_bytes(context) / 1e9:.1f}" in text and f"{small / 1e9:.1f}" in text
    assert all(place in text for place in ("European Union", "United Kingdom", "South Korea", "Nothing is downloaded"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_widget_is_held_and_frames_go_together(name: str) -> None:
    prompt = program(name)
    cache = prompt[titled(prompt, "QVGKVCache")]["inputs"]
    assert (cache["sink_frames"], cache["recent_frames"], cache["window_frames"]) == (0, 0, 0)
    assert {"offload", "merge_padding", "span_frames", "seed", "backend", "read"} < cache.keys()
    camera = prompt[titled(prompt, "QVGCameraPath")]["inputs"]
    network, _, size, _, _ = WORKFLOWS[name]
    keys = sum(int(part.rsplit("-", 1)[1]) for part in camera["path"].split(","))
    # The way back ends where it began, and stays there for a frame.
    missing = {"again": 0, "stay": 1}[camera["beyond"]]
    assert (camera["memory"], camera["frames"], keys + 1 + missing) == (network, LATENTS, LATENTS)
    chosen = prompt[titled(prompt, "QVGPlan")]["inputs"]
    assert (chosen["network"], chosen["frames"]) == (network, PICTURES)
    assert tuple(prompt[titled(prompt, "PrimitiveInt", side)]["inputs"]["value"] for side in ("Width", "Height")) == size


@pytest.mark.parametrize("name", WORKFLOWS)
def test_without_the_models_nothing_else_is_missing(client: Client, files: Path, name: str) -> None:
    for file, folder in (FILES_5B | FILES_8B).items():
        (files / folder / file).unlink(missing_ok=True)
    code, answer = client.post("/prompt", {"prompt": program(name)})
    errors = [error for node in answer["node_errors"].values() for error in node["errors"]]
    missing = sorted((error["type"], error["extra_info"]["received_value"]) for error in errors)
    assert missing == [("value_not_in_list", file) for file in sorted(WORKFLOWS[name][1])]
    # What needs no model runs: it shows the walk and what it will take before anything is downloaded.
    shown = client.wait(answer["prompt_id"])
    assert (code, shown.status) == (200, "success")
    assert sorted(shown.outputs) == sorted(titled(program(name), kind) for kind in ("QVGCameraPath", "QVGPlan"))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", WORKFLOWS)
def test_with_its_files_there_it_is_accepted_as_it_is(client: Client, name: str) -> None:
    """Nothing but what a run finds out can still be wrong; it is taken out of the queue again."""
    prompt_id = client.queue(program(name))
    client.post("/queue", {"delete": [prompt_id]})
    client.post("/interrupt", {})
    # It may have begun, and then fails on an encoder's empty file, or is interrupted.
    while client.get("/queue")["queue_running"]:
        time.sleep(0.2)


def run(client: Client, prompt: Prompt) -> tuple[dict[str, Any], Path, str]:
    """Outputs, the one video file, and what was said meanwhile."""
    seen = len(client.log())
    with client.new_files("output/QVG") as made:
        result = client.run(prompt)
    assert result.status == "success", result.messages
    (file,) = made
    said = client.log()[seen:]
    # Which of a file's sets of weights was taken is said of every file that has several, such as HY-WorldPlay's.
    warnings = [line for line in said.splitlines() if "WARNING" in line and "generator was taken, which is what" not in line]
    assert "trained" not in said and not warnings and "the cache holds" not in said, said
    return result.outputs, file, said


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", WORKFLOWS)
def test_it_runs_from_end_to_end(client: Client, name: str) -> None:
    network, _, _, (width, height), fps = WORKFLOWS[name]
    prompt = shrunk(name)
    outputs, file, said = run(client, prompt)
    with av.open(str(file)) as video:
        stream = video.streams.video[0]
        assert stream.average_rate == Fraction(fps) and sum(1 for _ in video.decode(stream)) == PICTURES
        if "return" in name:  # two pictures beside each other, and words
            assert stream.width >= 2 * width and stream.height > height
        else:
            assert (stream.width, stream.height) == (width, height)
        assert json.loads(video.metadata["prompt"]).keys() == prompt.keys()
    assert outputs[titled(prompt, "QVGCameraPath")]["images"]
    planned = outputs[titled(prompt, "QVGPlan")]["text"][0]
    title = network.replace("worldplay-", "WorldPlay ").upper().replace("WORLDPLAY", "WorldPlay")
    assert planned.splitlines()[1].startswith(f"HY-{title} ("), planned
    assert f": {PICTURES} frames of {width}x{height}" in planned
    report = outputs[titled(prompt, "QVGCacheReport", "2-bit memory" if "return" in name else "")]["text"][0]
    assert report.startswith(f"{title}, {LATENTS} latent frames (1 given)"), report
    assert f"mode vendor: the last chunk sees {CONTEXT[network]} earlier frames" in report
    assert float(re.search(r"^ratio ([\d.]+)x", report, re.MULTILINE)[1]) > 1.2, report  # type: ignore[index]
    # Retrieval: the last chunk sees frames from before the newest twelve.
    last = re.search(r"QVG: chunk 8 of 8 sees frames (\d+)", said)
    assert last and int(last[1]) < LATENTS - 4 - 12


@pytest.mark.usefixtures("files")
def test_there_and_back_compares_the_same_walk(client: Client) -> None:
    prompt = shrunk("worldplay_return")
    text = run(client, prompt)[0][titled(prompt, "QVGCompare")]["text"][0]
    identical = re.search(rf"^(\d+) of {PICTURES} frames are identical", text, re.MULTILINE)
    # The first chunk remembers nothing yet.
    assert identical and 13 <= int(identical[1]) < PICTURES, text
    assert "A: exact," in text and "B: KLT, 1.5/2 bits" in text
    same = copy.deepcopy(prompt)
    cache = same[titled(same, "QVGKVCache")]["inputs"]
    cache["cache"] = "exact"
    del cache["cache.preset"]
    assert "The two videos are identical." in run(client, same)[0][titled(same, "QVGCompare")]["text"][0]
