"""Bad input in a real ComfyUI: one sentence with the value, the rule and the way out, and nothing lost."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..untrained_film import untrained
from .client import ROOT, Client, Prompt, node, with_mode, workflow
from .conftest import started

LATENTS: dict[str, dict[str, Any]] = {
    "EmptyLatentImage": {"width": 512, "height": 512, "batch_size": 1},
    "EmptyHunyuanLatentVideo": {"width": 512, "height": 512, "length": 29, "batch_size": 1},
}


def with_model(kind: str) -> tuple[Prompt, str]:
    """A workflow, and the id of a foreign model in it that nobody uses yet."""
    return {**workflow(frames=8), "foreign": {"class_type": "TestingForeignModel", "inputs": {"kind": kind}}}, "foreign"


def on_the_sampler(kind: str, latent: tuple[str, dict[str, int]]) -> Prompt:
    """With a foreign model where the demo world is sampled."""
    prompt, foreign = with_model(kind)
    for name in ("BasicGuider", "BasicScheduler"):
        prompt[node(prompt, name)]["inputs"]["model"] = [foreign, 0]
    prompt["latent"] = {"class_type": latent[0], "inputs": latent[1]}
    prompt[node(prompt, "SamplerCustomAdvanced")]["inputs"]["latent_image"] = ["latent", 0]
    return prompt


def test_models_without_a_cache_on_the_cache_node_and_on_the_sampler(client: Client) -> None:
    sentence = (
        "BaseModel has no KV cache: it denoises all frames at once and remembers nothing between them. Models that work: "
        "causal Wan (Self-Forcing, Causal-Forcing, CausVid, LongLive), Krea Realtime and LongLive 2.0 5B (node 'Load Causal "
        "Wan'), HY-WorldPlay 5B and HY-WorldPlay 8B (node 'Load WorldPlay'), DreamX-World 5B (node 'Load Camera World'), "
        "LongCat-Video (node 'Load LongCat'), the demo world (node 'Load Demo World'), and the demo film (node 'Load Demo Film')."
    )
    prompt, foreign = with_model("image")
    prompt[node(prompt, "QVGKVCache")]["inputs"]["model"] = [foreign, 0]
    assert client.run(prompt).error.strip() == sentence
    size = {"width": 64, "height": 64, "batch_size": 1}
    assert client.run(on_the_sampler("image", ("EmptyLatentImage", size))).error.strip() == sentence


def test_the_causal_model_of_comfyui_on_our_sampler(client: Client) -> None:
    size = {"width": 64, "height": 64, "batch_size": 1, "length": 29}
    sentence = "WAN21_CausalAR is sampled by 'QVG Causal Sampler' or ComfyUI's own 'Sampler AR Video'; connect one in place of"
    assert client.run(on_the_sampler("causal", ("EmptyARVideoLatent", size))).error.strip() == f"{sentence} QVG Sampler"


@pytest.mark.parametrize("kind", LATENTS)
def test_latents_of_other_models(client: Client, kind: str) -> None:
    prompt = workflow(frames=8)
    prompt["latent"] = {"class_type": kind, "inputs": LATENTS[kind]}
    prompt[node(prompt, "SamplerCustomAdvanced")]["inputs"]["latent_image"] = ["latent", 0]
    error = client.run(prompt).error
    assert "but the demo world paints [batch, 3, frames, 64, 64]; take it from 'Demo World Start'" in error


def test_a_latent_and_a_camera_of_different_length(client: Client) -> None:
    prompt = workflow(frames=8)
    prompt["camera"] = {"class_type": "QVGCameraPath", "inputs": {"path": "d-3", "frames": 9}}
    prompt["start"] = {"class_type": "QVGDemoWorldStart", "inputs": {"camera": ["camera", 0], "map_seed": 1}}
    prompt[node(prompt, "SamplerCustomAdvanced")]["inputs"]["latent_image"] = ["start", 1]
    assert "the latent has 9 frames, but the camera 8; take both from one" in client.run(prompt).error


def test_noise_masks_that_keep_a_part_of_a_frame(client: Client) -> None:
    prompt = workflow(frames=8)
    sampler = prompt[node(prompt, "SamplerCustomAdvanced")]["inputs"]
    prompt["mask"] = {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 64, "height": 64}}
    prompt["masked"] = {
        "class_type": "SetLatentNoiseMask",
        "inputs": {"samples": sampler["latent_image"], "mask": ["mask", 0]},
    }
    sampler["latent_image"] = ["masked", 0]
    assert "the noise mask keeps a part of frame 0 (its values go from 0.5 to 0.5)" in client.run(prompt).error


@pytest.mark.parametrize("kind", ["SplitSigmas", "FlipSigmas"])
def test_sigmas_that_do_not_finish_a_block(client: Client, kind: str) -> None:
    prompt = workflow(frames=8)
    inputs: dict[str, Any] = {"sigmas": [node(prompt, "BasicScheduler"), 0]}
    prompt["sigmas"] = {"class_type": kind, "inputs": inputs | ({"step": 2} if kind == "SplitSigmas" else {})}
    prompt[node(prompt, "SamplerCustomAdvanced")]["inputs"]["sigmas"] = ["sigmas", 0]
    assert "must fall from step to step and end at 0" in client.run(prompt).error


@pytest.mark.parametrize("sampler", ["euler", "lcm", "uni_pc", "dpm_adaptive"])
def test_samplers_of_core(client: Client, sampler: str) -> None:
    prompt = workflow(frames=6)
    prompt[node(prompt, "QVGSampler")] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": sampler}}
    assert "connect 'QVG Sampler' to SamplerCustomAdvanced" in client.run(prompt).error


def test_the_plain_ksampler_node(client: Client) -> None:
    prompt = workflow(frames=6)
    start, name = node(prompt, "QVGDemoWorldStart"), node(prompt, "SamplerCustomAdvanced")
    inputs: dict[str, Any] = {"model": [node(prompt, "QVGKVCache"), 0], "positive": [start, 0], "negative": [start, 0]}
    inputs |= {"latent_image": [start, 1], "seed": 1, "steps": 3, "cfg": 8.0, "sampler_name": "euler", "scheduler": "simple"}
    prompt[name] = {"class_type": "KSampler", "inputs": {**inputs, "denoise": 1.0}}
    assert "connect 'QVG Sampler' to SamplerCustomAdvanced" in client.run(prompt).error


def test_a_prompt_of_before_the_advanced_inputs_gets_their_defaults(client: Client) -> None:
    prompt = with_mode(workflow(frames=30, span_frames=24), "preset", preset="qvg")
    inputs = prompt[node(prompt, "QVGKVCache")]["inputs"]
    full = client.latent(prompt)
    for name in ("sink_frames", "recent_frames", "window_frames", "span_frames", "seed", "backend", "read"):
        del inputs[name]
    del prompt[node(prompt, "QVGSampler")]["inputs"]["keep_finished"]
    del prompt[node(prompt, "QVGDemoWorldStart")]["inputs"]["batch_size"]
    client.forget()
    assert torch.equal(client.latent(prompt), full)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("cache.preset", "qvg-ultra", "'qvg', 'qvg-pro'"),
        ("cache", "magic", "must be one of preset, custom, exact, klt, kivi, quarot, rtn, study; choose one of these"),
        ("backend", "cuda", "'auto', 'torch', 'triton'"),
        ("read", "sideways", "'auto'"),
    ],
)
def test_values_that_this_version_does_not_know(server: Client, name: str, value: str, allowed: str) -> None:
    """Refused before queueing, on the node. A wrong camera keeps its picture, an output of its own, from being run."""
    prompt = workflow(frames=6)
    cache = node(prompt, "QVGKVCache")
    prompt[cache]["inputs"][name] = value
    prompt[node(prompt, "QVGCameraPath")]["inputs"]["path"] = "nonsense"
    code, answer = server.post("/prompt", {"prompt": prompt})
    said = json.dumps(answer["node_errors"][cache])
    assert code == 400 and allowed in said and value in said


KLT: dict[str, Any] = {"bits_k": 1.5, "bits_v": 2, "clusters": 0, "transform": "klt", "spans_per_codebook": 8}
PLAIN: dict[str, Any] = {"bits": "2", "group_size": "64"}


@pytest.mark.parametrize(
    ("mode", "widgets", "name", "said"),
    [
        ("klt", KLT | {"bits_k": 7}, "cache.bits_k", "Value 7.0 bigger than max of 6.0"),
        ("klt", KLT | {"bits_k": 2.03}, "cache.bits_k", "Value 2.03 smaller than min of 0.25, or no multiple of 0.0625"),
        ("klt", KLT | {"bits_v": 1.99}, "cache.bits_v", "Value 1.99 smaller than min of 0.25, or no multiple of 0.0625"),
        ("klt", KLT | {"transform": "dct"}, "cache.transform", "'dct' not in ['klt', 'hadamard']"),
        ("klt", KLT | {"spans_per_codebook": 0}, "cache.spans_per_codebook", "Value 0 smaller than min of 1"),
        ("kivi", PLAIN | {"bits": "5"}, "cache.bits", "'5' not in ['2', '3', '4', '8']"),
        ("rtn", {"bits": "2"}, "cache.group_size", "Required input is missing"),
    ],
)
def test_widgets_of_a_mode_are_refused_before_queueing(
    server: Client, mode: str, widgets: dict[str, Any], name: str, said: str
) -> None:
    prompt = with_mode(workflow(frames=6), mode, **widgets)
    prompt[node(prompt, "QVGCameraPath")]["inputs"]["path"] = "nonsense"
    code, answer = server.post("/prompt", {"prompt": prompt})
    (error,) = answer["node_errors"][node(prompt, "QVGKVCache")]["errors"]
    assert code == 400 and error["extra_info"]["input_name"] == name and said in f"{error['message']} {error['details']}"


@pytest.mark.parametrize(
    ("widgets", "sentence"),
    [
        (
            KLT | {"clusters": 200},
            "clusters is 200, but a span holds only 128 tokens (2 chunks of 1 frames of 64 tokens); use at most 128 clusters "
            "or longer spans",
        ),
    ],
)
def test_what_the_page_cannot_refuse_the_node_does_in_one_sentence(
    client: Client, widgets: dict[str, Any], sentence: str
) -> None:
    prompt = with_mode(workflow(frames=6, span_frames=2), "klt", **widgets)
    assert client.run(prompt).error.strip() == sentence


def test_triton_says_that_it_is_not_there(client: Client) -> None:
    prompt = workflow(frames=12)
    prompt[node(prompt, "QVGKVCache")]["inputs"]["backend"] = "triton"
    assert "triton" in client.run(prompt).error


@pytest.fixture(scope="module")
def own_pack(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with a copy of the pack whose files may be damaged."""
    base = tmp_path_factory.mktemp("damaged")
    pack = base / "custom_nodes" / "ComfyUI-QVG"
    for folder in ("assets", "kernels", "nodes", "qvg", "web"):
        shutil.copytree(ROOT / folder, pack / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", pack)
    with started(base) as client:
        yield client, pack / "assets" / "demo_world.safetensors"


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1_000_000])


def _without_a_weight(path: Path) -> None:
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys() if name != "patch_out.bias"}  # noqa: SIM118 (not a dict)
        metadata = dict(file.metadata())
    save_file(state, path, metadata)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [(Path.unlink, "is not there"), (_truncated, "cannot be read"), (_without_a_weight, "lacks the weight 'patch_out.bias'")],
    ids=["missing", "truncated", "wrong keys"],
)
def test_damaged_demo_weights(own_pack: tuple[Client, Path], damage: Callable[[Path], None], complaint: str) -> None:
    client, weights = own_pack
    whole = weights.read_bytes()
    prompt = workflow(frames=6)
    try:
        damage(weights)
        client.forget()
        error = client.run(prompt).error
    finally:
        weights.write_bytes(whole)
    assert f"demo_world.safetensors {complaint}" in error
    assert "restore it from the repository's assets/, or install this pack again" in error
    again = copy.deepcopy(prompt)
    assert client.run(again).status == "success"


def _of_version_nine(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "version": "9"}
    save_file(load_file(path), path, metadata)


def _without_the_codec(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    save_file({n: t for n, t in load_file(path).items() if n != "picture_codec.encoder.bias"}, path, metadata)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (Path.unlink, "is not there, but holds the demo film's weights"),
        (_truncated, "cannot be read"),
        (_of_version_nine, "is a demo film of version '9', but this pack's films and prompts are of version '1'"),
        (_without_the_codec, "lacks the weight 'picture_codec.encoder.bias'"),
    ],
    ids=["missing", "truncated", "another version", "wrong keys"],
)
def test_damaged_film_weights(own_pack: tuple[Client, Path], damage: Callable[[Path], None], complaint: str) -> None:
    client, world = own_pack
    weights = untrained(world.with_name("demo_film.safetensors"))
    start = {"model": ["film", 0], "vae": ["film", 1], "prompt": "stay, day", "scene_seed": 1, "frames": 12, "given_frames": 9}
    prompt: Prompt = {
        "film": {"class_type": "QVGLoadDemoFilm", "inputs": {}},
        "start": {"class_type": "QVGFilmStart", "inputs": start},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["start", 2]}},
    }
    damage(weights)
    client.forget()
    error = client.run(prompt).error
    assert f"demo_film.safetensors {complaint}" in error and "\n" not in error.strip()
    assert "restore it from the repository's assets/, or install this pack again" in error
    untrained(weights)
    assert client.run(copy.deepcopy(prompt)).status == "success"
