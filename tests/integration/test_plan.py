"""What QVG Plan says, against what ComfyUI's own network takes, and the node in a real ComfyUI."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import PRESETS, CacheSpec
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.models.wan.shape import wan_shape
from comfyui_qvg.qvg.plan import Video, Weights, plan
from comfyui_qvg.qvg.plan.activations import Block, activations

from . import tiny_wan
from .client import Client, Result, between, workflow
from .conftest import comfyui
from .test_causal_wan import BALANCED, EXACT, FRAMES, QVG, TOKENS, native


@pytest.mark.parametrize(("name", "frames"), [("self-forcing-1.3b", 3), ("self-forcing-1.3b", 1), ("krea-14b", 3)])
def test_a_pass_takes_what_is_planned_for_it(name: str, frames: int) -> None:
    """480 x 832, every tensor of ComfyUI's network counted: 80 to 100 per cent of the bound."""
    home, python = comfyui()
    network = networks()[name]
    sizes = [str(home), *map(str, (network.layers, network.heads, network.mlp, frames))]
    script = Path(__file__).with_name("count_activations.py")
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run([str(python), str(script), *sizes], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout.splitlines()[-1])
    block = Block(batch=1, tokens=frames * 1560, frame_values=0, span_tokens=0)
    bound = activations(network, block, PRESETS["balanced"], triton=True).total(0)
    # The block's keys and values are counted with the cache.
    assert 0.8 * bound <= counted["peak"] <= bound + counted["held_by_the_cache"]
    assert counted["peak"] - counted["held_by_the_cache"] <= bound
    assert counted["weights"] == plan(network, Video(832, 480, 81), PRESETS["balanced"]).weights_bytes


def asked(client: Client, **inputs: Any) -> Result:
    """QVG Plan alone, or behind a loader."""
    steps = {
        "ask": ("QVGPlan", {"network": "self-forcing-1.3b", "width": 832, "height": 480, "preset": "balanced", "vram_gb": 12.0}),
        "loader": ("UNETLoader", {"unet_name": "causal.safetensors", "weight_dtype": "default"}),
        "cache": ("QVGKVCache", {"model": ["loader", 0], "cache": "exact"}),
        "world": ("QVGLoadDemoWorld", {}),
        "image": ("TestingForeignModel", {"kind": "image"}),
    }
    prompt = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in steps.items()}
    prompt["ask"]["inputs"] = {"frames": 717, **prompt["ask"]["inputs"], **inputs}
    return client.run(prompt)


def text(result: Result) -> str:
    assert result.status == "success", result.messages
    return str(result.outputs["ask"]["text"][0])


def test_the_node_says_what_the_command_says(client: Client) -> None:
    said = text(asked(client))
    found = plan(networks()["self-forcing-1.3b"], Video(832, 480, 717), PRESETS["balanced"], 12 * 10**9)
    assert f"{found.cache_end_bytes / 1e9:.2f} GB (6.6 times less)" in said
    assert said.startswith("It fits: 11.99 GB of 12.00 GB. The longest that fits has 717 frames.")
    assert "It fits" in text(asked(client, weights="fp8"))


def test_this_machines_memory_is_taken_where_none_is_named(client: Client) -> None:
    (device,) = client.get("/system_stats")["devices"]
    assert f"of {device['vram_total'] / 1e9:.2f} GB" in text(asked(client, vram_gb=0.0, frames=81))


def test_a_model_tells_its_own_shape_and_setting(client: Client) -> None:
    tiny_wan.write(models(client) / "causal.safetensors")
    bare = text(asked(client, model=["loader", 0], width=96, height=64, frames=25))
    assert "\ncausal Wan: 25 frames of 96x64, 1.6 s (7 latent frames)\n" in bare and "cache, preset balanced" in bare
    kept = text(asked(client, model=["cache", 0], width=96, height=64, frames=25))
    spec = CacheSpec(2, 2, 128, 24, 3, dtype=torch.float32)  # what a CPU computes in
    size = f"{spec.predict(PRESETS['exact'], 7).total / 1e6:.2f} MB"
    assert re.search(rf"^cache, as this MODEL keeps it, at the end +{re.escape(size)}$", kept, re.MULTILINE), kept
    world = text(asked(client, model=["world", 0], frames=151))
    assert "\ndemo world: 151 frames of 64x64 (151 latent frames)\n" in world
    assert f"{CacheSpec(5, 2, 128, 64).exact_bytes(151) / 1e6:.2f} MB" in world


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"frames": 80}, "frames is 80, but Self-Forcing 1.3B makes 1, 5, 9 ... pictures; use 77 or 81"),
        ({"network": "worldplay-5b", "width": 848}, "width is 848, but .* multiples of 32 pixels"),
        ({"model": ["image", 0]}, "has no KV cache"),
    ],
)
def test_what_cannot_be_planned_gets_a_sentence(client: Client, inputs: dict[str, Any], says: str) -> None:
    result = asked(client, **inputs)
    assert result.status == "error" and re.search(says, result.error), result.error


@pytest.mark.parametrize("cache", [EXACT, QVG, BALANCED], ids=["exact", "qvg", "balanced"])
def test_the_peak_planned_is_what_a_run_of_comfyui_holds(client: Client, cache: dict[str, Any]) -> None:
    """To the byte, at the worst moment of a run under core's sampler."""
    tiny_wan.write(models(client) / "causal.safetensors")
    said = client.said(between(native(cache), "TestingHeld"))
    codec = PRESETS[cache.get("cache.preset", "exact")]
    spec = CacheSpec(2, 2, 128, TOKENS, 3, dtype=torch.float32 if codec.codec == "none" else torch.bfloat16)
    config = codec if codec.codec == "none" else codec.with_changes(span_frames=6)
    assert said["held"] == [spec.predict_peak(config, FRAMES, block_dtype=torch.float32)]


def test_a_card_that_can_never_hold_the_cache_gets_the_plans_sentence(client: Client) -> None:
    """Before anything is sampled, and not where a part of the weights could make room."""
    tiny_wan.write(models(client) / "causal.safetensors")
    spec = CacheSpec(2, 2, 128, TOKENS, 3, dtype=torch.float32)
    megabytes = spec.predict_peak(PRESETS["exact"], FRAMES) / 1e6
    refused = client.run(between(native(EXACT), "TestingCard", megabytes=megabytes * 0.9))
    assert refused.status == "error" and refused.error.startswith("It does not fit: "), refused.messages
    assert "See QVG Plan; settings are those of QVG KV Cache." in refused.error
    roomy = client.run(between(native(EXACT), "TestingCard", megabytes=megabytes + 60))
    assert roomy.status == "success", roomy.messages


def test_the_demo_world_is_planned_for_too(client: Client) -> None:
    refused = client.run(between(workflow(frames=40), "TestingCard", megabytes=0.5))
    assert refused.status == "error" and "It does not fit: " in refused.error, refused.messages
    assert client.run(between(workflow(frames=20), "TestingCard", megabytes=400)).status == "success"


def models(client: Client) -> Path:
    folder = client.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_a_run_takes_what_is_planned_for_it(client: Client) -> None:
    """Every tensor made while it is sampled, the cache among them, stays below the plan. Of so small a model a plan has more to
    spare than of a true one: on a CPU attention's tiles and the codec are at their worst at different moments (measured: 63 per
    cent of it is used)."""
    tiny_wan.write(models(client) / "causal.safetensors")
    prompt = between(native(BALANCED, frames=18), "TestingLive")
    prompt["latent"]["inputs"].update(width=416, height=240)
    said = client.said(prompt)
    network = replace(wan_shape("tiny", 2, 2, 256, 0, 3), text_tokens=13)
    config, weights = PRESETS["balanced"].with_changes(span_frames=6), Weights("fp32", 0, torch.float32)
    found = plan(network, Video(416, 240, 69), config, weights=weights, triton=False, device_type="cpu")
    assert 0.55 * found.sampling_bytes <= said["live"] <= found.sampling_bytes, (said["live"], found)
