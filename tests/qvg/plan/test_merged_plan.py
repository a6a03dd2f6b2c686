"""Plans of a cache that merges tokens are upper bounds, and say so."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
import torch
from comfyui_qvg.qvg import PRESETS, CacheSpec, ConfigError
from comfyui_qvg.qvg.cache.growth import even_chunks
from comfyui_qvg.qvg.cache.merge_peak import MergedPeaks, merged_peaks
from comfyui_qvg.qvg.models.common.world_memory import world_memory
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.plan.estimate import Video, plan
from comfyui_qvg.qvg.plan.report import report
from comfyui_qvg.qvg.positions.rope import wan_rope

WAN = next(shape for shape in networks().values() if shape.context_frames is None and shape.frame_pictures > 1)
WORLD = next(shape for shape in networks().values() if shape.context_frames is not None)
MERGED = PRESETS["balanced"].with_changes(merge=0.99)


def test_a_plan_says_at_most() -> None:
    video = Video(832, 480, 81)
    found, plain = (plan(WAN, video, config, 24 * 10**9) for config in (MERGED, PRESETS["balanced"]))
    assert found.merges and not plain.merges
    # What is not encoded yet may be more: a span is never begun if the last row is missing.
    assert plain.cache_end_bytes <= found.cache_end_bytes < found.exact_cache_bytes
    text = report(WAN, video, "preset balanced", found, 24 * 10**9, None)
    assert text.count("at most ") >= 2 and "how many is not known before" in text
    assert "how many is not known" not in report(WAN, video, "preset balanced", plain, 24 * 10**9, None)


def test_a_plan_knows_of_tiles() -> None:
    """Their bytes, and of 81 pictures (21 latent frames of 1,560 tokens, 15 in spans, each of 3) what is read at most."""
    video, share = Video(832, 480, 81), PRESETS["balanced"].with_changes(sparse=0.15)
    found, plain = (plan(WAN, video, config, 24 * 10**9) for config in (share, PRESETS["balanced"]))
    assert found.cache_end_bytes == plain.cache_end_bytes + found.tile_bytes and found.tile_bytes > 0 == plain.tile_bytes
    assert found.tokens_kept == 21 * 1560 and plain.tokens_kept == plain.tokens_read == 0
    spans = 5 * [3 * 1560]
    tiles = sum(-(-tokens // 16) for tokens in spans)
    assert found.tokens_read == found.tokens_kept - sum(spans) + 16 * -(-15 * tiles // 100)
    text = report(WAN, video, "preset balanced", found, 24 * 10**9, None)
    assert f"64 queries read at most {found.tokens_read:,} of 32,760 tokens" in text and "order and means of tiles" in text
    assert "order and means" not in report(WAN, video, "preset balanced", plain, 24 * 10**9, None)
    cut = plan(WAN, video, share.with_changes(window_frames=18), 24 * 10**9)
    assert cut.tokens_read < cut.tokens_kept < found.tokens_kept
    short = plan(WAN, Video(832, 480, 17), share, 24 * 10**9)
    assert short.tokens_read == short.tokens_kept, "fewer than 4,096 encoded tokens are read whole"


def test_an_hour_is_planned_in_a_moment() -> None:
    began = time.perf_counter()
    assert plan(WAN, Video(832, 480, 57_601), MERGED, 24 * 10**9).longest_frames is not None
    assert time.perf_counter() - began < 20  # a second here; the machine may be busy


@pytest.mark.parametrize("name", ["exact", "qvg", "balanced"])
@pytest.mark.parametrize("chunk_frames", [1, 3])
@pytest.mark.parametrize("by_layer", [True, False])
def test_quick_bounds_are_those_of_the_walk(name: str, chunk_frames: int, by_layer: bool) -> None:
    spec, config = CacheSpec(3, 2, 128, 24, chunk_frames), PRESETS[name].with_changes(merge=0.99, span_frames=6, offload="cpu")
    quick = MergedPeaks(spec, config, 0, torch.float32, by_layer)
    walked = list(merged_peaks(spec, config, even_chunks(50, chunk_frames), torch.float32, by_layer))
    assert [quick.after(peak.frames).now_bytes for peak in walked] == [peak.now_bytes for peak in walked]
    for peak in walked:
        bound = quick.after(peak.frames)
        assert peak.peak_bytes <= bound.peak_bytes <= spec.predict_peak(config, 50, block_dtype=torch.float32, by_layer=by_layer)
    for before, after in pairwise(walked):
        assert before.now_bytes <= after.now_bytes
    assert quick.after(0).peak_bytes == 0


def test_worlds_are_refused() -> None:
    sentence = "merge is 0.99, but a world's frames are placed anew and seen through cameras; use merge 0"
    with pytest.raises(ConfigError, match=sentence):
        plan(WORLD, Video(832, 480, 61), MERGED)
    with pytest.raises(ConfigError, match=sentence):
        world_memory(CacheSpec(1, 2, 128, 12, 4), MERGED, wan_rope(3, 4))
