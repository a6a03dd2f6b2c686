"""Plans of a model whose video is made of segments, and the operations that a segment takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import ConfigError, QVGConfig
from comfyui_qvg.qvg.config import PRESETS
from comfyui_qvg.qvg.models.longcat import (
    ConditionCache,
    LongCat,
    LongCatConfig,
    LongCatSettings,
    Prompt,
    SegmentFrames,
    load_longcat,
)
from comfyui_qvg.qvg.models.longcat.operations import segment_operations
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.plan import Plan, Video, Weights, plan
from comfyui_qvg.qvg.plan.activations import Block, activations
from comfyui_qvg.qvg.plan.report import GB, report
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.utils.flop_counter import FlopCounterMode

from ... import golden_longcat as given
from ...helpers import LiveBytes

NETWORK = networks()["longcat-13b"]
TWO_SEGMENTS = 93 + 80


def _plan(preset: str = "balanced", pictures: int = TWO_SEGMENTS, gigabytes: int = 24, **changes: Any) -> Plan:
    video = Video(832, 480, pictures, **changes)
    return plan(NETWORK, video, PRESETS[preset], gigabytes * GB, Weights("fp8"), triton=True)


@pytest.mark.parametrize("condition", [4, 19])
@pytest.mark.parametrize("preset", ["exact", "qvg", "balanced", "fewest-bytes"])
def test_cache_terms_are_what_a_memory_counts(preset: str, condition: int) -> None:
    """One head of the full size's tokens a head, in two layers; the others are like it."""
    shape = LongCatConfig(layers=2, heads=1)
    network = replace(NETWORK, layers=2, heads=1, token_pixels=160)
    found = plan(network, Video(800, 480, TWO_SEGMENTS, block_frames=24 - condition), PRESETS[preset])
    with ConditionCache(shape, 6, 10, condition, PRESETS[preset]) as cache:
        record = cache.recording()
        for layer in range(2):
            record.keep(layer, *(torch.randn(1, 1, 15 * condition, 128).bfloat16() for _ in range(2)))
        assert cache.nbytes().total == found.cache_end_bytes
    assert found.exact_cache_bytes == shape.condition_spec(6, 10, condition).exact_bytes(condition)


def test_the_papers_protocol_to_the_byte() -> None:
    """19 latent frames in one span with 256 centroids: 67.318 MiB a layer (arXiv 2602.02958)."""
    found = plan(NETWORK, Video(832, 480, 113, block_frames=5), QVGConfig(clusters=256, iterations=100))
    assert found.cache_end_bytes == 48 * 70_587_904 and found.exact_cache_bytes == 48 * 485_621_760


def test_bytes_of_the_condition() -> None:
    """As docs/memory.md has them."""
    mebibytes = {
        preset: [round(_plan(preset, block_frames=24 - frames).cache_end_bytes / 2**20, 1) for frames in (4, 19)]
        for preset in PRESETS
    }
    assert mebibytes == {
        "exact": [4680.0, 22230.0],
        "qvg": [663.8, 3231.3],
        "qvg-pro": [900.4, 4588.8],
        "fewest-bytes": [484.5, 1992.7],
        "balanced": [636.8, 2693.4],
        "near-exact": [1084.7, 4786.6],
    }


def test_a_first_segment_remembers_nothing_unless_it_goes_on_from_a_video() -> None:
    first = _plan(pictures=93)
    assert first.cache_end_bytes == first.exact_cache_bytes == first.recording_bytes == 0
    assert first.sampling_bytes == first.weights_bytes + first.workspace_bytes + first.activation_bytes
    assert "times less" not in report(NETWORK, Video(832, 480, 93), "preset balanced", first, 24 * GB, None)
    goes_on, longer = _plan(pictures=93, given_frames=4), _plan()
    assert goes_on.cache_end_bytes == longer.cache_end_bytes > 0
    assert goes_on.activation_bytes < first.activation_bytes < longer.activation_bytes  # 20 of 24 frames are new; 20 more latents
    assert _plan(pictures=4013).cache_peak_bytes == longer.cache_peak_bytes


def test_phases_are_told_apart() -> None:
    for preset in ("exact", "balanced"):
        long = _plan(preset, block_frames=5)
        assert long.peak_bytes == max(long.sampling_bytes, long.recording_bytes, long.decode_bytes)
        assert long.recording_bytes > long.weights_bytes + long.cache_peak_bytes
        text = report(NETWORK, Video(832, 480, TWO_SEGMENTS), f"preset {preset}", long, 24 * GB, None)
        assert "making a segment's memory" in text and f"{TWO_SEGMENTS / 15:.1f} s" in text
    assert not _plan("exact", gigabytes=32, block_frames=5).fits and _plan("balanced", gigabytes=32, block_frames=5).fits
    assert _plan("exact", gigabytes=40, block_frames=5).longest_frames == 93  # what remembers nothing


def test_the_longest_that_fits_fits_and_a_segment_more_does_not() -> None:
    longest = _plan(gigabytes=23).longest_frames
    assert longest is not None and (longest - 93) % 80 == 0
    assert _plan(pictures=longest, gigabytes=23).fits and not _plan(pictures=longest + 80, gigabytes=23).fits


def test_a_pass_takes_what_is_planned_for_it() -> None:
    """Every tensor of a layer at full size, on no device: the MLP is its worst moment, but for what attention works in."""
    model, tokens = LongCat(LongCatConfig(layers=1), dtype=torch.bfloat16, device="meta"), 24 * 1560
    bound = activations(replace(NETWORK, in_attention=0), Block(1, tokens, 0, 0), PRESETS["exact"])
    with torch.inference_mode(), LiveBytes() as live:
        model(_meta(24), torch.empty(1, 24, device="meta"), _prompt(), lambda layer, q, k, v: torch.empty_like(v))
    assert 0.9 * bound.block_bytes <= live.peak <= bound.block_bytes
    at_attention: list[int] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rotated = torch.empty_like(q), torch.empty_like(k)
        at_attention.append(sum(size for _, size in live.storages.values()))
        return torch.empty_like(rotated[0])

    with torch.inference_mode(), LiveBytes() as live:
        model(_meta(24), torch.empty(1, 24, device="meta"), _prompt(), attend)
    unit = tokens * NETWORK.width * 2
    assert at_attention[0] < 8.1 * unit  # of 10: its result comes on top, and what the reader adds up


def test_making_a_memory_takes_what_is_planned_for_it() -> None:
    model, condition = load_longcat(given.weights()), torch.randn(1, 4, 16, 24, 32)
    shape = model.config
    network = replace(
        NETWORK, layers=shape.layers, heads=shape.heads, mlp=shape.mlp, text_tokens=0, text_channels=0, head_dim=shape.head_dim
    )
    config = PRESETS["balanced"]
    with ConditionCache(shape, 24, 32, 4, config, torch.float32) as cache:
        tokens = 4 * cache.spec.tokens_per_frame
        with torch.inference_mode(), LiveBytes() as live:
            model.record(condition, cache.recording())
        bound = activations(network, Block(1, tokens, 4 * 16 * 24 * 32, tokens), config, 4, 4, triton=False).total(1)
        peak = cache.spec.predict_peak(cache.config, 4, block_dtype=torch.float32)
    assert 0.4 * (bound + peak) < live.peak <= bound + peak


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"block_frames": 24}, "block frames is 24, but of a segment's 24 latent frames from 1 to 23 are new; use 20"),
        ({"block_frames": 0}, "block frames is 0"),
        ({"mode": "vendor"}, "is no world"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        _plan(**changes)


def test_merging_is_refused() -> None:
    with pytest.raises(ConfigError, match="use merge 0"):
        plan(NETWORK, Video(832, 480, TWO_SEGMENTS), QVGConfig(merge=0.99))


@pytest.mark.parametrize("condition", [0, 1, 13, 73])
@pytest.mark.parametrize("remembers", [True, False])
def test_operations_are_those_that_torch_counts(condition: int, remembers: bool) -> None:
    """At full size, two layers of it, on no device."""
    shape, frames = LongCatConfig(layers=2), SegmentFrames(condition=condition)
    model, known = LongCat(shape, dtype=torch.bfloat16, device="meta"), frames.condition_latents
    memory, cut = torch.empty(1, 32, known * 1560, 128, dtype=torch.bfloat16, device="meta"), known * 1560

    def cached(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, torch.cat([memory, k], 2), torch.cat([memory, v], 2))

    def whole(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not cut:
            return sdpa(q, k, v)
        return torch.cat([sdpa(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut]), sdpa(q[:, :, cut:], k, v)], 2)

    found = segment_operations(shape, (60, 104), frames, LongCatSettings(), remembers)
    goes_on = condition > 1
    assert found.passes == 2 * (56 if goes_on else 50)
    if remembers and known:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model.record(_meta(known), _Recorder())
        assert counter.get_total_flops() == found.recording
    new = frames.new_latents if remembers and known else frames.latents
    levels = torch.empty(1, new, device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        if remembers and known:
            model(_meta(new), levels, _prompt(), cached)
        else:
            model(_meta(new), levels, _prompt(), whole, known)
    assert counter.get_total_flops() == found.each


def test_a_memory_spares_most_where_the_condition_is_long() -> None:
    """Of a segment's operations, as docs/models.md has them."""
    found = {}
    for condition in (13, 73):
        for settings in (LongCatSettings(), LongCatSettings.distilled_model()):
            frames = SegmentFrames(condition=condition)
            both = (
                segment_operations(LongCatConfig(), (60, 104), frames, settings, remembers).total for remembers in (True, False)
            )
            found[condition, settings.steps] = tuple(round(total / 1e15, 1) for total in both)
    assert found == {(13, 50): (183.8, 200.6), (13, 16): (26.4, 28.7), (73, 50): (47.3, 187.9), (73, 16): (7.8, 26.8)}


class _Recorder:
    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v)

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Counts nothing."""


def _meta(frames: int) -> Tensor:
    return torch.empty(1, frames, 16, 60, 104, dtype=torch.bfloat16, device="meta")


def _prompt() -> Prompt:
    return Prompt(torch.empty(1, 512, 4096, dtype=torch.bfloat16, device="meta"))
