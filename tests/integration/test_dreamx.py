"""DreamX-World's file, cameras, steps and memory in ComfyUI, on a tiny random checkpoint.

Held against our own network in a loop of its own, which makes the official code's numbers (tests/qvg/models/dreamx).
"""

from __future__ import annotations

import copy
import json
import subprocess
from typing import Any

import av
import pytest
import torch
from comfyui_qvg.qvg import PRESETS, CacheSpec, KVCache, QVGConfig
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.camera.paths import parse_path
from comfyui_qvg.qvg.camera.pictures import latent_poses, move_pictures, picture_poses
from comfyui_qvg.qvg.models.dreamx.cameras import STEPS, block_cameras
from comfyui_qvg.qvg.models.dreamx.network import load_dreamx
from comfyui_qvg.qvg.models.dreamx.variants import VARIANTS
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.models.wan.solved import SolvedDenoiser
from comfyui_qvg.qvg.plan import Video, plan
from comfyui_qvg.qvg.sampling import SolverSchedule, generate, place_blocks
from PIL import Image
from torch import Tensor

from . import tiny_dreamx
from .client import Client, Prompt
from .conftest import comfyui
from .test_causal_wan import BALANCED, EXACT, LEFT, add, changed, record
from .test_krea import furthest
from .test_workflows import graph, note, program

COLS, ROWS, FRAMES, BLOCK, HEADS = 3, 2, 21, 3, 2
PATH = "w-6,w+left-5,d+right-9"
WINDOW = {"window_frames": 12, "sink_frames": 3}


@pytest.fixture(autouse=True, scope="module")
def files(server: Client) -> None:
    tiny_dreamx.write(server.base / "models" / "diffusion_models" / tiny_dreamx.FILE)


def dreamx(cache: dict[str, Any] | None = None, frames: int = FRAMES, **options: Any) -> Prompt:
    """The whole graph. The first picture is the mean of a coloured one over tokens: a VAE of the testing pack's."""
    prompt: Prompt = {}
    size = {"width": 32 * COLS, "height": 32 * ROWS}
    add(prompt, "loader", "QVGLoadCameraWorld", file=tiny_dreamx.FILE, variant="auto", dtype="fp32")
    add(prompt, "cache", "QVGKVCache", model=["loader", 0], **({**EXACT, **WINDOW} if cache is None else cache))
    add(prompt, "prompt", "TestingPrompt", seed=1, prompts=1, tokens=12)
    add(prompt, "camera", "QVGCameraPath", path=PATH, frames=frames, beyond="again")
    add(prompt, "vae", "TestingWorldVAE")
    add(prompt, "image", "EmptyImage", batch_size=1, color=4477866, **size)
    links = {"model": ["cache", 0], "conditioning": ["prompt", 0], "camera": ["camera", 0], "vae": ["vae", 0]}
    add(prompt, "start", "QVGCameraVideoStart", image=["image", 0], **links, **size)
    add(prompt, "guider", "BasicGuider", model=["cache", 0], conditioning=["start", 0])
    add(prompt, "sigmas", "QVGTrainedSigmas", model=["cache", 0])
    add(prompt, "sampler", "QVGCausalSampler", **options)
    add(prompt, "noise", "RandomNoise", noise_seed=5)
    parts = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["sampler", 0], "sigmas": ["sigmas", 0]}
    add(prompt, "sample", "SamplerCustomAdvanced", latent_image=["start", 1], **parts)
    add(prompt, "report", "QVGCacheReport", model=["cache", 0], latent=["sample", 0])
    return prompt


def loop_of_its_own(picture: Tensor, variant: str = "dreamx-world") -> Tensor:
    """The video as the network knows it, [C, F, h, w], with `picture` [1, 1, C, h, w] as its first frame."""
    model = load_dreamx(tiny_dreamx.state_dict())
    model.config = type(model.config)(**{**vars(model.config), "text_tokens": 13})
    text = torch.randn(1, 13, 4096, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(1, 48, FRAMES, 2 * ROWS, 2 * COLS, generator=torch.Generator().manual_seed(5)).transpose(1, 2)
    poses = latent_poses(picture_poses(move_pictures(parse_path(PATH), FRAMES, "again"), STEPS))
    solver = VARIANTS[variant].solver
    assert solver is not None
    places = place_blocks(FRAMES, 1, BLOCK, in_block=True)
    denoiser = SolvedDenoiser(model, model.read_prompt(text), 2 * ROWS, 2 * COLS, solver)
    spec = CacheSpec(tiny_dreamx.LAYERS, HEADS, 128, ROWS * COLS, BLOCK, 1, torch.float32)
    config = QVGConfig.preset("exact").with_changes(**WINDOW)
    schedule = _AsThere(solver, places, noise, 5, picture, axis=1)
    origins: list[list[tuple[float, float, float]]] = [[(0.0, 0.0, 0.0)] * BLOCK for _ in places]
    made: list[Tensor] = []
    with KVCache(spec, config, model.config.rope(2 * ROWS, 2 * COLS)) as cache:

        def begin(index: int) -> None:
            place = places[index]
            denoiser.kept_frames = place.kept_frames
            denoiser.beside = block_cameras(Cameras(poses), place.first_frame, BLOCK, ROWS * COLS)
            held = cache.layout.frames
            cache.replace_origins([(float(frame), 0.0, 0.0) for frame in range(held)])
            origins[index][:] = [(float(held + frame), 0.0, 0.0) for frame in range(BLOCK)]

        begin(0)
        for block in generate(denoiser, cache, origins, schedule, verify=False):
            made.append(block.latent)
            if block.index + 1 < len(places):
                begin(block.index + 1)
    return torch.cat(made, 1).transpose(1, 2)[0]


class _AsThere(SolverSchedule):
    """Noise between steps is drawn with channels first, as ComfyUI has videos."""

    def fresh_noise(self, index: int, step: int, shape: tuple[int, ...]) -> Tensor:
        drawn = super().fresh_noise(index, step, (shape[0], shape[2], shape[1], *shape[3:]))
        return drawn.transpose(1, 2)


@pytest.fixture(scope="module")
def scaling() -> tuple[Tensor, Tensor]:
    """Means and standard deviations of core's Wan 2.2 latents, which the network knows without: [1, 1, C, 1, 1]."""
    home, python = comfyui()
    told = "from comfy.latent_formats import Wan22 as W; print(W().latents_mean.tolist(), W().latents_std.tolist(), sep=chr(10))"
    done = subprocess.run([str(python), "-c", told], capture_output=True, text=True, cwd=home, check=True)
    mean, std = (torch.tensor(json.loads(line)) for line in done.stdout.splitlines())
    return mean.view(1, 1, 48, 1, 1), std.view(1, 1, 48, 1, 1)


def test_the_video_is_that_of_a_loop_of_its_own(client: Client, scaling: tuple[Tensor, Tensor], record_property: Any) -> None:
    """Which makes the official numbers. The picture is the first frame of the result, as it was given."""
    found = client.latent(dreamx())
    assert found.shape == (1, 48, FRAMES, 2 * ROWS, 2 * COLS)
    mean, std = scaling
    picture = (found[:, :, :1].transpose(1, 2) - mean) / std
    measured = furthest(found, loop_of_its_own(picture))
    record_property("furthest", measured)
    assert measured < 1e-4
    exact = client.latent(changed(dreamx(), "loader", variant="dreamx-world-exact"))
    assert furthest(exact, loop_of_its_own(picture, "dreamx-world-exact")) < 1e-4
    assert furthest(exact, loop_of_its_own(picture)) > 1e-3


def test_packed_and_counted(client: Client) -> None:
    said = record(client, dreamx())
    spec = CacheSpec(tiny_dreamx.LAYERS, HEADS, 128, ROWS * COLS, BLOCK, 1, torch.float32)
    config = QVGConfig.preset("exact").with_changes(**WINDOW)
    assert list(said["cache_bytes"]) == [spec.predict(config, BLOCK * (1 + frame // BLOCK)).total for frame in range(FRAMES)]
    assert said["left"] == dict.fromkeys(LEFT, 0) and said["model"] == "DreamX-World 5B"
    packed = client.latent(dreamx({**BALANCED, **WINDOW, "span_frames": 3}))
    exact = client.latent(dreamx())
    assert packed.isfinite().all() and not torch.equal(packed, exact)


def test_bypassed_and_exact_are_one(client: Client) -> None:
    """Without a window nothing is counted anew, and mode exact is what the model alone makes, bit for bit."""
    assert torch.equal(client.latent(dreamx(EXACT, 9)), client.latent(_bypassed(dreamx(EXACT, 9))))


def _bypassed(prompt: Prompt) -> Prompt:
    del prompt["cache"], prompt["report"]
    for step in prompt.values():
        step["inputs"] = {name: ["loader", 0] if value == ["cache", 0] else value for name, value in step["inputs"].items()}
    return prompt


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (dreamx(frames=20), "makes whole blocks of 3; use 21 latent frames, 81 pictures"),
        (changed(dreamx(frames=6), "start", width=80), "makes tokens of 32 x 32 pixels; use 64 x 64"),
        (changed(dreamx(frames=6), "guider", conditioning=["prompt", 0]), "the conditioning holds no camera"),
        (changed(dreamx(frames=6), "sampler", "SamplerARVideo", num_frame_per_block=3), "connect 'QVG Causal Sampler'"),
        (dreamx(frames=6, context_noise=0.1), "remembers blocks at a level of its own"),
    ],
    ids=["frames", "size", "camera", "core's sampler", "context"],
)
def test_what_cannot_work_gets_a_sentence(client: Client, prompt: Prompt, sentence: str) -> None:
    result = client.run(prompt)
    assert result.status == "error" and sentence in result.error, result.error


PICTURES, SIZE = 57, (128, 64)
TEXT, VAE = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan2.2_vae.safetensors"


def test_the_template_says_where_its_files_are_and_what_is_planned() -> None:
    found = {}
    for each in graph("dreamx_i2v")["nodes"]:
        for model in each["properties"].get("models", ()):
            assert model["name"] in each["widgets_values"] and "/resolve/main/" in model["url"]
            found[model["name"]] = model["directory"]
    text = " ".join(note("dreamx_i2v").split())
    assert found == {tiny_dreamx.FILE: "diffusion_models", TEXT: "text_encoders", VAE: "vae"}
    assert all(file in text for file in found)
    changes = {**WINDOW, "recent_frames": 0}
    made = [
        plan(networks()["dreamx-5b"], Video(1280, 704, 249), PRESETS[preset].with_changes(**changes), triton=True)
        for preset in ("balanced", "exact")
    ]
    peak, packed, exact = (each / 1e9 for each in (made[0].peak_bytes, *(each.cache_peak_bytes for each in made)))
    said = f"{peak:.1f} GB at the worst moment by *QVG Plan*, {packed:.1f} GB of it the cache, which would be {exact:.1f} GB"
    assert said in text


def test_the_template_runs_from_end_to_end(client: Client) -> None:
    """Smaller and shorter, with random numbers for a prompt; all settings as they are."""
    Image.effect_noise((120, 90), 60).convert("RGB").save(client.base / "input" / "example.png")
    prompt = copy.deepcopy(program("dreamx_i2v"))
    for key in [key for key, step in prompt.items() if step["class_type"] == "CLIPLoader"]:
        del prompt[key]
    for step in prompt.values():
        title, inputs = step["_meta"]["title"], step["inputs"]
        if step["class_type"] == "CLIPTextEncode":
            step.update(class_type="TestingPrompt", inputs={"seed": 1, "prompts": 1, "tokens": 12})
        elif step["class_type"] == "VAELoader":
            step.update(class_type="TestingAnyVAE", inputs={"kind": "wan 2.2"})
        elif title in ("Width", "Height"):
            inputs["value"] = dict(zip(("Width", "Height"), SIZE, strict=True))[title]
        elif step["class_type"] == "QVGCameraPath":
            inputs["frames"] = (PICTURES + 3) // 4
        elif step["class_type"] == "QVGSaveVideo":
            inputs["match_colours"] = 1.0
    with client.new_files("output/QVG") as made:
        result = client.run(prompt)
    assert result.status == "success", result.messages
    (file,) = made
    with av.open(str(file)) as video:
        assert sum(1 for _ in video.decode(video=0)) == PICTURES and video.streams.video[0].width == SIZE[0]
