"""What people combine with the MODEL in a real ComfyUI: it works, or says in one sentence why not."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .client import CONTEXT_WINDOWS, Client, Prompt, between, bypassed, node, workflow

FRAMES = 14
LAYERS, WIDTH = 5, 256


def psnr_db(a: Tensor, b: Tensor) -> float:
    """Of latents, which are pictures in -1..1; infinite for equal ones."""
    return float(10 * torch.log10(4 / (a - b).double().square().mean()))


def exact(prompt: Prompt) -> Prompt:
    return bypassed(prompt)


@pytest.fixture
def lora(server: Client) -> str:
    """A LoRA on every layer's attention and MLP, each in one of the two ways in which trainers name keys."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(LAYERS):
        names = {f"diffusion_model.blocks.{layer}.qkv": 3 * WIDTH, f"lora_unet_blocks_{layer}_mlp_in": 4 * WIDTH}
        for name, width in names.items():
            tensors[f"{name}.lora_up.weight"] = torch.randn(width, 4, generator=generator) * 0.1
            tensors[f"{name}.lora_down.weight"] = torch.randn(4, WIDTH, generator=generator) * 0.1
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "tiny.safetensors")
    return "tiny.safetensors"


def test_lora_before_and_behind_the_cache_node(client: Client, lora: str) -> None:
    prompt, kind = workflow(frames=FRAMES), "LoraLoaderModelOnly"
    before = client.latent(between(prompt, kind, lora_name=lora, strength_model=1.0))
    behind = client.latent(between(prompt, kind, "", lora_name=lora, strength_model=1.0))
    off = client.latent(between(prompt, kind, lora_name=lora, strength_model=0.0))
    base = client.latent(prompt)
    assert "lora key not loaded" not in client.log()
    assert torch.equal(before, behind) and torch.equal(off, base)
    assert psnr_db(before, base) < 45
    without_cache_node = client.latent(exact(between(prompt, kind, lora_name=lora, strength_model=1.0)))
    assert torch.equal(without_cache_node[:, :, :10], before[:, :, :10]) and not torch.equal(without_cache_node, before)


def test_a_lora_on_a_weight_that_comfyui_does_not_patch_is_named(client: Client) -> None:
    folder = client.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file({"diffusion_model.blocks.3.modulation.diff": torch.ones(6, WIDTH)}, folder / "modulation.safetensors")
    prompt = workflow(frames=6)
    patched = between(prompt, "LoraLoaderModelOnly", lora_name="modulation.safetensors", strength_model=1.0)
    seen = len(client.log())
    assert torch.equal(client.latent(patched), client.latent(prompt))
    assert "without effect on it: LoRA on diffusion_model.blocks.3.modulation" in client.log()[seen:]


def test_partly_unloaded_weights(client: Client, lora: str) -> None:
    """As under --lowvram: most layers cast their weights, and apply LoRA to them, at every use."""
    prompt = between(workflow(frames=FRAMES), "LoraLoaderModelOnly", lora_name=lora, strength_model=1.0)
    partly = between(prompt, "TestingPartlyUnloaded", "", megabytes=12.0)
    assert torch.equal(client.latent(partly), client.latent(prompt))
    client.forget()
    said = client.said(partly)
    assert said["freed"] >= 12e6 and said["loaded again"] == said["freed"]
    assert said["cast layers"] > 20 and said["lora patches at cast time"] > 0


@pytest.mark.parametrize(("quantized", "floor_db"), [(False, 80.0), (True, 60.0)])
def test_a_video_of_a_batch_is_that_of_its_noise_alone(client: Client, quantized: bool, floor_db: float) -> None:
    """To rounding: matrix products of another size round otherwise, and a code that tips over shows more. Measured 105.6 dB and
    74.0 dB at the least (torch 2.13.0, CPU, 2026-11-20); other noise gives 42 to 48 dB."""

    def batch(*seeds: int) -> Prompt:
        prompt = workflow(frames=FRAMES)
        prompt[node(prompt, "QVGDemoWorldStart")]["inputs"]["batch_size"] = len(seeds)
        inputs = {"seeds": ",".join(map(str, seeds))}
        prompt[node(prompt, "RandomNoise")] = {"class_type": "TestingNoise", "inputs": inputs}
        return prompt if quantized else exact(prompt)

    together = client.latent(batch(1, 2, 3))
    alone = [client.latent(batch(seed)) for seed in (1, 2, 3)]
    for index, video in enumerate(alone):
        assert psnr_db(together[index : index + 1], video) > floor_db
    assert psnr_db(alone[0], alone[1]) < 55


@pytest.mark.parametrize("backend", ["inductor", "cudagraphs"])
def test_torch_compile(client: Client, backend: str) -> None:
    """Other lengths, other settings and exact memory in between: nothing of one run may be compiled into the next. Compiled code
    rounds otherwise; measured 96 to 109 dB exact (inductor, torch 2.13.0, CPU, 2026-11-20)."""
    for prompt in (workflow(frames=8), workflow(frames=FRAMES, span_frames=5), workflow(frames=11)):
        compiled = between(prompt, "TorchCompileModel", backend=backend)
        assert psnr_db(client.latent(exact(compiled)), client.latent(exact(prompt))) > 80
        assert psnr_db(client.latent(compiled), client.latent(prompt)) > 40


def test_other_attention_is_ignored_and_the_log_says_so(client: Client) -> None:
    prompt = workflow(frames=FRAMES)
    seen = len(client.log())
    assert torch.equal(client.latent(between(prompt, "TestingAttention")), client.latent(prompt))
    assert "without effect on it: optimized_attention_override, patches.attn1_patch" in client.log()[seen:]


def test_core_nodes_that_patch_other_networks_are_ignored_aloud(client: Client) -> None:
    prompt = workflow(frames=6)
    base, seen = client.latent(prompt), len(client.log())
    shrink = {"block_number": 3, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 0.35}
    shrink |= {"downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic"}
    assert torch.equal(client.latent(between(prompt, "PatchModelAddDownscale", **shrink)), base)
    assert "without effect on it: patches.input_block_patch_after_skip, patches.output_block_patch" in client.log()[seen:]


@pytest.mark.parametrize(("dtype", "low_db", "high_db"), [("fp16", 45, 80), ("bf16", 30, 60)])
def test_compute_dtype_is_honoured(client: Client, dtype: str, low_db: float, high_db: float) -> None:
    """Measured 57.6 and 46.4 dB (CPU, 2026-11-20): near the 32-bit result, and not it."""
    prompt = workflow(frames=FRAMES)
    assert low_db < psnr_db(client.latent(between(prompt, "ModelComputeDtype", dtype=dtype)), client.latent(prompt)) < high_db


@pytest.mark.parametrize(
    ("kind", "inputs", "sentence"),
    [
        ("EasyCache", {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}, "EasyCache and"),
        ("LazyCache", {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}, "EasyCache and"),
        ("PerturbedAttentionGuidance", {"scale": 3.0}, "a step ran the network 2 times"),
        ("WanContextWindowsManual", CONTEXT_WINDOWS, "context windows cut a video"),
    ],
)
def test_what_skips_or_repeats_steps_is_refused(client: Client, kind: str, inputs: dict[str, Any], sentence: str) -> None:
    error = client.run(between(workflow(frames=6), kind, **inputs)).error
    assert error.startswith(sentence) and ("take the node out" in error or "take out the node" in error)


def test_other_models_make_room_before_the_cache_is_taken(client: Client) -> None:
    prompt = workflow(frames=40)
    short = client.said(between(prompt, "TestingShortOfMemory", megabytes=100.0, other=True, elsewhere=False))
    assert short["before"] == ["BaseModel", "DemoWorldModel"] and short["after"] == ["DemoWorldModel"]
    peak = re.search(r"at its peak ([\d.]+) MB", short["report"])
    workspace = re.search(r"workspace beside it ([\d.]+)", short["report"])
    assert peak and workspace
    taken = 1e6 * (float(peak[1]) + float(workspace[1]))
    assert taken <= max(short["asked"]) <= 10 * taken
    plenty = client.said(between(prompt, "TestingShortOfMemory", megabytes=1e7, other=True, elsewhere=False))
    assert plenty["after"] == ["BaseModel", "DemoWorldModel"]


def test_own_weights_make_room_where_others_do_not_suffice(client: Client) -> None:
    prompt = workflow(frames=FRAMES)
    base = client.latent(prompt)
    short = between(prompt, "TestingShortOfMemory", megabytes=1.0, other=False, elsewhere=True)
    assert torch.equal(client.latent(short), base)
    client.forget()
    said = client.said(short)
    assert said["after"] == ["DemoWorldModel"] and said["cast layers"] > 20


def test_too_little_memory_is_said_before_the_run(client: Client) -> None:
    seen = len(client.log())
    said = client.said(between(workflow(frames=6), "TestingShortOfMemory", megabytes=1.0, other=False, elsewhere=False))
    assert said["after"] == ["DemoWorldModel"] and said["cast layers"] == 0
    assert re.search(r"QVG: the cache may take \d+ MB, but cpu has only 1 MB free; .* window_frames", client.log()[seen:])


def test_two_samplers_on_one_model_and_two_settings_in_one_queue(client: Client) -> None:
    prompt = workflow(frames=FRAMES)
    alone = client.latent(prompt)
    client.forget()
    both = copy.deepcopy(prompt)
    sampler = node(prompt, "SamplerCustomAdvanced")
    both["noise"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}}
    both["other"] = copy.deepcopy(prompt[sampler])
    both["other"]["inputs"]["noise"] = ["noise", 0]
    for name, source in (("save", sampler), ("save other", "other")):
        both[name] = {"class_type": "SaveLatent", "inputs": {"samples": [source, 0], "filename_prefix": f"two/{name}"}}
    pro = copy.deepcopy(prompt)
    pro[node(prompt, "QVGKVCache")]["inputs"]["cache.preset"] = "qvg-pro"
    queued = [client.queue(each) for each in (both, pro, prompt)]
    assert [client.wait(each).status for each in queued] == ["success"] * 3
    saved = {path.name.split("_0")[0]: load_file(str(path))["latent_tensor"] for path in (client.base / "output/two").iterdir()}
    assert torch.equal(saved["save"], alone) and not torch.equal(saved["save other"], alone)
    assert not torch.equal(client.latent(pro), alone) and torch.equal(client.latent(prompt), alone)


def test_of_two_cache_nodes_the_last_one_counts(client: Client) -> None:
    prompt = workflow(frames=FRAMES)
    pro = copy.deepcopy(prompt)
    pro[node(prompt, "QVGKVCache")]["inputs"]["cache.preset"] = "qvg-pro"
    inputs = {"cache": "preset", "cache.preset": "qvg-pro", "span_frames": 6}
    assert torch.equal(client.latent(between(prompt, "QVGKVCache", "", **inputs)), client.latent(pro))
    assert torch.equal(client.latent(between(prompt, "QVGKVCache", "", cache="exact")), client.latent(exact(prompt)))


def test_the_model_is_loaded_again_after_free(client: Client) -> None:
    prompt = workflow(frames=FRAMES)
    first, seen = client.latent(prompt), len(client.log())
    client.forget()
    assert torch.equal(client.latent(prompt), first)
    assert "Requested to load DemoWorldModel" in client.log()[seen:]


def test_a_failure_frees_the_cache_and_keeps_the_frames(client: Client) -> None:
    prompt = workflow(frames=FRAMES)
    whole, seen = client.latent(prompt), len(client.log())
    with client.new_files("output/QVG") as files:
        # Four given frames take one pass each, generated ones four: the 30th pass is a step of the eleventh frame.
        assert client.run(between(prompt, "TestingFailing", call=30)).error.strip() == "the lights went out"
    assert "ended by RuntimeError after block 10 of 14; the cache holds 0 bytes now" in client.log()[seen:]
    (file,) = files
    assert torch.equal(load_file(str(file))["latent_tensor"], whole[:, :, :10])
    usual = (client.base / "log").stat().st_mode
    assert file.stat().st_mode == usual and not list(file.parent.glob(".*"))
    assert torch.equal(client.latent(prompt), whole)


def test_frames_go_to_temp_where_the_output_folder_takes_none(client: Client) -> None:
    blocked = client.base / "output" / "QVG"
    aside = blocked.with_name("aside")
    if blocked.exists():
        blocked.rename(aside)
    blocked.write_text("a file where a folder should be")
    try:
        with client.new_files("temp/QVG") as files:
            client.run(between(workflow(frames=FRAMES), "TestingFailing", call=30))
    finally:
        blocked.unlink()
        if aside.exists():
            aside.rename(blocked)
    (file,) = files
    assert load_file(str(file))["latent_tensor"].shape[2] == 10


def test_a_full_disk_loses_no_video(client: Client) -> None:
    """SaveLatent fails; with room again the video is saved without sampling it again."""
    prompt = workflow(frames=40)
    sampler = node(prompt, "SamplerCustomAdvanced")
    prompt = {name: step for name, step in prompt.items() if step["class_type"] not in ("SaveVideo", "QVGCacheReport")}
    saved = {**prompt, "limit": _file_limit([sampler, 0], 1_000_000)}
    saved["save"] = {"class_type": "SaveLatent", "inputs": {"samples": ["limit", 0], "filename_prefix": "full/disk"}}
    try:
        assert client.run(saved).status == "error"
        saved["limit"]["inputs"]["bytes"] = -1
        again = client.run(saved)
    finally:
        _lift_the_limit(client)
    assert again.status == "success" and sampler in again.cached()
    whole = client.latent(prompt)
    files = [
        load_file(str(path))["latent_tensor"] for path in (client.base / "output/full").iterdir() if path.stat().st_size > 1e6
    ]
    assert len(files) == 1 and torch.equal(files[0], whole)


def test_an_interrupted_run_on_a_full_disk_says_that_frames_are_lost_and_leaves_no_rubbish(client: Client) -> None:
    prompt = between(workflow(frames=40), "TestingFailing", call=130)
    sampler = node(prompt, "SamplerCustomAdvanced")
    prompt["limit"] = _file_limit(prompt[sampler]["inputs"]["latent_image"], 1_000_000)
    prompt[sampler]["inputs"]["latent_image"] = ["limit", 0]
    seen = len(client.log())
    try:
        with client.new_files("output/QVG") as files:
            assert client.run(prompt).error.strip() == "the lights went out"
    finally:
        _lift_the_limit(client)
    # What was written while there was room is there, and becomes a latent when there is room again.
    (left,) = files
    assert left.is_dir() and left.name.startswith("unfinished-")
    assert "the finished frames could not be kept" in client.log()[seen:]
    with client.new_files("output/QVG") as files:
        assert client.run(workflow(frames=6)).status == "success"
    (latent,) = (file for file in files if file.suffix == ".latent")
    assert load_file(str(latent))["latent_tensor"].shape[2] > 4 and not left.exists()


def _file_limit(samples: list[Any], size: int) -> dict[str, Any]:
    return {"class_type": "TestingFileLimit", "inputs": {"samples": samples, "bytes": size}}


def _lift_the_limit(client: Client) -> None:
    empty = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    say = {"class_type": "TestingSay", "inputs": {"samples": ["limit", 0]}}
    client.forget()
    assert client.run({"empty": empty, "limit": _file_limit(["empty", 0], -1), "say": say}).status == "success"
