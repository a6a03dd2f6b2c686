"""HY-WorldPlay on HunyuanVideo 1.5 in a real ComfyUI, through the same nodes as on Wan, on a tiny random checkpoint."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, QVGConfig
from comfyui_qvg.qvg.camera import parse_path
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.camera.overlap import FieldOfView
from comfyui_qvg.qvg.camera.poses import camera_poses
from comfyui_qvg.qvg.camera.selection import HUNYUAN_MEMORY
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models.common.world_memory import WorldMemory, world_memory
from comfyui_qvg.qvg.models.worldplay_hunyuan.network import load_worldplay_hunyuan
from comfyui_qvg.qvg.models.worldplay_hunyuan.text import Words
from comfyui_qvg.qvg.positions.rope import hunyuan_rope
from comfyui_qvg.qvg.sampling.world_hunyuan import Guidance, HunyuanWorld
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..golden_worldplay_hunyuan import HEADS, LAYERS, weights
from .client import Client, Prompt, between
from .test_causal_wan import add, changed, psnr_db, record

FRAMES, WIDTH, HEIGHT = 16, 64, 64
ROWS, COLS = HEIGHT // 16, WIDTH // 16
MODES = ["vendor", "persistent", "incremental"]
EXACT = {"cache": "exact"}
BALANCED = {"cache": "preset", "cache.preset": "balanced", "sink_frames": 0, "recent_frames": 0, "span_frames": 4}
PATH = "w-3,w+right-4,left-6,s-2"
SCALE = 1.03682  # of ComfyUI's latents of this model


@pytest.fixture(autouse=True, scope="module")
def files(server: Client) -> Path:
    folder = server.base / "models" / "diffusion_models"
    for stage in ("ar_distilled_action_model", "ar_model", "bidirectional_model"):
        (folder / stage).mkdir(parents=True, exist_ok=True)
        save_file(weights(4096), folder / stage / "diffusion_pytorch_model.safetensors")
    base = {name: weight for name, weight in weights(4096).items() if "prope" not in name and "action" not in name}
    save_file(base, folder / "hunyuanvideo15_base.safetensors")
    save_file(weights(4096), folder / "unnamed_8b_file.safetensors")
    return folder


def walk(
    cache: dict[str, Any] = EXACT,
    frames: int = FRAMES,
    mode: str = "vendor",
    path: str = PATH,
    stage: str = "ar_distilled_action",
) -> Prompt:
    """The graph."""
    links = {"noise": "noise", "guider": "guider", "sampler": "sampler", "sigmas": "sigmas"}
    start = {"conditioning": ["prompt", 0], "camera": ["camera", 0], "start": "image", "vae": ["vae", 0], "image": ["image", 0]}
    steps: dict[str, tuple[str, dict[str, Any]]] = {
        "loader": ("QVGLoadWorldPlay", {"file": f"{stage}_model/diffusion_pytorch_model.safetensors"}),
        "cache": ("QVGKVCache", {"model": ["loader", 0], **cache}),
        "prompt": ("TestingHunyuanPrompt", {"seed": 1, "letters": 3, "valid": 9}),
        "camera": ("QVGCameraPath", {"path": path, "frames": frames}),
        "vae": ("TestingHunyuanVAE", {}),
        "image": ("EmptyImage", {"width": 200, "height": 90, "batch_size": 1, "color": 4477866}),
        "start": ("QVGWorldStart", {**start, "width": WIDTH, "height": HEIGHT}),
        "guider": ("BasicGuider", {"model": ["cache", 0], "conditioning": ["start", 0]}),
        "sigmas": ("QVGTrainedSigmas", {"model": ["cache", 0]}),
        "sampler": ("QVGWorldSampler", {"mode": mode}),
        "noise": ("RandomNoise", {"noise_seed": 5}),
        "sample": ("SamplerCustomAdvanced", {**{name: [at, 0] for name, at in links.items()}, "latent_image": ["start", 1]}),
        "report": ("QVGCacheReport", {"model": ["cache", 0], "latent": ["sample", 0]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in steps.items()}


def guided(prompt: Prompt, cfg: float, steps: int = 3) -> Prompt:
    prompt = copy.deepcopy(prompt)
    prompt["loader"]["inputs"]["file"] = "ar_model/diffusion_pytorch_model.safetensors"
    add(prompt, "negative", "TestingHunyuanPrompt", seed=2, letters=0, valid=4)
    add(prompt, "guider", "CFGGuider", model=["cache", 0], positive=["start", 0], negative=["negative", 0], cfg=cfg)
    add(prompt, "sigmas", "BasicScheduler", model=["cache", 0], scheduler="simple", steps=steps, denoise=1.0)
    return prompt


def states(seed: int, letters: int, valid: int) -> Words:
    """As TestingHunyuanPrompt draws them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, 12, 4096), (1, max(1, letters), 1472), (1, 5, 1152))
    text, byt5, vision = (torch.randn(shape, generator=generator) for shape in shapes)
    return Words(text[:, :valid], byt5 if letters else None, vision)


def library(mode: str, frames: int, levels: tuple[float, ...], cfg: float = 1.0, path: str = PATH) -> Tensor:
    """The same walk without ComfyUI: [1, C, F, h, w], as its latents are scaled."""
    model = load_worldplay_hunyuan(weights(4096))
    context = frames - 4 if mode == "vendor" and frames < 20 else 20

    def memory() -> WorldMemory:
        spec = CacheSpec(LAYERS, HEADS, 128, ROWS * COLS, context if mode == "vendor" else 4, dtype=torch.float32)
        return world_memory(spec, QVGConfig(codec="none"), hunyuan_rope(ROWS, COLS))

    rule = HUNYUAN_MEMORY if mode == "vendor" else None
    world = HunyuanWorld(model, memory(), model.read_prompt(states(1, 3, 9)), mode, rule, FieldOfView(dtype=torch.float64))
    world.steps = levels
    if cfg > 1:
        world.guidance = Guidance(model.read_prompt(states(2, 0, 4)), memory(), cfg)
    noise = torch.randn((1, 32, frames, ROWS, COLS), generator=torch.manual_seed(5)).transpose(1, 2)
    colour = torch.tensor([0x44, 0x53, 0xAA]) / 255 * 2 - 1
    image = (colour.repeat(11)[:32] * SCALE).view(1, 1, 32, 1, 1).expand(1, 1, 32, ROWS, COLS)
    cameras = Cameras(camera_poses(parse_path(path), frames, "again"))
    chunks = [world.next_chunk(noise[:, at : at + 4], cameras, None if at else image) for at in range(0, frames, 4)]
    return torch.cat(chunks, 1).transpose(1, 2) / SCALE


@pytest.mark.parametrize("mode", MODES)
def test_a_walk_is_the_library_s(client: Client, mode: str) -> None:
    """Noise, picture, text without its padding, letters and vision come through ComfyUI as they are. Measured 110 dB or more."""
    levels = (1000.0, 937.5, 2500 / 3, 625.0, 0.0)
    assert psnr_db(library(mode, FRAMES, levels), client.latent(walk(mode=mode))) > 90


def test_a_guided_walk_is_the_library_s(client: Client) -> None:
    """Sigmas of ComfyUI's scheduler, thousandths with a shift of 5, and a memory for each text."""
    sigmas = [5 * s / (1 + 4 * s) for s in (1.0, 0.667, 0.334)]
    made = client.latent(guided(walk(frames=12), 6.0))
    assert psnr_db(library("vendor", 12, (*(1000 * sigma for sigma in sigmas), 0.0), 6.0), made) > 60
    plain = client.latent(guided(walk(frames=12), 1.0))
    assert psnr_db(made, plain) < 50


def test_guidance_takes_two_memories(client: Client) -> None:
    one, two = (record(client, guided(walk(mode="incremental", frames=12), cfg)) for cfg in (1.0, 6.0))
    assert two["cache_bytes"] == [2 * size for size in one["cache_bytes"]]
    assert two["left"] == dict.fromkeys(two["left"], 0)


def test_retrieval_keeps_the_first_frames(client: Client) -> None:
    seen = len(client.log())
    client.latent(walk(frames=32, path="right-10,left-21"))
    lines = re.findall(r"QVG: chunk (\d) of 8 sees (.*?)\x1b?\s*$", client.log()[seen:], re.MULTILINE)
    contexts = [text for _, text in lines]
    assert contexts[5] == "frames 0-19"
    for chunk in (6, 7):
        stretches = [(int(a), int(b or a)) for a, b in re.findall(r"(\d+)(?:-(\d+))?", contexts[chunk])]
        frames = [frame for first, last in stretches for frame in range(first, last + 1)]
        assert len(frames) == 20 and {*range(4), *range(4 * chunk - 12, 4 * chunk)} < set(frames)


@pytest.mark.parametrize("mode", MODES)
def test_near_in_two_bits_and_repeatable(client: Client, mode: str, record_property: Any) -> None:
    exact, coded = client.latent(walk(mode=mode)), client.latent(walk(BALANCED, mode=mode))
    client.forget()
    assert torch.equal(coded, client.latent(walk(BALANCED, mode=mode)))
    assert torch.equal(coded[:, :, :4], exact[:, :, :4]) and not torch.equal(coded[:, :, 4:8], exact[:, :, 4:8])
    record_property("psnr_db", psnr_db(exact, coded))
    assert psnr_db(exact, coded) > 20


def test_the_converted_file_is_the_same_model(client: Client, files: Path) -> None:
    out, released = (
        files / "worldplay_8b.safetensors",
        files / "ar_distilled_action_model" / "diffusion_pytorch_model.safetensors",
    )
    out.unlink(missing_ok=True)
    assert main(["convert", str(released), str(out), "--dtype", "fp32"]) == 0
    converted = changed(walk(), "loader", file=out.name)
    assert torch.equal(client.latent(walk()), client.latent(converted))
    client.forget()
    result = client.run(converted)
    assert result.outputs["loader"]["text"][0].splitlines()[:2] == [
        "worldplay-8b-distilled (known by its metadata), 147 tensors",
        "chunks of 4 latent frames, 4 steps, shift 5, no guidance",
    ]


@pytest.mark.parametrize("mode", ["vendor", "incremental"])
def test_a_world_is_walked_on_from_where_it_stands(client: Client, mode: str) -> None:
    """Its first frame stands for the picture, which the latent does not carry: what follows is near, not the same."""
    whole = walk(mode=mode)
    straight, later = client.latent(whole), copy.deepcopy(whole)
    add(later, "first", "TestingFirstFrames", samples=["sample", 0], frames=8)
    inputs = {name: value for name, value in whole["start"]["inputs"].items() if name not in ("vae", "image")}
    add(later, "start2", "QVGWorldStart", **inputs | {"start": "extend", "extend": ["first", 0]})
    later["guider2"] = changed(whole, "guider", conditioning=["start2", 0])["guider"]
    later["sample2"] = changed(whole, "sample", guider=["guider2", 0], latent_image=["start2", 1])["sample"]
    later["report"] = changed(whole, "report", latent=["sample2", 0])["report"]
    add(later, "save", "SaveLatent", samples=["sample2", 0], filename_prefix=f"latents/hunyuan_{mode}")
    result = client.run(later)
    assert result.status == "success", result.messages
    (file,) = (client.base / "output" / "latents").glob(f"hunyuan_{mode}_*.latent")
    extended = load_file(str(file))["latent_tensor"]
    assert psnr_db(straight[:, :, :8], extended[:, :, :8]) > 120 and psnr_db(straight, extended) > 15


def test_a_prompt_changes_on_the_way(client: Client) -> None:
    """Its text is read anew where it begins: frame 40 of the video is in the third chunk."""
    plain, changing = client.latent(walk()), walk()
    add(changing, "prompt2", "TestingHunyuanPrompt", seed=2, letters=0, valid=6)
    after = {"conditioning": ["prompt", 0], "next_conditioning": ["prompt2", 0], "frame": 40}
    add(changing, "at", "QVGPromptAtFrame", **after)
    changing["start"]["inputs"]["conditioning"] = ["at", 0]
    made = client.latent(changing)
    assert torch.equal(made[:, :, :8], plain[:, :, :8]) and psnr_db(made[:, :, 8:12], plain[:, :, 8:12]) < 60


def test_the_plan_knows_the_model(client: Client) -> None:
    prompt = walk(BALANCED)
    keep = {name: prompt[name] for name in ("loader", "cache")}
    size = {"width": WIDTH, "height": HEIGHT, "frames": 61}
    add(keep, "plan", "QVGPlan", network="self-forcing-1.3b", preset="balanced", vram_gb=12.0, model=["cache", 0], **size)
    result = client.run(keep)
    assert result.status == "success", result.messages
    assert "WorldPlay 8B" in json.dumps(result.outputs["plan"])


def test_weights_elsewhere_and_a_lora(client: Client) -> None:
    plain = client.latent(walk())
    assert torch.equal(plain, client.latent(between(walk(), "TestingPartlyUnloaded", "", megabytes=4.0)))
    assert torch.equal(plain, client.latent(between(walk(), "TestingLoadedAgain", "QVGKVCache")))
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name in ("action_in.out_layer", "double_blocks.1.img_attn_prope_proj"):
        tensors[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(4, 256, generator=generator)
        tensors[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(256, 4, generator=generator) * 0.1
    folder, seen = client.base / "models" / "loras", len(client.log())
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "world8b.safetensors")
    bent = client.latent(between(walk(), "LoraLoaderModelOnly", lora_name="world8b.safetensors", strength_model=1.0))
    assert psnr_db(plain, bent) < 60 and "lora key not loaded" not in client.log()[seen:]


def test_a_failure_frees_both_memories(client: Client) -> None:
    seen = len(client.log())
    assert "the lights went out" in client.run(between(guided(walk(), 6.0), "TestingFailing", "", call=11)).error
    assert re.search(r"QVG: ended by RuntimeError after block \d of 4; the cache holds 0 bytes now", client.log()[seen:])


def bad_graphs() -> dict[str, tuple[Prompt, str]]:
    """Graphs that cannot work, and what is said about them."""
    good = walk(BALANCED)
    text = changed(good, "start", start="text")
    for name in ("vae", "image"):
        del text["start"]["inputs"][name]
    foreign = changed(good, "vae", "TestingWorldVAE")
    cfg = copy.deepcopy(good)
    add(cfg, "guider", "CFGGuider", model=["cache", 0], positive=["start", 0], negative=["prompt", 0], cfg=3.0)
    two = copy.deepcopy(good)
    add(two, "other", "TestingHunyuanPrompt", seed=3, letters=0, valid=5)
    add(two, "both", "ConditioningCombine", conditioning_1=["prompt", 0], conditioning_2=["other", 0])
    two["start"]["inputs"]["conditioning"] = ["both", 0]
    return {
        "base": (changed(good, "loader", file="hunyuanvideo15_base.safetensors"), "HunyuanVideo without HY-WorldPlay's layers"),
        "stage": (changed(good, "loader", file="unnamed_8b_file.safetensors"), "its name does not say of which stage"),
        "bidirectional": (
            changed(good, "loader", file="bidirectional_model/diffusion_pytorch_model.safetensors"),
            "is the bidirectional model, which denoises 16 latent frames at once",
        ),
        "text": (text, "WorldPlay 8B begins with a picture, and no frame is given; choose start image on 'World Start'"),
        "vae": (foreign, "with this model's own VAE"),
        "cfg": (cfg, "cfg is 3.0, but worldplay-8b-distilled is distilled to need no guidance"),
        "cfg below": (guided(good, 0.5), "worldplay-8b is guided (cfg 6), but the guider has cfg 0.5"),
        "two prompts": (two, "a step ran the network 2 times"),
        "no tokens": (changed(good, "prompt", valid=0), "the prompt has no tokens"),
    }


@pytest.mark.parametrize("name", bad_graphs())
def test_what_cannot_work_gets_a_sentence(client: Client, name: str) -> None:
    prompt, sentence = bad_graphs()[name]
    result = client.run(prompt)
    assert result.status == "error" and sentence in result.error, (json.dumps(result.messages), result.error)
