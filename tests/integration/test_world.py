"""HY-WorldPlay in a real ComfyUI: loader, camera, start, sampler and cache, on a tiny random checkpoint with its true names."""

from __future__ import annotations

import copy
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models.worldplay_names import wan_names
from comfyui_qvg.qvg.world.pose_files import write_poses
from comfyui_qvg.qvg.world.cameras import Cameras
from comfyui_qvg.qvg.world.poses import camera_poses
from comfyui_qvg.qvg.camera import parse_path
from safetensors.torch import load_file, save_file

from . import tiny_worldplay
from .client import Client, Prompt, between, bypassed
from .test_causal_wan import add, changed, psnr_db, record

FRAMES, WIDTH, HEIGHT = 16, 128, 64
TOKENS = (WIDTH // 32) * (HEIGHT // 32)
MODES = ["vendor", "persistent", "incremental"]
EXACT = {"cache": "exact"}
BALANCED = {"cache": "preset", "cache.preset": "balanced", "sink_frames": 0, "recent_frames": 0, "span_frames": 4}
PATH = "w-3,w+right-4,left-6,s-2"


@pytest.fixture(autouse=True, scope="module")
def files(server: Client) -> Path:
    folder = server.base / "models" / "diffusion_models"
    tiny_worldplay.write(folder / "worldplay" / "model.pt")
    save_file(tiny_worldplay.base(), folder / "wan22_base.safetensors")
    save_file({"double_blocks.0.img_attn_prope_proj.weight": torch.zeros(2)}, folder / "model.safetensors")
    return folder


def walk(cache: dict[str, Any] | None = EXACT, frames: int = FRAMES, mode: str = "vendor", path: str = PATH) -> Prompt:
    """The graph; our cache node is in it unless `cache` is None."""
    links = {"noise": "noise", "guider": "guider", "sampler": "sampler", "sigmas": "sigmas"}
    size = {"width": WIDTH, "height": HEIGHT}
    steps: dict[str, tuple[str, dict[str, Any]]] = {
        "loader": ("QVGLoadWorldPlay", {"file": "worldplay/model.pt"}),
        "cache": ("QVGKVCache", {"model": ["loader", 0], **(cache or EXACT)}),
        "prompt": ("TestingPrompt", {"seed": 1, "prompts": 1, "tokens": 12}),
        "camera": ("QVGCameraPath", {"path": path, "frames": frames}),
        "start": (
            "QVGWorldStart",
            {"conditioning": ["prompt", 0], "camera": ["camera", 0], "start": "text", **size},
        ),
        "guider": ("BasicGuider", {"model": ["cache", 0], "conditioning": ["start", 0]}),
        "sigmas": ("QVGTrainedSigmas", {"model": ["cache", 0]}),
        "sampler": ("QVGWorldSampler", {"mode": mode}),
        "noise": ("RandomNoise", {"noise_seed": 5}),
        "sample": ("SamplerCustomAdvanced", {**{name: [at, 0] for name, at in links.items()}, "latent_image": ["start", 1]}),
        "report": ("QVGCacheReport", {"model": ["cache", 0], "latent": ["sample", 0]}),
    }
    prompt = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in steps.items()}
    return bypassed(prompt) if cache is None else prompt


def with_image(prompt: Prompt) -> Prompt:
    prompt = changed(prompt, "start", start="image", vae=["vae", 0], image=["image", 0])
    add(prompt, "vae", "TestingWorldVAE")
    add(prompt, "image", "EmptyImage", width=200, height=90, batch_size=1, color=4477866)
    return prompt


def with_cfg(prompt: Prompt, cfg: float) -> Prompt:
    return changed(prompt, "guider", "CFGGuider", positive=["start", 0], negative=["prompt", 0], cfg=cfg)


def said_by(client: Client, prompt: Prompt, name: str) -> str:
    result = client.run(prompt)
    assert result.status == "success", result.messages
    text: str = result.outputs[name]["text"][0]
    return text


def test_the_released_file_and_the_converted_one_are_one_model(client: Client, files: Path) -> None:
    out = files / "worldplay_fp32.safetensors"
    out.unlink(missing_ok=True)
    assert main(["convert", str(files / "worldplay" / "model.pt"), str(out), "--dtype", "fp32"]) == 0
    released, converted = walk(), changed(walk(), "loader", file=out.name)
    assert torch.equal(client.latent(released), client.latent(converted))
    said = said_by(client, released, "loader").splitlines()
    assert said[0] == "worldplay-5b (known by its layers), 77 tensors"
    assert said[1] == "chunks of 4 latent frames, sigmas 1, 0.96, 0.8889, 0.7273, 0, shift 8"
    assert said[2].startswith("weights generator, stored in float32, computed in float32")
    assert "worldplay-5b (known by its metadata)" in said_by(client, converted, "loader")


@pytest.mark.parametrize("mode", MODES)
def test_a_walk_is_repeatable_exact_when_bypassed_and_near_in_two_bits(client: Client, mode: str, record_property: Any) -> None:
    exact = client.latent(walk(mode=mode))
    assert exact.shape == (1, 48, FRAMES, HEIGHT // 16, WIDTH // 16) and exact.isfinite().all()
    client.forget()
    assert torch.equal(exact, client.latent(walk(mode=mode)))
    assert torch.equal(exact, client.latent(walk(None, mode=mode)))
    coded = client.latent(walk(BALANCED, mode=mode))
    assert torch.equal(coded, client.latent(walk(BALANCED, mode=mode)))
    assert torch.equal(coded[:, :, :4], exact[:, :, :4]) and not torch.equal(coded[:, :, 4:8], exact[:, :, 4:8])
    record_property("psnr_db", psnr_db(exact, coded))
    assert psnr_db(exact, coded) > 20
