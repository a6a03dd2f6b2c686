"""The demo film in a real ComfyUI: core's own causal Wan and sampler on the trained file, and ours beside them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_qvg.qvg.config import QVGConfig
from comfyui_qvg.qvg.metrics import psnr_db
from comfyui_qvg.qvg.models.demo_film.directions import Direction, View
from comfyui_qvg.qvg.models.demo_film.weights import WEIGHTS, load_demo_film
from comfyui_qvg.qvg.sampling.film import FilmPlan, FilmPrompts, given_blocks, roll_out
from PIL import Image
from torch import Tensor

from .client import Client, Prompt, bypassed
from .test_causal_wan import BALANCED, EXACT, QVG, add, changed

pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason="assets/demo_film.safetensors is not there yet")

GIVEN, FRAMES, SCENE = 36, 60, 3
CODEC_NONE = QVGConfig(codec="none")
RIGHT, LEFT, NIGHT = "turn right, day", "turn left, day", "turn right, night"


def film(cache: dict[str, Any] | None = None, frames: int = FRAMES, given: int = GIVEN, **start: Any) -> Prompt:
    """Core's graph on the film's model, and our cache node in it unless `cache` is None."""
    settings = {"vae": ["loader", 1], "prompt": RIGHT, "scene_seed": SCENE, "frames": frames, "given_frames": given, **start}
    links = {"noise": "noise", "guider": "guider", "sampler": "sampler", "sigmas": "sigmas"}
    prompt: Prompt = {}
    add(prompt, "loader", "QVGLoadDemoFilm")
    add(prompt, "cache", "QVGKVCache", model=["loader", 0], **(cache or EXACT))
    add(prompt, "start", "QVGFilmStart", model=["cache", 0], **settings)
    add(prompt, "prompt", "QVGFilmPrompt", prompt=settings["prompt"], next_prompt=LEFT)
    add(prompt, "guider", "BasicGuider", model=["start", 0], conditioning=["prompt", 0])
    add(prompt, "sigmas", "BasicScheduler", model=["cache", 0], scheduler="simple", steps=4, denoise=1.0)
    add(prompt, "sampler", "SamplerARVideo", num_frame_per_block=3)
    add(prompt, "noise", "RandomNoise", noise_seed=5)
    add(
        prompt,
        "sample",
        "SamplerCustomAdvanced",
        latent_image=["start", 1],
        **{name: [source, 0] for name, source in links.items()},
    )
    add(prompt, "report", "QVGCacheReport", model=["cache", 0], latent=["sample", 0])
    return bypassed(prompt) if cache is None else prompt


def ours(cache: dict[str, Any] | None = None, frames: int = FRAMES, given: int = GIVEN, **options: Any) -> Prompt:
    """The same under our sampler, which knows blocks and noise levels from the loader."""
    prompt = changed(film(cache, frames, given), "sampler", "QVGCausalSampler")
    prompt["sampler"]["inputs"] = options
    add(prompt, "sigmas", "QVGTrainedSigmas", model=["loader", 0])
    return prompt


def then(prompt: Prompt, frame: int, following: str, recache: bool = False) -> Prompt:
    """Another prompt from a frame on."""
    prompt = changed(changed(prompt, "prompt", next_prompt=following), "guider", conditioning=["change", 0])
    links = {"conditioning": ["prompt", 0], "next_conditioning": ["prompt", 1]}
    add(prompt, "change", "QVGPromptAtFrame", frame=frame, recache=recache, **links)
    return prompt


def pictures(client: Client, prompt: Prompt, source: list[Any] | None = None) -> Tensor:
    """What the sampler made, or another node, decoded and saved by ComfyUI: [F, H, W, 3] in 0..1."""
    prompt = {name: step for name, step in prompt.items() if step["class_type"] != "QVGCacheReport"}
    prefix = f"films/{time.monotonic_ns()}"
    if source is None:
        add(prompt, "decode", "VAEDecode", samples=["sample", 0], vae=["loader", 1])
    add(prompt, "save", "SaveImage", images=source or ["decode", 0], filename_prefix=prefix)
    result = client.run(prompt)
    assert result.status == "success", result.messages
    files = sorted((client.base / "output").glob(f"{prefix}_*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files]) / 255


def really(*parts: tuple[str, int]) -> Tensor:
    """The film as it really goes on under prompts for so many frames, as its latents show it: [F, H, W, 3]."""
    directions = tuple(Direction(*prompt.split(", ")) for prompt, frames in parts for _ in range(frames // 3))
    plan = FilmPlan(SCENE, View(0, 1, float(directions[0].light == "day")), directions)
    _, codec = load_demo_film()
    with torch.no_grad():
        return (codec.decode(codec.encode(plan.pictures())).movedim(1, -1) + 1) / 2


def near(one: Tensor, other: Tensor, first: int = GIVEN, stop: int | None = None) -> float:
    """Mean PSNR of frames."""
    return float(psnr_db(one[first:stop], other[first:stop]).mean())


def test_exact_and_bypass_are_core_bit_for_bit_under_both_samplers(client: Client) -> None:
    core = client.latent(film())
    assert core.shape == (1, 16, FRAMES, 16, 16) and core.isfinite().all()
    assert torch.equal(core, client.latent(film(EXACT)))
    assert torch.equal(core, client.latent(ours())) and torch.equal(core, client.latent(ours(EXACT)))
    for cache in (QVG, BALANCED):
        packed = client.latent(film(cache))
        assert torch.equal(packed, client.latent(ours(cache))) and not torch.equal(packed, core)
    client.forget()
    assert torch.equal(core, client.latent(film())), "our patches stayed on the model"


def test_it_makes_the_library_s_film(client: Client) -> None:
    """Ours and core's network, sampled each by its own loop with noise of its own: the same film, to what noise makes of it."""
    made = pictures(client, film())
    model, codec = load_demo_film()
    right = Direction(*RIGHT.split(", "))
    plan = FilmPlan(SCENE, View(0, 1, 1.0), (right,) * (FRAMES // 3))
    blocks = roll_out(model, FilmPrompts(model), plan.directions, CODEC_NONE, given_blocks(plan, codec, GIVEN // 3), 5)
    with torch.inference_mode():
        library = (codec.decode(torch.cat([block.latent[0] for block in blocks])).movedim(1, -1) + 1) / 2
    del library
