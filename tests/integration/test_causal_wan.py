"""ComfyUI's own causal Wan model, loader and sampler with QVG KV Cache between them, on a tiny random checkpoint."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, QVGConfig
from comfyui_qvg.qvg.study import study_method
from comfyui_qvg.qvg.study.bytes import predict
from safetensors.torch import load_file, save_file

from . import tiny_wan
from .client import Client, Prompt, between, bypassed

FRAMES, BLOCK = 25, 3  # the last block is short
COLS, ROWS = 6, 4
TOKENS = ROWS * COLS
EXACT = {"cache": "exact"}
QVG = {"cache": "preset", "cache.preset": "qvg", "span_frames": 6}
BALANCED = {"cache": "preset", "cache.preset": "balanced", "span_frames": 6}
# Classes of which nothing is to be left when a run is over.
LEFT = (
    "CausalRun",
    "KVCache",
    "LayerSlot",
    "ExactSpan",
    "QuantizedSpan",
    "TransformSpan",
    "StoredOnce",
    "WorldPlan",
    "StudyCache",
)
# Least PSNR against core in float32: measured 93.2, 47.4 and 52.8 dB less what noise of other seeds and shapes takes (ComfyUI
# 0.33.0, CPU, torch 2.13.0, 2026-11-30). Spans of 144 tokens are too short here for a basis of their own: with one `balanced` was
# at 64.5 dB, and the basis took over three times the bytes of the codes.
FLOOR_DB = {"16 bits": 88.0, "qvg": 42.0, "balanced": 47.0}


@pytest.fixture(autouse=True, scope="module")
def checkpoints(server: Client) -> None:
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    tiny_wan.write(folder / "causal.safetensors")
    tiny_wan.write(folder / "causal_bf16.safetensors", dtype=torch.bfloat16)
    tiny_wan.write(folder / "ordinary.safetensors", metadata={})


def native(cache: dict[str, Any] | None = None, frames: int = FRAMES, block: int = BLOCK, batch: int = 1) -> Prompt:
    """Core's graph, and our node in it unless `cache` is None."""
    model = ["cache", 0]
    size = {"width": 16 * COLS, "height": 16 * ROWS, "length": 4 * frames - 3, "batch_size": batch}
    links = {"noise": "noise", "guider": "guider", "sampler": "sampler", "sigmas": "sigmas", "latent_image": "latent"}
    steps: dict[str, tuple[str, dict[str, Any]]] = {
        "loader": ("UNETLoader", {"unet_name": "causal.safetensors", "weight_dtype": "default"}),
        "cache": ("QVGKVCache", {"model": ["loader", 0], **(cache or EXACT)}),
        "prompt": ("TestingPrompt", {"seed": 1, "prompts": 1, "tokens": 12}),
        "latent": ("EmptyARVideoLatent", size),
        "guider": ("BasicGuider", {"model": model, "conditioning": ["prompt", 0]}),
        "sigmas": ("BasicScheduler", {"model": model, "scheduler": "simple", "steps": 2, "denoise": 1.0}),
        "sampler": ("SamplerARVideo", {"num_frame_per_block": block}),
        "noise": ("RandomNoise", {"noise_seed": 5}),
        "sample": ("SamplerCustomAdvanced", {name: [source, 0] for name, source in links.items()}),
        "report": ("QVGCacheReport", {"model": model, "latent": ["sample", 0]}),
    }
    prompt = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in steps.items()}
    return bypassed(prompt) if cache is None else prompt


def changed(prompt: Prompt, name: str, kind: str | None = None, **inputs: Any) -> Prompt:
    """With another class or other inputs of one node."""
    prompt = copy.deepcopy(prompt)
    prompt[name] = {"class_type": kind or prompt[name]["class_type"], "inputs": {**prompt[name]["inputs"], **inputs}}
    return prompt


def add(prompt: Prompt, name: str, kind: str, /, **inputs: Any) -> None:
    prompt[name] = {"class_type": kind, "inputs": inputs}


def with_start_image(prompt: Prompt, cols: int = COLS, rows: int = ROWS) -> Prompt:
    """Through core's ARVideoI2V, behind the cache node."""
    width, height = 16 * cols, 16 * rows
    start = changed(prompt, "guider", model=["start", 0])
    add(start, "vae", "TestingVAE")
    add(start, "image", "EmptyImage", width=width, height=height, batch_size=1, color=4477866)
    inputs = {"width": width, "height": height, "length": prompt["latent"]["inputs"]["length"], "batch_size": 1}
    add(
        start,
        "start",
        "ARVideoI2V",
        model=prompt["guider"]["inputs"]["model"],
        vae=["vae", 0],
        start_image=["image", 0],
        **inputs,
    )
    start["report"]["inputs"]["model"] = ["start", 0]
    return start


def psnr_db(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of b against a, relative to a's range."""
    return float(20 * torch.log10(a.max() - a.min()) - 10 * torch.log10((a - b).double().square().mean()))


def record(client: Client, prompt: Prompt) -> dict[str, Any]:
    """What QVG Cache Report hands on, in numbers, and its text as "text"."""
    prompt = copy.deepcopy(prompt)
    add(prompt, "record", "TestingRecord", report=["report", 0])
    result = client.run(prompt)
    assert result.status == "success", result.messages
    numbers: dict[str, Any] = json.loads(result.outputs["record"]["text"][0])
    return numbers | {"text": result.outputs["report"]["text"][0]}


def predicted(codec: str, frames: int = FRAMES, batch: int = 1, window: int | None = None) -> list[int]:
    """The cache's bytes once each frame's block has become history."""
    config = {"none": QVGConfig.preset("exact"), "qvg": QVGConfig.preset("qvg"), "klt": QVGConfig.preset("balanced")}[codec]
    config = config.with_changes(window_frames=window, **({} if codec == "none" else {"span_frames": 6}))
    dtype = torch.float32 if codec == "none" else torch.bfloat16
    spec = CacheSpec(tiny_wan.LAYERS, tiny_wan.HEADS, tiny_wan.HEAD_DIM, TOKENS, BLOCK, batch, dtype)
    ends = [min(frames, (frame // BLOCK + 1) * BLOCK) for frame in range(frames)]
    return [spec.predict(config, end).total for end in ends]


def test_bypass_and_exact_are_core_bit_for_bit_and_presets_are_near(client: Client, record_property: Any) -> None:
    core = client.latent(native())
    assert core.shape == (1, 16, FRAMES, 2 * ROWS, 2 * COLS) and core.isfinite().all()
    assert torch.equal(core, client.latent(native(EXACT)))
    sixteen, qvg, balanced = (client.latent(native(cache)) for cache in ({**QVG, "sink_frames": FRAMES}, QVG, BALANCED))
    measured = {"16 bits": psnr_db(core, sixteen), "qvg": psnr_db(core, qvg), "balanced": psnr_db(core, balanced)}
    record_property("psnr_db", measured)
    # All frames are sink: our attention and positions over keys of 16 bits.
    assert measured["16 bits"] > FLOOR_DB["16 bits"], measured
    # One block of sink, two in the first span, one recent.
    assert psnr_db(core[:, :, :12], qvg[:, :, :12]) > FLOOR_DB["16 bits"]
    for name in ("qvg", "balanced"):
        assert FLOOR_DB[name] < measured[name] < measured["16 bits"] - 3, measured
    client.forget()
    assert torch.equal(core, client.latent(native())), "our patches stayed on the model"
    assert torch.equal(balanced, client.latent(native(BALANCED))), "a second run differs"


@pytest.mark.parametrize("name", ["FLOWCACHE_SOFT_PRUNE_INT4", "RTN_INT4_RECENT2"])
def test_a_method_of_the_study_takes_what_it_should(client: Client, name: str) -> None:
    """Block by block, by core's sampler; and nothing of it is left on the model."""
    spec = CacheSpec(tiny_wan.LAYERS, tiny_wan.HEADS, tiny_wan.HEAD_DIM, TOKENS, BLOCK)
    said = record(client, native({"cache": "study", "cache.method": name}))
    ends = [min(FRAMES, (frame // BLOCK + 1) * BLOCK) for frame in range(FRAMES)]
    assert said["cache_bytes"] == [predict(study_method(name), spec, end).total for end in ends]
    assert f"cache: {name}\n" in said["text"] and not any(said["left"].values())
    core, near = client.latent(native()), client.latent(native({"cache": "study", "cache.method": name}))
    assert near.isfinite().all() and not torch.equal(core, near) and psnr_db(core, near) > 20


def test_a_window_forgets(client: Client) -> None:
    said = record(client, native({**BALANCED, "window_frames": 15}))
    assert said["cache_bytes"] == predicted("klt", window=15) != predicted("klt")
    exact = record(client, native({"cache": "exact", "window_frames": 12}))
    assert exact["cache_bytes"] == predicted("none", window=12)
    # Nine frames besides the next block; behind the last, short one the oldest block is still there, part of it out of sight.
    assert exact["cache_bytes"][8] == predicted("none")[8] < max(exact["cache_bytes"]) <= predicted("none")[11]


def test_the_memory_manager_is_asked_for_the_cache_and_for_one_block(client: Client) -> None:
    prompt = between(native(BALANCED), "TestingMemoryAsked")
    said = client.said(prompt)
    assert max(shape[2] for shape in said["shapes"]) == BLOCK and all(
        shape[3:] == [2 * ROWS, 2 * COLS] for shape in said["shapes"]
    )
    exact = 2 * 2 * 256 * TOKENS * FRAMES * 2
    assert predicted("klt")[-1] < max(said["asked"]) < 6 * exact


def test_the_model_is_unloaded_and_loaded_again(client: Client) -> None:
    client.latent(native(BALANCED))
    client.free(free_memory=False)
    other = changed(native(BALANCED), "noise", noise_seed=6)
    again = client.latent(other)
    client.forget()
    assert torch.equal(again, client.latent(other)) and not torch.equal(again, client.latent(native(BALANCED)))


@pytest.mark.parametrize(("cache", "codec"), [(EXACT, "none"), (QVG, "qvg"), (BALANCED, "klt")], ids=["exact", "qvg", "balanced"])
def test_bytes_grow_by_block_and_are_those_predicted(client: Client, cache: dict[str, Any], codec: str) -> None:
    said = record(client, native(cache))
    assert said["cache_bytes"] == predicted(codec) and said["config"] == codec
    assert said["cache_bytes"][0] < said["cache_bytes"][-1] / (8 if codec == "none" else 1.5)
    assert sum(said["components"].values()) == said["cache_bytes"][-1] and len(said["seconds"]) == FRAMES
    assert said["exact_bytes"][-1] == 2 * 2 * 256 * TOKENS * FRAMES * 2
    assert f"causal Wan, {FRAMES} latent frames (0 given)" in said["text"]
    assert said["left"] == dict.fromkeys(LEFT, 0), "memory outlives the run"


def test_frame_after_frame(client: Client) -> None:
    """One frame per block, as frame-wise checkpoints are trained."""
    core = client.latent(native(frames=9, block=1))
    assert torch.equal(core, client.latent(native(EXACT, frames=9, block=1)))
    qvg = client.latent(native({**QVG, "span_frames": 2}, frames=9, block=1))
    assert FLOOR_DB["qvg"] < psnr_db(core, qvg) < FLOOR_DB["16 bits"]


@pytest.mark.parametrize("cache", [EXACT, BALANCED], ids=["exact", "balanced"])
def test_three_samplers_in_one_graph_the_last_one_bypassed(client: Client, cache: dict[str, Any]) -> None:
    """Each run has a memory of its own, and the model that they share is core's again for the third."""
    prompt = native(cache, frames=16)
    add(prompt, "noise2", "RandomNoise", noise_seed=6)
    add(prompt, "guider2", "BasicGuider", model=["loader", 0], conditioning=["prompt", 0])
    prompt["sample2"] = changed(prompt, "sample", noise=["noise2", 0])["sample"]
    prompt["sample3"] = changed(prompt, "sample2", guider=["guider2", 0])["sample2"]
    names = ("sample", "sample2", "sample3")
    for name in names:
        add(prompt, f"save {name}", "SaveLatent", samples=[name, 0], filename_prefix=f"latents/{name} {cache['cache']}")
    assert client.run(prompt).status == "success"
    files = [next((client.base / "output" / "latents").glob(f"{name} {cache['cache']}_*.latent")) for name in names]
    first, second, third = (load_file(str(file))["latent_tensor"] for file in files)
    client.forget()
    alone = native(cache, frames=16)
    assert torch.equal(first, client.latent(alone))
    assert torch.equal(second, client.latent(changed(alone, "noise", noise_seed=6)))
    assert torch.equal(third, client.latent(changed(native(frames=16), "noise", noise_seed=6)))


@pytest.mark.parametrize(("cache", "codec"), [(EXACT, "none"), (BALANCED, "klt")], ids=["exact", "balanced"])
def test_a_batch(client: Client, cache: dict[str, Any], codec: str) -> None:
    prompt = native(cache, batch=2)
    core, ours = client.latent(bypassed(prompt)), client.latent(prompt)
    assert len(ours) == 2 and not torch.equal(ours[:1], ours[1:])
    if codec == "none":
        assert torch.equal(core, ours)
    else:
        for video in range(2):
            assert FLOOR_DB["balanced"] < psnr_db(core[video], ours[video]) < FLOOR_DB["16 bits"]
    assert record(client, prompt)["cache_bytes"] == predicted(codec, batch=2)


def test_lora_before_and_behind_the_cache_node(client: Client) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(tiny_wan.LAYERS):
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "ffn.0"):
            for side, shape in (("lora_up", (256, 4)), ("lora_down", (4, 256))):
                name = f"diffusion_model.blocks.{layer}.{part}.{side}.weight"
                tensors[name] = torch.randn(*shape, generator=generator) * 0.1
    folder = client.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "wan.safetensors")

    def with_lora(cache: dict[str, Any], place: str = "QVGKVCache") -> Prompt:
        return between(native(cache), "LoraLoaderModelOnly", place, lora_name="wan.safetensors", strength_model=1.0)

    core = client.latent(bypassed(with_lora(EXACT)))
    assert torch.equal(core, client.latent(with_lora(EXACT))) and torch.equal(core, client.latent(with_lora(EXACT, "")))
    assert "lora key not loaded" not in client.log() and psnr_db(client.latent(native()), core) < 40
    before, behind = client.latent(with_lora(BALANCED)), client.latent(with_lora(BALANCED, ""))
    assert torch.equal(before, behind) and FLOOR_DB["balanced"] < psnr_db(core, before) < FLOOR_DB["16 bits"]


def test_the_last_of_two_cache_nodes_counts(client: Client) -> None:
    twice = native(QVG)
    add(twice, "first", "QVGKVCache", model=["loader", 0], **BALANCED)
    twice["cache"]["inputs"]["model"] = ["first", 0]
    assert record(client, twice)["cache_bytes"] == predicted("qvg")
    assert torch.equal(client.latent(twice), client.latent(native(QVG)))


def test_partly_unloaded_weights(client: Client) -> None:
    """As under --lowvram: layers cast their weights at every use."""
    partly = between(native(BALANCED), "TestingPartlyUnloaded", "", megabytes=4.0)
    assert torch.equal(client.latent(partly), client.latent(native(BALANCED)))


def test_sixteen_bits_and_a_start_image(client: Client) -> None:
    """The network in bf16, whose cache core keeps in bf16, too; and ARVideoI2V, whose image is a block of its own."""

    def prompt(cache: dict[str, Any] | None) -> Prompt:
        return with_start_image(changed(native(cache), "loader", unet_name="causal_bf16.safetensors"))

    core = client.latent(prompt(None))
    assert torch.equal(core, client.latent(prompt(EXACT)))
    qvg = prompt({**QVG, "sink_frames": 0})
    assert torch.equal(core[:, :, :1], client.latent(qvg)[:, :, :1])
    said = record(client, qvg)
    assert said["given_frames"] == 1 and len(said["cache_bytes"]) == FRAMES
    one = said["exact_bytes"][0]
    assert one == 2 * 2 * 256 * TOKENS * 2 and said["cache_bytes"][:4] == [one, 4 * one, 4 * one, 4 * one]
    assert said["ratio"] > 1.5


def test_weights_of_eight_bits(client: Client) -> None:
    """ComfyUI 0.33.0 fails here without our node: it keeps the cache in the weights' format, in which a CPU cannot multiply. We
    keep what the network computes."""
    prompt = changed(native(EXACT, frames=9), "loader", weight_dtype="fp8_e4m3fn")
    assert 15 < psnr_db(client.latent(native(frames=9)), client.latent(prompt)) < 60
    assert record(client, prompt)["cache_bytes"] == predicted("none", frames=9)


def test_compiled(client: Client) -> None:
    """Of two lengths, so that nothing of one run is compiled into the next. Measured 83 dB (inductor, torch 2.13.0, CPU,
    2026-11-20)."""
    for frames in (10, 16):
        prompt = native(BALANCED, frames=frames)
        compiled = client.latent(between(prompt, "TorchCompileModel", "", backend="inductor"))
        assert psnr_db(client.latent(prompt), compiled) > 60


def test_interrupt_and_failure_free_the_cache_and_leave_a_working_server(client: Client) -> None:
    core = client.latent(native(frames=10))
    seen = len(client.log())
    prompt_id = client.queue(between(changed(native(BALANCED, frames=250), "sigmas", steps=10), "TestingPasses", ""))
    client.until_logged("testing: pass 15", seen)  # of the second block: each has ten steps and a clean pass
    assert client.post("/interrupt", {})[0] == 200
    result = client.wait(prompt_id)
    assert any(kind == "execution_interrupted" for kind, _ in result.messages)
    assert re.search(r"QVG: interrupted after block [1-9]\d* of 84; the cache holds 0 bytes now", client.log()[seen:])
    seen = len(client.log())
    failing = between(native(BALANCED, frames=10), "TestingFailing", "", call=8)
    assert "the lights went out" in client.run(failing).error
    assert "QVG: ended by RuntimeError after block 2 of 4; the cache holds 0 bytes now" in client.log()[seen:]
    client.forget()
    assert torch.equal(core, client.latent(native(frames=10)))
    assert record(client, native(BALANCED, frames=10))["left"] == dict.fromkeys(LEFT, 0)


def test_compare_shows_exact_and_two_bits(client: Client) -> None:
    prompt = native(BALANCED)
    prompt["cache2"] = changed(prompt, "cache")["cache"] | {"inputs": {"model": ["loader", 0], **EXACT}}
    prompt["guider2"] = changed(prompt, "guider", model=["cache2", 0])["guider"]
    prompt["sample2"] = changed(prompt, "sample", guider=["guider2", 0])["sample"]
    add(prompt, "report2", "QVGCacheReport", model=["cache2", 0], latent=["sample2", 0])
    for name in ("sample", "sample2"):
        add(prompt, f"pictures {name}", "TestingPictures", samples=[name, 0])
    images = {"images_a": ["pictures sample2", 0], "images_b": ["pictures sample", 0]}
    add(prompt, "compare", "QVGCompare", **images, report_a=["report2", 0], report_b=["report", 0], fps=16.0, scale=1)
    result = client.run(prompt)
    assert result.status == "success", result.messages
    text = result.outputs["compare"]["text"][0]
    assert "PSNR of B against A" in text and "A: exact" in text and "B: KLT" in text
    assert "causal Wan" in result.outputs["report"]["text"][0]


def bad_graphs() -> dict[str, tuple[Prompt, str]]:
    """Graphs that cannot work, and what is said about them."""
    good = native(BALANCED, frames=8)
    guided = changed(good, "guider")
    guider = {"model": ["cache", 0], "positive": ["prompt", 0], "negative": ["prompt", 0], "cfg": 3.0}
    add(guided, "guider", "CFGGuider", **guider)
    masked = changed(good, "sample", latent_image=["masked", 0])
    add(masked, "mask", "SolidMask", value=0.5, width=96, height=64)
    add(masked, "masked", "SetLatentNoiseMask", samples=["latent", 0], mask=["mask", 0])
    split = changed(good, "sample", sigmas=["split", 0])
    add(split, "split", "SplitSigmas", sigmas=["sigmas", 0], step=1)
    euler = changed(good, "sampler", "KSamplerSelect", sampler_name="euler")
    easy = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    forked = native(EXACT, frames=8)
    add(forked, "loader", "TestingForeignModel", kind="forked")
    init = "has no init_kv_caches(batch_size, max_seq_len, device, dtype), which QVG attaches to; ComfyUI 0.21 to 0.33"
    return {
        "forked": (forked, init),
        "cfg": (guided, "cfg is 3.0, but a causal Wan model remembers one pass"),
        "sampler": (euler, "the sampler is sample_euler, which does not run this model block by block"),
        "our sampler": (
            changed(good, "sampler", "QVGSampler"),
            "the sampler is sample_blocks, which does not run this model block by block",
        ),
        "mask": (masked, "the latent has a noise mask, which Sampler AR Video cannot follow"),
        "sigmas": (split, "but must end at 0: every block is finished before the next one begins"),
        "start": (
            with_start_image(good, 2, 2),
            "became a latent of [1, 16, 1, 4, 4], but the latent to sample is [1, 16, 8, 8, 12]",
        ),
        "ordinary": (changed(good, "loader", unet_name="ordinary.safetensors"), "WAN21 has no KV cache"),
        "window": (changed(good, "cache", window_frames=6), "window_frames is 6, but"),
        "two prompts": (changed(good, "prompt", prompts=2), "a step ran the network for more than the 1 video(s) of the latent"),
        "attention": (between(good, "TestingOtherAttention", ""), "another node has replaced this model's self-attention"),
        "report": (
            changed(good, "report", model=["loader", 0]),
            "this MODEL's cache is ComfyUI's own, of which nothing is counted",
        ),
        "step cache": (between(good, "EasyCache", "", **easy), "EasyCache and LazyCache skip steps"),
    }


@pytest.mark.parametrize("name", bad_graphs())
def test_what_cannot_work_gets_a_sentence(client: Client, name: str) -> None:
    prompt, sentence = bad_graphs()[name]
    result = client.run(prompt)
    assert result.status == "error" and sentence in result.error


def test_after_all_that_core_is_as_it_was(client: Client) -> None:
    """None of the refusals above has left anything behind."""
    core = client.latent(native())
    client.forget()
    assert torch.equal(core, client.latent(native(EXACT)))
