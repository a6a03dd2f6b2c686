"""LongLive 2.0's file, solver, scene cuts and memory in ComfyUI, on a tiny random checkpoint.

Held against our own network in a loop of its own, which makes the official code's numbers (tests/qvg/models/longlive2).
"""

from __future__ import annotations

import copy
from typing import Any

import av
import pytest
import torch
from comfyui_qvg.qvg import PRESETS, CacheSpec, KVCache, QVGConfig
from comfyui_qvg.qvg.models.longlive2.network import load_longlive2
from comfyui_qvg.qvg.models.longlive2.variants import CUT_FRAMES, VARIANTS
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.models.wan.solved import SolvedDenoiser
from comfyui_qvg.qvg.plan import Video, plan
from comfyui_qvg.qvg.sampling import SolverSchedule, generate, place_blocks
from torch import Tensor

from ..golden_longlive2 import weights
from .client import Client, Prompt
from .test_causal_wan import BALANCED, EXACT, LEFT, add, changed, record
from .test_krea import furthest
from .test_workflows import graph, note, program

COLS, ROWS, BLOCK, BLOCKS, HEADS, LAYERS = 3, 2, 8, 7, 2, 2
TEXT, VAE = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan2.2_vae.safetensors"
FILE = "LongLive-2.0-5B/model_bf16.pt"
WINDOW = {"window_frames": 32, "sink_frames": 8}
# The picture that the second and the third prompt begin at: blocks 2, a cut, and 4, another.
CUTS = {2: 65, 4: 129}


@pytest.fixture(autouse=True, scope="module")
def files(server: Client) -> None:
    path = server.base / "models" / "diffusion_models" / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"generator": {f"model.{name}": tensor for name, tensor in weights(4096).items()}}, path)


def longlive2(cache: dict[str, Any] | None = None, blocks: int = BLOCKS, cuts: bool = True) -> Prompt:
    prompt: Prompt = {}
    add(prompt, "loader", "QVGLoadCausalWan", file=FILE, variant="auto", dtype="fp32")
    add(prompt, "cache", "QVGKVCache", model=["loader", 0], **({**EXACT, **WINDOW} if cache is None else cache))
    add(prompt, "prompt", "TestingPrompt", seed=1, prompts=1, tokens=12)
    last = "prompt"
    for number, frame in enumerate(CUTS.values() if cuts else (), 2):
        add(prompt, f"next{number}", "TestingPrompt", seed=number, prompts=1, tokens=12)
        links = {"conditioning": [last, 0], "next_conditioning": [f"next{number}", 0]}
        add(prompt, f"at{number}", "QVGPromptAtFrame", frame=frame, scene_cut=True, **links)
        last = f"at{number}"
    size = {"width": 32 * COLS, "height": 32 * ROWS}
    add(prompt, "start", "QVGVideoStart", frames=4 * BLOCK * blocks - 3, batch_size=1, model=["cache", 0], **size)
    add(prompt, "guider", "BasicGuider", model=["cache", 0], conditioning=[last, 0])
    add(prompt, "sigmas", "QVGTrainedSigmas", model=["cache", 0])
    add(prompt, "sampler", "QVGCausalSampler")
    add(prompt, "noise", "RandomNoise", noise_seed=5)
    parts = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["sampler", 0], "sigmas": ["sigmas", 0]}
    add(prompt, "sample", "SamplerCustomAdvanced", latent_image=["start", 0], **parts)
    add(prompt, "report", "QVGCacheReport", model=["cache", 0], latent=["sample", 0])
    return prompt


def loop_of_its_own() -> Tensor:
    """The video as the network knows it, [C, F, h, w]."""
    model, solver = load_longlive2(weights(4096)), VARIANTS["longlive2-5b"].solver
    assert solver is not None
    model.config = type(model.config)(**{**vars(model.config), "text_tokens": 13})
    texts = [torch.randn(1, 13, 4096, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3)]
    prompts = [model.read_prompt(text) for text in texts]
    frames = BLOCK * BLOCKS
    noise = torch.randn(1, 48, frames, 2 * ROWS, 2 * COLS, generator=torch.Generator().manual_seed(5)).transpose(1, 2)
    places = place_blocks(frames, 0, BLOCK)
    shots = [sum(cut <= place.index for cut in CUTS) for place in places]
    origins = [
        [(float(place.first_frame + CUT_FRAMES * shot + frame), 0.0, 0.0) for frame in range(BLOCK)]
        for place, shot in zip(places, shots, strict=True)
    ]
    spec = CacheSpec(LAYERS, HEADS, 128, ROWS * COLS, BLOCK, 1, torch.float32)
    denoiser, made = SolvedDenoiser(model, prompts[0], 2 * ROWS, 2 * COLS, solver), list[Tensor]()
    rope = model.config.rope(2 * ROWS, 2 * COLS)
    with KVCache(spec, QVGConfig.preset("exact").with_changes(**WINDOW), rope) as cache:
        for block in generate(denoiser, cache, origins, SolverSchedule(solver, places, noise, axis=1), verify=False):
            made.append(block.latent)
            if block.index + 1 < BLOCKS:
                denoiser.prompt = prompts[shots[block.index + 1]]
                if block.index + 1 in CUTS:
                    cache.pin_next()
    return torch.cat(made, 1).transpose(1, 2)[0]


def test_two_cuts_are_those_of_a_loop_of_its_own(client: Client, record_property: Any) -> None:
    """Which makes the official numbers. Mode exact keeps core's roped keys, so gaps are in them."""
    measured = furthest(client.latent(longlive2()), loop_of_its_own())
    record_property("furthest", measured)
    assert measured < 1e-4


def test_packed_counted_and_bypassed(client: Client) -> None:
    said = record(client, longlive2(cuts=False))
    spec = CacheSpec(LAYERS, HEADS, 128, ROWS * COLS, BLOCK, 1, torch.float32)
    config = QVGConfig.preset("exact").with_changes(**WINDOW)
    assert max(said["cache_bytes"]) == spec.predict(config, BLOCK * BLOCKS).total
    assert said["left"] == dict.fromkeys(LEFT, 0) and said["model"] == "LongLive 2.0 5B"
    packed = client.latent(longlive2({**BALANCED, **WINDOW, "recent_frames": 0, "span_frames": 8}))
    assert packed.isfinite().all()
    bypassed = longlive2(EXACT, 2, cuts=False)
    del bypassed["cache"], bypassed["report"]
    for step in bypassed.values():
        step["inputs"] = {name: ["loader", 0] if value == ["cache", 0] else value for name, value in step["inputs"].items()}
    assert torch.equal(client.latent(longlive2(EXACT, 2, cuts=False)), client.latent(bypassed))


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (changed(longlive2(cuts=False), "start", frames=37), "makes whole blocks of 8; use 8 latent frames"),
        (
            longlive2({**EXACT, "window_frames": 23, "sink_frames": 8, "recent_frames": 0}),
            "the shot's first block and the block in work take 24",
        ),
        (
            changed(longlive2(cuts=False), "sigmas", "BasicScheduler", scheduler="simple", steps=6, denoise=1.0),
            "in steps of its own",
        ),
    ],
    ids=["frames", "window", "sigmas"],
)
def test_what_cannot_work_gets_a_sentence(client: Client, prompt: Prompt, sentence: str) -> None:
    result = client.run(prompt)
    assert result.status == "error" and sentence in result.error, result.error


def test_the_template_says_where_its_files_are_and_what_is_planned() -> None:
    found = {}
    for each in graph("longlive2_shots")["nodes"]:
        for model in each["properties"].get("models", ()):
            assert model["name"] in each["widgets_values"] and "/resolve/main/" in model["url"]
            found[model["name"]] = model["directory"]
    text = " ".join(note("longlive2_shots").split())
    files = {FILE: "diffusion_models", TEXT: "text_encoders", VAE: "vae"}
    assert found == files and all(file in text for file in files)
    changes = {**WINDOW, "recent_frames": 0}
    made = [
        plan(networks()["longlive2-5b"], Video(1280, 704, 381), PRESETS[preset].with_changes(**changes), triton=True)
        for preset in ("balanced", "exact")
    ]
    peak, packed, exact = (each / 1e9 for each in (made[0].peak_bytes, *(each.cache_peak_bytes for each in made)))
    said = f"{peak:.1f} GB at the worst moment by *QVG Plan*, {packed:.1f} GB of it the cache, which would be {exact:.1f} GB"
    assert said in text


def test_the_template_runs_from_end_to_end(client: Client) -> None:
    """Smaller, with random numbers for prompts; lengths and all settings as they are."""
    prompt = copy.deepcopy(program("longlive2_shots"))
    for key in [key for key, step in prompt.items() if step["class_type"] == "CLIPLoader"]:
        del prompt[key]
    for seed, step in enumerate(prompt.values()):
        title, inputs = step["_meta"]["title"], step["inputs"]
        if step["class_type"] == "CLIPTextEncode":
            step.update(class_type="TestingPrompt", inputs={"seed": seed, "prompts": 1, "tokens": 12})
        elif step["class_type"] == "VAELoader":
            step.update(class_type="TestingAnyVAE", inputs={"kind": "wan 2.2"})
        elif title in ("Width", "Height"):
            inputs["value"] = {"Width": 96, "Height": 64}[title]
    with client.new_files("output/QVG") as made:
        result = client.run(prompt)
    assert result.status == "success", result.messages
    (file,) = made
    with av.open(str(file)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 381 and video.streams.video[0].width == 96
