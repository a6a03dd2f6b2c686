"""Preset `exact` with a window forgets one block at a time, wherever it is asked: in memory, in the prediction, in a plan."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg import PRESETS, CacheSpec, KVCache
from comfyui_qvg.qvg.cache.growth import even_chunks
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.plan import Video, Weights, plan

TOKENS, WINDOW, FRAMES = 4, 24, 60


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_memory_is_full_from_the_window_s_end_on(chunk: int) -> None:
    config = PRESETS["exact"].with_changes(window_frames=WINDOW)
    spec = CacheSpec(layers=2, heads=1, head_dim=64, tokens_per_frame=TOKENS, chunk_frames=chunk)
    held, room = [], WINDOW - chunk
    with KVCache(spec, config) as cache:
        for frames in even_chunks(FRAMES, chunk):
            block = torch.randn(1, 1, frames * TOKENS, 64)
            for layer in range(spec.layers):
                cache.attend(layer, block, block, block)
            cache.commit()
            held.append(cache.layout.frames)
            assert cache.nbytes().total == spec.predict(config, cache.frames_committed).total == spec.exact_bytes(held[-1])
    whole = [min(end, room // chunk * chunk) for end in range(chunk, FRAMES + 1, chunk)]
    assert held == whole  # never fewer than the window has room for: before, 5 of 24 frames were left where one was to go


def test_a_plan_counts_the_full_window() -> None:
    network = next(iter(networks().values()))
    config = PRESETS["exact"].with_changes(window_frames=WINDOW)
    ends = [
        plan(network, Video(832, 480, 4 * frames - 3), config, device_bytes=10**12, weights=Weights("bf16")).cache_end_bytes
        for frames in range(WINDOW, WINDOW + 4 * network.chunk_frames, network.chunk_frames)
    ]
    assert len(set(ends)) == 1
