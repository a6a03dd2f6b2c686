"""The demo film in a real ComfyUI: core's own causal Wan and sampler on the trained file, and ours beside them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_qvg.qvg import CacheSpec
from comfyui_qvg.qvg.metrics import PSNR_CAP_DB, psnr_db
from comfyui_qvg.qvg.models.demo_film.directions import Direction, View
from comfyui_qvg.qvg.models.demo_film.weights import WEIGHTS, load_demo_film
from comfyui_qvg.qvg.sampling.film import FilmPlan
from PIL import Image
from torch import Tensor

from . import tiny_wan
from .client import Client, Prompt, bypassed
from .test_causal_wan import BALANCED, EXACT, QVG, add, changed, native, record

pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason="assets/demo_film.safetensors is not there yet")

GIVEN, FRAMES, SCENE = 36, 48, 3
# Less than half of what was measured: see the properties that the tests record.
REMEMBERED_DB, OBEYED_DB = 3.0, 3.0
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
    """36 given frames are seen block by block under core's loop, too, and no other noise follows them under ours."""
    core = client.latent(film())
    assert core.shape == (1, 16, FRAMES, 16, 16) and core.isfinite().all()
    for same in (film(EXACT), ours(), ours(EXACT)):
        assert torch.equal(core, client.latent(same))
    for cache in (QVG, BALANCED):
        packed = client.latent(film(cache))
        assert torch.equal(packed, client.latent(ours(cache))) and not torch.equal(packed, core)
    client.forget()
    assert torch.equal(core, client.latent(film())), "our patches stayed on the model"


def test_what_comes_back_is_remembered_and_forgotten_behind_a_window(client: Client, record_property: Any) -> None:
    """All that is generated was given a turn ago, 36 frames back: beyond a window of 12, sink or not."""
    window = {"cache": "exact", "recent_frames": 3, "window_frames": 12}
    caches = {
        "bypassed": None,
        "balanced": {**BALANCED, "span_frames": 18},
        "qvg": {**QVG, "span_frames": 18},
        "window": {**window, "sink_frames": 0},
        "window and sink": {**window, "sink_frames": 3},
    }
    real = really((RIGHT, FRAMES))
    found = {name: pictures(client, ours(cache)) for name, cache in caches.items()}
    measured = {name: near(made, real) for name, made in found.items()}
    record_property("psnr_db to the real film", measured)
    record_property("psnr_db to exact", {name: near(made, found["bypassed"]) for name, made in found.items()})
    # Given frames come back as the codec shows them, to the eight bits of the files.
    assert min(near(made, real, 0, GIVEN) for made in found.values()) > 50
    assert measured["bypassed"] > measured["window"] + REMEMBERED_DB and measured["balanced"] > measured["window"] + REMEMBERED_DB
    assert abs(measured["bypassed"] - measured["balanced"]) < abs(measured["bypassed"] - measured["window and sink"])
    said = record(client, ours({**window, "sink_frames": 3}))
    assert max(said["cache_bytes"]) <= CacheSpec(4, 2, 128, 64, 3).exact_bytes(12) * 2, "in float32"


@pytest.mark.parametrize("recache", [False, True])
def test_another_prompt_makes_another_film(client: Client, record_property: Any, recache: bool) -> None:
    """24 frames after the prompt the film is nearer to that of the new one than to that of the old."""
    frames = GIVEN + 27
    prompt = then(ours(frames=frames), GIVEN, LEFT, recache)
    said = {"new": really((RIGHT, GIVEN), (LEFT, 27)), "old": really((RIGHT, frames))}
    made = pictures(client, prompt)
    measured = {name: near(made, real, GIVEN + 24) for name, real in said.items()}
    record_property("psnr_db", measured)
    assert measured["new"] > measured["old"] + OBEYED_DB, measured
    # Prompt at Frame counts pictures, one for each latent frame: in the block before, it is another film.
    assert near(made, pictures(client, ours(frames=frames)), 0, GIVEN) == PSNR_CAP_DB


def test_a_film_goes_on_from_what_was_sampled(client: Client, record_property: Any) -> None:
    """Its first frames are kept, and the rest is as near to the real film as in one go, where the noise is another."""
    whole, first = pictures(client, ours()), ours(frames=FRAMES - 6)
    add(first, "extended", "QVGVideoStart", width=128, height=128, frames=4 * FRAMES - 3, batch_size=1, extend=["sample", 0])
    add(first, "guider 2", "BasicGuider", model=["loader", 0], conditioning=["prompt", 0])
    first["again"] = changed(first, "sample", latent_image=["extended", 0], guider=["guider 2", 0])["sample"]
    add(first, "decode", "VAEDecode", samples=["again", 0], vae=["loader", 1])
    made, real = pictures(client, first, ["decode", 0]), really((RIGHT, FRAMES))
    measured = {"in one go": near(whole, real, FRAMES - 6), "continued": near(made, real, FRAMES - 6)}
    record_property("psnr_db to the real film", measured)
    assert near(made, whole, 0, GIVEN) > 50 and measured["continued"] > measured["in one go"] - 3, measured


def test_a_start_picture(client: Client, record_property: Any) -> None:
    """Through core's node and ours; the VAE takes the picture into the latent and back."""
    picture = {"vae": ["loader", 1], "width": 128, "height": 128, "batch_size": 1}
    core = film(EXACT, frames=10)
    add(core, "real", "QVGFilmStart", **{**core["start"]["inputs"], "frames": 12, "given_frames": 0})
    add(core, "start", "ARVideoI2V", model=["cache", 0], start_image=["real", 2], length=4 * 10 - 3, **picture)
    mixed = changed(core, "sampler", "QVGCausalSampler")
    mixed["sampler"]["inputs"] = {}
    own = changed(changed(mixed, "guider", model=["cache", 0]), "sample", latent_image=["start", 0])
    add(own, "start", "QVGVideoStart", start_image=["real", 2], frames=4 * 10 - 3, **picture)
    latents = [client.latent(prompt) for prompt in (core, mixed, own)]
    assert torch.equal(latents[0], latents[1])
    # A noise mask's frames go through process_latent_in and _out, which round.
    assert torch.allclose(latents[0], latents[2], atol=1e-4)
    made = pictures(client, core)
    measured = near(made, really((RIGHT, 12)), 0, 1)
    record_property("psnr_db of the picture", measured)
    assert len(made) == 10 and measured > 50


def with_tiny_wan(client: Client) -> None:
    folder = client.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    tiny_wan.write(folder / "causal.safetensors")


def refused(client: Client, prompt: Prompt) -> str:
    prompt = {name: step for name, step in prompt.items() if step["class_type"] != "QVGCacheReport"}
    add(prompt, "save", "SaveLatent", samples=["sample", 0], filename_prefix="latents/refused")
    error = client.run(prompt).error.strip()
    assert "\n" not in error
    return error


@pytest.mark.parametrize("sampler", [film, ours])
def test_other_sizes_and_prompts_of_other_models(client: Client, sampler: Any) -> None:
    """With the cache node and without; before anything is sampled."""
    for cache in (None, BALANCED):
        wide = changed(sampler(cache), "sample", latent_image=["wide", 0])
        add(wide, "wide", "EmptyARVideoLatent", width=256, height=128, length=177, batch_size=1)
        wide["guider"]["inputs"]["model"] = ["loader", 0] if cache is None else ["cache", 0]
        assert refused(client, wide) == (
            "the latent is [1, 16, 45, 16, 32], but the demo film makes [batch, channels, frames, 16, 16] and nothing else; set "
            "width and height to 128 and 128, or take the latent from its own start node"
        )
        foreign = sampler(cache)
        add(foreign, "prompt", "TestingPrompt", seed=1, prompts=1, tokens=12)
        assert refused(client, foreign) == (
            "the prompt is [1, 13, 4096], but causal Wan reads rows of 64 channels here: it is another model's prompt; connect "
            "'Film Prompt'"
        )


def test_other_models_vaes_and_starts_on_film_start(client: Client) -> None:
    with_tiny_wan(client)
    prompt = film()
    add(prompt, "wan", "UNETLoader", unet_name="causal.safetensors", weight_dtype="default")
    assert "but Film Start begins films of the demo film; connect 'Load Demo Film'" in refused(
        client, changed(prompt, "start", model=["wan", 0])
    )
    add(prompt, "vae", "TestingVAE")
    assert "is not the demo film's, so the model would not know its latents" in refused(
        client, changed(prompt, "start", vae=["vae", 0])
    )
    twice = ours()
    add(twice, "again", "QVGVideoStart", width=128, height=128, frames=237, batch_size=1, extend=["first", 0])
    add(twice, "first", "EmptyARVideoLatent", width=128, height=128, length=177, batch_size=1)
    assert "take the MODEL past that node" in refused(client, changed(twice, "sample", latent_image=["again", 0]))


def test_the_film_s_prompt_on_another_causal_wan(client: Client) -> None:
    with_tiny_wan(client)
    prompt = native(EXACT, frames=3)
    add(prompt, "prompt", "QVGFilmPrompt", prompt=RIGHT)
    assert "reads rows of 4096 channels here: it is another model's prompt; connect CLIP Text Encode" in refused(client, prompt)
