"""What QVG KV Cache can do beside the codec on ComfyUI's causal Wan: spans in CPU memory, and a prompt's padding read once."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, QVGConfig
from safetensors.torch import save_file

from . import tiny_wan
from .client import Client, Prompt, between, bypassed, node, workflow
from .test_causal_wan import (  # the fixture writes the checkpoints
    BALANCED,
    BLOCK,
    EXACT,
    FRAMES,
    QVG,
    TOKENS,
    add,
    changed,
    checkpoints,
    native,
    psnr_db,
    record,
)

__all__ = ["checkpoints"]

LAYERS, WIDTH = tiny_wan.LAYERS, tiny_wan.HEADS * tiny_wan.HEAD_DIM
WORDS, PADDED = 24, 512
# Least PSNR of the same run with padding merged: rounding of float32 (measured 108.3 dB with all frames in 16 bits, ComfyUI
# 0.33.0, CPU, torch 2.13.0, 2026-11-20), and what an encoder makes of it, for which a value on the border between two codes goes
# the other way (measured 72.9 dB; the codes' own error: 64.5).
MERGED_FLOOR_DB, ENCODED_FLOOR_DB = 100.0, 65.0


def away(cache: dict[str, Any], **more: Any) -> Prompt:
    """With spans that live elsewhere than the network, which on this machine takes a second name for the CPU."""
    return between(native({**cache, "offload": "cpu"}, **more), "TestingHomeElsewhere", "")


@pytest.mark.parametrize("cache", [QVG, BALANCED], ids=["qvg", "balanced"])
def test_offloaded_spans_give_the_same_video(client: Client, cache: dict[str, Any]) -> None:
    here = client.latent(native(cache))
    assert torch.equal(here, client.latent(native({**cache, "offload": "cpu"})))
    assert torch.equal(here, client.latent(away(cache)))
    assert torch.equal(here, client.latent(away({**cache, "read": "direct"}))) == torch.equal(
        here, client.latent(native({**cache, "read": "direct"}))
    )


def test_the_report_says_where_the_bytes_are(client: Client) -> None:
    said = record(client, away(BALANCED))
    config = QVGConfig.preset("balanced").with_changes(span_frames=6, offload="cpu")
    spec = CacheSpec(LAYERS, tiny_wan.HEADS, tiny_wan.HEAD_DIM, TOKENS, BLOCK)
    sizes, places = spec.predict(config, FRAMES), said["placement"]
    assert said["cache_bytes"][-1] == sizes.total and places["device"] == sizes.exact
    assert places["home"] == sizes.total - sizes.exact == places["copied"], "two layers, and the network has two"
    line = f"offload cpu: {places['home'] / 1e6:.2f} MB in CPU memory; {places['device'] / 1e6:.2f} MB on the device, and copies"
    assert line in said["text"]
    assert not any(said["left"].values()), "memory outlives the run"
    at_home = record(client, native({**BALANCED, "offload": "cpu"}))
    assert at_home["placement"] == {"device": sizes.total, "home": 0, "copied": 0}
    assert "offload cpu: nothing to move, the model runs on cpu" in at_home["text"]
    assert "offload" not in record(client, native({**EXACT, "offload": "cpu"}))["text"]


def test_offload_with_a_batch_a_lora_and_partly_unloaded_weights(client: Client) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(LAYERS):
        for part in ("self_attn.q", "cross_attn.k", "cross_attn.v", "ffn.0"):
            for side, shape in (("lora_up", (WIDTH, 4)), ("lora_down", (4, WIDTH))):
                name = f"diffusion_model.blocks.{layer}.{part}.{side}.weight"
                tensors[name] = torch.randn(*shape, generator=generator) * 0.1
    folder = client.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "options.safetensors")

    def all_of_it(prompt: Prompt) -> Prompt:
        prompt = between(prompt, "LoraLoaderModelOnly", lora_name="options.safetensors", strength_model=1.0)
        return between(prompt, "TestingPartlyUnloaded", "", megabytes=4.0)

    here = client.latent(all_of_it(native(BALANCED, batch=2)))
    assert torch.equal(here, client.latent(all_of_it(away(BALANCED, batch=2))))
    assert not torch.equal(here, client.latent(away(BALANCED, batch=2))), "the LoRA has an effect"


def test_interrupt_and_failure_leave_nothing_of_an_offloaded_cache(client: Client) -> None:
    seen = len(client.log())
    prompt_id = client.queue(between(changed(away(BALANCED, frames=250), "sigmas", steps=10), "TestingPasses", ""))
    client.until_logged("testing: pass 15", seen)  # of the second block: each has ten steps and a clean pass
    assert client.post("/interrupt", {})[0] == 200
    assert any(kind == "execution_interrupted" for kind, _ in client.wait(prompt_id).messages)
    assert re.search(r"QVG: interrupted after block [1-9]\d* of 84; the cache holds 0 bytes now", client.log()[seen:])
    assert "the lights went out" in client.run(between(away(BALANCED), "TestingFailing", "", call=20)).error
    client.forget()
    short = away(BALANCED, frames=10)
    assert not any(record(client, short)["left"].values())
    assert torch.equal(client.latent(native(BALANCED, frames=10)), client.latent(short))


def test_the_demo_world_s_spans_may_be_elsewhere_too(client: Client) -> None:
    prompt = workflow()
    far = copy.deepcopy(prompt)
    far[node(far, "QVGKVCache")]["inputs"]["offload"] = "cpu"
    far = between(far, "TestingHomeElsewhere", "")
    assert torch.equal(client.latent(prompt), client.latent(far))
    result = client.run(far)
    assert re.search(r"offload cpu: \d\.\d\d MB in CPU memory", result.outputs[node(far, "QVGCacheReport")]["text"][0])


def test_tokens_are_merged_where_they_are_alike(client: Client) -> None:
    """At the least threshold that there is random weights find some alike; the exact mode merges too, and a report says it."""
    for cache in (BALANCED, EXACT):
        prompt = native({**cache, "merge": 0.5, "merge_key": "last"}, frames=16)
        said = record(client, prompt)["text"]
        found = re.search(r"merged: (\d+) tokens became (\d+) rows", said)
        assert found is not None and 0 < int(found[2]) <= int(found[1]), said
        assert "merged from 0.5 on (key: last)" in said
        assert torch.equal(client.latent(prompt), client.latent(prompt))
    said = client.run(native({**BALANCED, "merge": 0.3}, frames=10)).error
    assert "merge is 0.3, but must be 0 (off) or a cosine from 0.5 to 1; start with 0.99" in said
    said = client.run(native({**BALANCED, "merge": 0.99, "window_frames": 12}, frames=10)).error
    assert "a row stands for tokens of several frames" in said


def padded(cache: dict[str, Any] | None, words: int = WORDS, merge: bool = True, **more: Any) -> Prompt:
    """With a prompt as the text encoder gives it, 512 tokens of which most are padding."""
    prompt = native(cache if cache is None else {**cache, "merge_padding": merge}, **more)
    return changed(prompt, "prompt", "TestingPaddedPrompt", seed=1, tokens=words, length=PADDED)


def test_merged_padding_is_the_same_video_up_to_rounding(client: Client, record_property: Any) -> None:
    sixteen = {**BALANCED, "sink_frames": FRAMES}
    measured = {
        name: psnr_db(client.latent(padded(cache, merge=False)), client.latent(padded(cache)))
        for name, cache in (("16 bits", sixteen), ("balanced", BALANCED))
    }
    record_property("psnr_db", measured)
    assert measured["16 bits"] > MERGED_FLOOR_DB and measured["balanced"] > ENCODED_FLOOR_DB, measured
    merged = client.latent(padded(BALANCED))
    said = record(client, padded(BALANCED))
    per_key = LAYERS * 2 * WIDTH * 4
    assert said["prompt"] == {"keys": PADDED, "keys_read": WORDS + 1, "nbytes": (WORDS + 1) * (per_key + LAYERS * 4)}
    assert f"{WORDS + 1} keys a layer for {PADDED}, its padding merged" in said["text"]
    whole = record(client, padded(BALANCED, merge=False))
    assert whole["prompt"] == {"keys": PADDED, "keys_read": PADDED, "nbytes": PADDED * per_key}
    assert f"prompt: {PADDED * per_key / 1e6:.2f} MB for cross-attention, {PADDED} keys a layer" in whole["text"]
    client.forget()
    assert torch.equal(merged, client.latent(padded(BALANCED))), "a second run differs"
    assert torch.equal(client.latent(padded(None)), client.latent(padded(EXACT, merge=False))), "our patches stayed on the model"


def test_nothing_of_a_prompt_is_left(client: Client) -> None:
    prompt = padded(BALANCED, frames=10)
    add(prompt, "alive", "TestingAlive", samples=["sample", 0], names="MergedPrompt,CausalRun,KVCache")
    result = client.run(prompt)
    assert result.status == "success" and json.loads(result.outputs["alive"]["text"][0]) == {
        "MergedPrompt": 0,
        "CausalRun": 0,
        "KVCache": 0,
    }


def test_exact_stays_what_a_bypassed_node_gives(client: Client) -> None:
    seen = len(client.log())
    prompt = padded(EXACT, frames=10)
    assert torch.equal(client.latent(bypassed(prompt)), client.latent(prompt))
    said = client.log()[seen:]
    assert said.count("QVG: merge_padding has no effect: exact is to be what a bypassed node gives") == 1
    assert record(client, prompt)["prompt"]["keys_read"] == PADDED


def test_a_prompt_without_padding_is_left_as_it_is(client: Client) -> None:
    seen = len(client.log())
    plain, merged = (client.latent(padded(BALANCED, PADDED, merge, frames=10)) for merge in (False, True))
    assert torch.equal(plain, merged)
    assert client.log()[seen:].count("QVG: the prompt has no padding whose rows are identical") == 1
    assert record(client, padded(BALANCED, PADDED, frames=10))["prompt"]["keys_read"] == PADDED


@pytest.mark.parametrize("words", [0, 1, 511])
def test_prompts_of_awkward_lengths(client: Client, words: int) -> None:
    """All padding, hardly any words, and one row of padding, of which nothing can be merged."""
    plain, merged = (client.latent(padded(BALANCED, words, merge, frames=7)) for merge in (False, True))
    assert psnr_db(plain, merged) > MERGED_FLOOR_DB
    assert record(client, padded(BALANCED, words, frames=7))["prompt"]["keys_read"] == words + 1


def test_merged_in_sixteen_bits_in_a_batch_with_all_else(client: Client) -> None:
    """In 16 bits two rows stand for the padding, so that their logarithms are exact enough."""

    def prompt(merge: bool) -> Prompt:
        two = changed(padded(BALANCED, merge=merge, batch=2), "loader", unet_name="causal_bf16.safetensors")
        return between(between(two, "TestingPartlyUnloaded", "", megabytes=2.0), "TestingHomeElsewhere", "")

    plain, merged = client.latent(prompt(False)), client.latent(prompt(True))
    # What bf16's own rounding makes of the network's: not one part in 256 of the signal.
    assert psnr_db(plain, merged) > 30
    assert record(client, prompt(True))["prompt"]["keys_read"] in (WORDS + 1, WORDS + 2)


def test_merged_in_a_compiled_network(client: Client) -> None:
    prompt = padded(BALANCED, frames=10)
    compiled = client.latent(between(prompt, "TorchCompileModel", "", backend="inductor"))
    assert psnr_db(client.latent(prompt), compiled) > 60


def test_another_node_s_cross_attention_is_left_alone(client: Client) -> None:
    seen = len(client.log())
    plain = client.latent(padded(BALANCED, merge=False, frames=10))
    before = between(padded(BALANCED, frames=10), "TestingOtherCrossAttention")
    assert psnr_db(plain, client.latent(before)) > MERGED_FLOOR_DB
    assert "merge_padding has no effect on this model: another node has replaced its cross-attention" in client.log()[seen:]
    behind = between(padded(BALANCED, frames=10), "TestingOtherCrossAttention", "")
    assert psnr_db(plain, client.latent(behind)) > MERGED_FLOOR_DB


def test_a_model_that_attends_to_an_image_is_left_alone(client: Client) -> None:
    widgets = {"bits_k": 2.0, "bits_v": 2.0, "clusters": 0, "transform": "klt", "spans_per_codebook": 8}
    seen, prompt = len(client.log()), padded({"cache": "klt", **{f"cache.{name}": value for name, value in widgets.items()}})
    prompt["loader"] = {"class_type": "TestingForeignModel", "inputs": {"kind": "causal, images"}}
    client.run(prompt)
    assert "merge_padding has no effect on this model: it attends to an image beside the prompt" in client.log()[seen:]


def test_two_cache_nodes_the_last_one_merges_or_does_not(client: Client) -> None:
    for first, last in ((True, False), (False, True)):
        prompt = padded(BALANCED, merge=last, frames=10)
        add(prompt, "first", "QVGKVCache", model=["loader", 0], **{**QVG, "merge_padding": first})
        prompt["cache"]["inputs"]["model"] = ["first", 0]
        assert torch.equal(client.latent(prompt), client.latent(padded(BALANCED, merge=last, frames=10)))
        assert record(client, prompt)["prompt"]["keys_read"] == (WORDS + 1 if last else PADDED)
