"""LongCat-Video in a real ComfyUI: loader, start, sampler and cache, on a tiny random checkpoint with its true names."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import QVGConfig
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models.longcat import LongCatConfig, LongCatSettings, SegmentFrames, load_longcat
from comfyui_qvg.qvg.models.longcat.memory import ConditionCache
from comfyui_qvg.qvg.models.longcat.schedule import noise_levels
from comfyui_qvg.qvg.sampling.longcat import LongCatDenoiser, Texts, sample_segment
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import tiny_longcat
from . import tiny_vae, tiny_wan
from .client import CONTEXT_WINDOWS, Client, Prompt, between, bypassed
from .test_causal_wan import add, changed, psnr_db, record

WIDTH, HEIGHT, STEPS = 96, 64, 3
SIZE = (HEIGHT // 8, WIDTH // 8)
TOKENS = SIZE[0] * SIZE[1] // 4
# Six latent frames, three of which the next segment is conditioned on.
SEGMENT, CONDITION = 21, 9
SHAPE = tiny_longcat.sizes(heads=2, head_dim=64, mlp=96)
NETWORK = tiny_longcat.state_dict(3, SHAPE)
DISTILLING = tiny_longcat.lora(tiny_longcat.DISTILLS, shape=SHAPE)
RELEASE = "LongCat-Video/dit/diffusion_pytorch_model-00002-of-00003.safetensors"
EXACT = {"cache": "exact"}
BALANCED = {"cache": "preset", "cache.preset": "balanced"}


@pytest.fixture(autouse=True, scope="module")
def files(server: Client) -> Path:
    models = server.base / "models"
    folder, loras = models / "diffusion_models", models / "loras"
    loras.mkdir(exist_ok=True)
    (models / "vae").mkdir(exist_ok=True)
    tiny_longcat.shards(folder / "LongCat-Video" / "dit", NETWORK)
    save_file(tiny_longcat.repacked(NETWORK), folder / "LongCat_TI2V_comfy.safetensors")
    save_file(DISTILLING, loras / "cfg_step_lora.safetensors")
    save_file(tiny_longcat.lora(tiny_longcat.REFINES, shape=SHAPE), loras / "refinement_lora.safetensors")
    save_file(tiny_wan.lora(), loras / "wan_style.safetensors")
    save_file({name: tensor for name, tensor in NETWORK.items() if "final_layer" not in name}, folder / "half.safetensors")
    save_file(tiny_longcat.state_dict(3, tiny_longcat.sizes(text=64)), folder / "narrow.safetensors")
    alone = folder / "alone" / "diffusion_pytorch_model-00001-of-00006.safetensors"
    alone.parent.mkdir(exist_ok=True)
    save_file({"x_embedder.proj.bias": NETWORK["x_embedder.proj.bias"]}, alone)
    tiny_vae.write(models / "vae" / "tiny_wan_vae.safetensors")
    return folder


def video(cache: dict[str, Any] | None = EXACT, segments: int = 2, cfg: float = 4.0, **sampler: Any) -> Prompt:
    """The graph; our cache node is in it unless `cache` is None."""
    links = {"noise": "noise", "guider": "guider", "sampler": "sampler", "sigmas": "sigmas"}
    start = {"width": WIDTH, "height": HEIGHT, "segments": segments, "segment_pictures": SEGMENT, "condition_pictures": CONDITION}
    levels = ", ".join(f"{level:.9f}" for level in noise_levels(STEPS))
    steps: dict[str, tuple[str, dict[str, Any]]] = {
        "loader": ("QVGLoadLongCat", {"file": RELEASE}),
        "cache": ("QVGKVCache", {"model": ["loader", 0], **(cache or EXACT)}),
        "prompt": ("TestingPrompt", {"seed": 1, "prompts": 1, "tokens": 12}),
        "negative": ("TestingPrompt", {"seed": 2, "prompts": 1, "tokens": 7}),
        "start": ("QVGLongCatStart", {"conditioning": ["prompt", 0], "start": "text", **start}),
        "guider": ("CFGGuider", {"model": ["cache", 0], "positive": ["start", 0], "negative": ["negative", 0], "cfg": cfg}),
        "sigmas": ("ManualSigmas", {"sigmas": levels}),
        "vae": ("VAELoader", {"vae_name": "tiny_wan_vae.safetensors"}),
        "sampler": ("QVGLongCatSampler", {"carry": "latents", **sampler}),
        "noise": ("RandomNoise", {"noise_seed": 5}),
        "sample": ("SamplerCustomAdvanced", {**{name: [at, 0] for name, at in links.items()}, "latent_image": ["start", 1]}),
        "report": ("QVGCacheReport", {"model": ["cache", 0], "latent": ["sample", 0]}),
    }
    prompt = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in steps.items()}
    return bypassed(prompt) if cache is None else prompt


def through_vae(prompt: Prompt) -> Prompt:
    return changed(prompt, "sampler", carry="pictures", vae=["vae", 0])


def with_image(prompt: Prompt) -> Prompt:
    prompt = changed(prompt, "start", start="image", vae=["vae", 0], image=["image", 0])
    add(prompt, "image", "EmptyImage", width=200, height=90, batch_size=1, color=4477866)
    return prompt


def with_video(prompt: Prompt, pictures: int = 12) -> Prompt:
    prompt = changed(prompt, "start", start="video", vae=["vae", 0], video=["image", 0])
    add(prompt, "image", "EmptyImage", width=120, height=80, batch_size=pictures, color=4477866)
    return prompt


def distilled(prompt: Prompt) -> Prompt:
    return changed(changed(prompt, "loader", lora="cfg_step_lora.safetensors"), "guider", cfg=1.0)


def said_by(client: Client, prompt: Prompt, name: str) -> str:
    result = client.run(prompt)
    assert result.status == "success", result.messages
    text: str = result.outputs[name]["text"][0]
    return text


def text_of(seed: int, tokens: int) -> Tensor:
    """As TestingPrompt makes it."""
    return torch.randn(1, tokens + 1, 4096, generator=torch.Generator().manual_seed(seed))


# What the Wan latent format takes off and divides by: core's numbers.
MEAN = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497,
        0.2503, -0.2921]  # fmt: skip
DEVIATION = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
             2.8251, 1.9160]  # fmt: skip


def shown(latents: Tensor) -> Tensor:
    """The network's latents [1, F, C, h, w] as a LATENT [1, C, F, h, w]."""
    mean, deviation = (torch.tensor(numbers).view(1, -1, 1, 1, 1) for numbers in (MEAN, DEVIATION))
    return latents.transpose(1, 2) * deviation + mean


def by_library(weights: dict[str, Tensor], segments: int, guidance: float = 4.0, exact_timesteps: bool = False) -> Tensor:
    """The same video without ComfyUI, latents carried over."""
    model = load_longcat(weights)
    texts = Texts(*(model.read_prompt(text_of(*each)) for each in ((1, 12), (2, 7))))
    frames = SegmentFrames(SEGMENT, CONDITION)
    total = frames.latents + (segments - 1) * frames.new_latents
    noise = torch.randn(1, 16, total, *SIZE, generator=torch.manual_seed(5)).transpose(1, 2)
    settings = LongCatSettings(steps=STEPS, guidance=guidance, exact_timesteps=exact_timesteps)
    denoiser, made, condition = LongCatDenoiser(model, texts, settings), list[Tensor](), None
    for index in range(segments):
        first = 0 if index == 0 else frames.latents + (index - 1) * frames.new_latents
        own = noise[:, first : first + (frames.new_latents if index else frames.latents)]
        if condition is None:
            latents = sample_segment(denoiser, own)
        else:
            exact = QVGConfig.preset("exact")
            with ConditionCache(LongCatConfig.of(weights), *SIZE, condition.shape[1], exact, torch.float32) as cache:
                latents = sample_segment(denoiser, torch.cat([condition, own], 1), condition, cache)
        made.append(latents[:, 0 if condition is None else condition.shape[1] :])
        condition = latents[:, -frames.condition_latents :]
    return shown(torch.cat(made, 1))


def test_the_video_is_the_library_s(client: Client) -> None:
    """Guidance, condition, memory, noise levels, what the network is told, and the sign of what it says."""
    made = client.latent(video(segments=3))
    assert made.shape == (1, 16, 12, *SIZE)
    assert psnr_db(by_library(NETWORK, 3), made) > 90
    exactly = client.latent(video(exact_timesteps=True))
    assert psnr_db(by_library(NETWORK, 2, exact_timesteps=True), exactly) > 90 > psnr_db(by_library(NETWORK, 2), exactly)


def test_repeatable_exact_when_bypassed_and_near_in_two_bits(client: Client, record_property: Any) -> None:
    exact = client.latent(video())
    client.forget()
    assert torch.equal(exact, client.latent(video())) and torch.equal(exact, client.latent(video(None)))
    coded = client.latent(video(BALANCED))
    assert torch.equal(coded, client.latent(video(BALANCED)))
    assert torch.equal(coded[:, :, :6], exact[:, :, :6]) and not torch.equal(coded[:, :, 6:], exact[:, :, 6:])
    record_property("psnr_db", psnr_db(exact[:, :, 6:], coded[:, :, 6:]))
    assert psnr_db(exact[:, :, 6:], coded[:, :, 6:]) > 20


def test_every_form_of_the_file_is_one_model(client: Client, files: Path) -> None:
    said, source = said_by(client, video(), "loader").splitlines(), files / "LongCat-Video"
    released = client.latent(video())
    assert said[0] == "longcat (known by its layers), 56 tensors"
    assert said[1] == "segments of 93 pictures, 50 steps, shift 12, cfg 4"
    assert said[2] == "weights stored in float32, computed in float32"
    for dtype in ("fp32", "fp8"):
        assert main(["convert", str(source), str(files / f"longcat_{dtype}.safetensors"), "--dtype", dtype]) == 0
    for name in ("longcat_fp32", "LongCat_TI2V_comfy"):
        assert torch.equal(released, client.latent(changed(video(), "loader", file=f"{name}.safetensors")))
    packed = changed(video(), "loader", file="longcat_fp8.safetensors")
    # Of these tiny matrices most values are in what stays in 16 bits.
    assert "stored in bfloat16 with scales, computed in float32" in said_by(client, packed, "loader")
    small = client.latent(packed)
    # Whose own rounding is far below that of weights in 8 bits.
    cast = client.latent(changed(video(), "loader", dtype="fp8_e4m3fn"))
    assert psnr_db(released, small) > max(20, psnr_db(released, cast))


def test_pictures_are_carried_through_the_vae(client: Client) -> None:
    latents, pictures = client.latent(video()), client.latent(through_vae(video()))
    assert torch.equal(latents[:, :, :6], pictures[:, :, :6]) and psnr_db(latents[:, :, 6:], pictures[:, :, 6:]) < 60
    # And by hand: decoded, and a video that goes on from its pictures.
    prompt = through_vae(video(segments=1))
    add(prompt, "decode", "VAEDecode", samples=["sample", 0], vae=["vae", 0])
    add(
        prompt,
        "onward",
        "QVGLongCatStart",
        **prompt["start"]["inputs"] | {"start": "video", "video": ["decode", 0], "vae": ["vae", 0]},
    )
    prompt["guider2"] = changed(prompt, "guider", positive=["onward", 0])["guider"]
    prompt["sample2"] = changed(prompt, "sample", guider=["guider2", 0], latent_image=["onward", 1])["sample"]
    add(prompt, "save", "SaveLatent", samples=["sample2", 0], filename_prefix="latents/onward")
    result = client.run({name: step for name, step in prompt.items() if name != "report"})
    assert result.status == "success", result.messages
    (file,) = (client.base / "output" / "latents").glob("onward_*.latent")
    onward = load_file(str(file))["latent_tensor"]
    assert onward.shape == (1, 16, 6, *SIZE) and onward.isfinite().all()


def test_what_a_video_begins_with_stays(client: Client) -> None:
    plain = client.latent(video())
    for prompt, given in ((with_image(video()), 1), (with_video(video()), 3)):
        made = client.latent(prompt)
        assert made.shape == plain.shape and made.isfinite().all()
        assert torch.equal(made[:, :, :given], client.latent(changed(prompt, "noise", noise_seed=6))[:, :, :given])
        assert psnr_db(plain[:, :, given:6], made[:, :, given:6]) < 60
        numbers = record(client, prompt)
        assert numbers["given_frames"] == given and numbers["seconds"][:given] == [0] * given


def test_a_prompt_for_each_segment(client: Client) -> None:
    plain, changing = client.latent(video(segments=3)), video(segments=3)
    add(changing, "prompt2", "TestingPrompt", seed=3, prompts=1, tokens=12)
    add(changing, "at", "QVGPromptAtFrame", conditioning=["prompt", 0], next_conditioning=["prompt2", 0], frame=34)
    changing["start"]["inputs"]["conditioning"] = ["at", 0]
    made = client.latent(changing)
    # Pictures 21 to 32 are the second segment's.
    assert torch.equal(made[:, :, :9], plain[:, :, :9]) and psnr_db(plain[:, :, 9:], made[:, :, 9:]) < 60
    late = changed(changing, "at", frame=46)
    assert "a prompt begins at frame 46, but the video ends with frame 44" in client.run(late).error


def test_its_authors_lora(client: Client) -> None:
    """As they say it is added: part by part of joined matrices, by the file's own scale."""
    prompt = distilled(video())
    assert "longcat-distilled (known by its LoRA)" in said_by(client, prompt, "loader")
    made = client.latent(changed(prompt, "sampler", enhance_hf="auto"))
    plain = client.latent(changed(video(cfg=1.0), "sampler", enhance_hf="off"))
    assert psnr_db(plain, made) < 40
    one = client.latent(changed(prompt, "start", segments=1))
    assert psnr_db(by_library(tiny_longcat.merged(NETWORK, DISTILLING), 1, guidance=1.0), one) > 90
    steps = changed(prompt, "sigmas", "QVGTrainedSigmas")
    steps["sigmas"]["inputs"] = {"model": ["cache", 0]}
    assert client.latent(changed(steps, "start", segments=1)).isfinite().all()


def test_the_report_counts_what_a_segment_remembers(client: Client) -> None:
    exact, coded = (record(client, video(cache)) for cache in (EXACT, BALANCED))
    all_ = 2 * 2 * 128 * 3 * TOKENS * 2  # keys and values of two layers of 128 channels, three frames, 16 bits
    assert exact["model"] == coded["model"] == "LongCat-Video"
    assert exact["exact_bytes"] == coded["exact_bytes"] == [0] * 6 + [all_] * 3
    # The network computes in 32 bits here, and exact keeps that.
    assert exact["cache_bytes"] == [0] * 6 + [2 * all_] * 3
    assert coded["components"]["codes"] > 0 == coded["components"]["exact"] and 0 < coded["cache_bytes"][-1] < all_
    assert exact["left"] == dict.fromkeys(exact["left"], 0) and coded["left"] == dict.fromkeys(coded["left"], 0)
    assert "2 segments; the last one remembers the 3 latent frames that it is conditioned on" in coded["text"]
    assert (
        "as they are (ours)" in coded["text"] and "through the VAE (as released)" in record(client, through_vae(video()))["text"]
    )


def test_weights_elsewhere_and_loaded_again(client: Client) -> None:
    plain = client.latent(video())
    assert torch.equal(plain, client.latent(between(video(), "TestingPartlyUnloaded", "", megabytes=0.5)))
    assert torch.equal(plain, client.latent(between(video(), "TestingLoadedAgain", "QVGKVCache")))
    bf16 = client.latent(changed(video(), "loader", dtype="bf16"))
    assert psnr_db(plain, bf16) > 20


def test_interrupt_frees_the_memory_and_keeps_segments(client: Client) -> None:
    seen = len(client.log())
    with client.new_files("output/QVG") as kept:
        prompt_id = client.queue(changed(video(BALANCED), "start", segments=200))
        client.until(lambda: len(list((client.base / "output" / "QVG").glob("unfinished*/*"))) > 3, "three segments")
        assert client.post("/interrupt", {})[0] == 200
        result = client.wait(prompt_id)
    assert any(kind == "execution_interrupted" for kind, _ in result.messages)
    done = re.search(r"QVG: interrupted after segment (\d+) of 200; the memory is free", client.log()[seen:])
    assert done and int(done[1]) >= 2
    (file,) = [path for path in kept if path.suffix == ".latent"]
    latent = load_file(str(file))["latent_tensor"]
    assert latent.shape[2] == 6 + 3 * (int(done[1]) - 1) and latent.isfinite().all()


def test_a_plan_is_made_for_it(client: Client) -> None:
    prompt = video(BALANCED)
    add(prompt, "plan", "QVGPlan", network="longcat-13b", width=WIDTH, height=HEIGHT, frames=33, preset="balanced", vram_gb=12.0,
        model=["cache", 0])  # fmt: skip
    text = said_by(client, {name: prompt[name] for name in ("loader", "cache", "plan")}, "plan")
    assert text.startswith("It fits") and "LongCat-Video: 33 frames of 96x64" in text


BAD: dict[str, tuple[Callable[[Prompt], Prompt], str]] = {
    "a shard alone": (
        lambda prompt: changed(prompt, "loader", file="alone/diffusion_pytorch_model-00001-of-00006.safetensors"),
        "is part 1 of 6, and .* are not beside it; put all parts into one folder",
    ),
    "half a file": (
        lambda prompt: changed(prompt, "loader", file="half.safetensors"),
        "lacks 4 of LongCat-Video's 56 tensors",
    ),
    "another model's LoRA": (
        lambda prompt: changed(prompt, "loader", lora="wan_style.safetensors"),
        "which this model does not have; it is another model's LoRA",
    ),
    "the refinement LoRA": (
        lambda prompt: changed(prompt, "loader", lora="refinement_lora.safetensors"),
        "QVG makes videos and does not refine them",
    ),
    "guidance with the distill LoRA": (
        lambda prompt: changed(distilled(prompt), "guider", cfg=4.0),
        "cfg is 4.0, but LongCat-Video with the distill LoRA has guidance within it; use BasicGuider, or set cfg to 1",
    ),
    "enhance_hf with the distill LoRA": (
        lambda prompt: changed(distilled(prompt), "sampler", enhance_hf="on"),
        "enhance_hf is on, but the distilled model was trained at its own steps alone",
    ),
    "no VAE": (lambda prompt: changed(prompt, "sampler", carry="pictures"), "no VAE is connected to LongCat Sampler"),
    "another sampler": (
        lambda prompt: {**prompt, "sampler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}},
        "the sampler is sample_euler, but LongCat-Video makes a video segment after segment",
    ),
    "no start": (
        lambda prompt: changed(prompt, "guider", positive=["prompt", 0]),
        "does not say how long a segment is; put 'LongCat Start' between",
    ),
    "another model": (
        lambda prompt: changed(
            {**prompt, "demo": {"class_type": "QVGLoadDemoWorld", "inputs": {}}}, "guider", model=["demo", 0], cfg=1.0
        ),
        "LongCat Sampler|demo world",
    ),
    "a window": (
        lambda prompt: changed(prompt, "cache", window_frames=8),
        "window_frames is 8, but what a segment of LongCat-Video",
    ),
    "context windows": (
        lambda prompt: between(prompt, "WanContextWindowsManual", "", **CONTEXT_WINDOWS),
        "context windows cut a video",
    ),
    "a video too short": (
        lambda prompt: with_video(prompt, 8),
        "the video has 8 pictures, but 9 of it are to be the condition; give a longer video, or use a condition of 5",
    ),
    "segments that add nothing": (
        lambda prompt: changed(prompt, "start", condition_pictures=21),
        "a segment of 21 pictures that is conditioned on 21 adds nothing",
    ),
    "odd numbers of pictures": (
        lambda prompt: changed(prompt, "start", segment_pictures=22),
        "a segment has 22 pictures, but 1, 5, 9 ... are whole latent frames; use 21 or 25",
    ),
    "nothing connected": (
        lambda prompt: changed(prompt, "start", start="image"),
        "start is image, but nothing is connected to image",
    ),
    "too much connected": (
        lambda prompt: changed(with_image(prompt), "start", start="text"),
        "start is text, but image is connected and would be left out",
    ),
    "another text encoder": (
        lambda prompt: changed(prompt, "loader", file="narrow.safetensors"),
        r"the prompt is \[1, 13, 4096\], but LongCat-Video reads rows of 64 channels here: it is another model's prompt",
    ),
    "sigmas that do not end": (
        lambda prompt: changed(prompt, "sigmas", sigmas="1.0, 0.5, 0.2"),
        "must fall from step to step and end at 0; connect 'Trained Sigmas'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_gets_a_sentence(client: Client, name: str) -> None:
    change, said = BAD[name]
    result = client.run(change(copy.deepcopy(video())))
    assert result.status == "error" and re.search(said, result.error), result.messages
    assert "\n" not in result.error.strip()


def test_odd_sizes_are_told_before_the_run(client: Client) -> None:
    for name, value in (("width", 100), ("height", 65)):
        code, answer = client.post("/prompt", {"prompt": changed(video(), "start", **{name: value})})
        assert code == 400 and "no multiple of 16" in str(answer["node_errors"]["start"]["errors"])
