"""The most a cache holds, predicted, equals what is counted in a real run at every moment that could be the worst."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg import PRESETS, CacheSpec, KVCache, QVGConfig
from comfyui_qvg.qvg.bench.cache_watch import CacheWatch
from comfyui_qvg.qvg.cache.growth import even_chunks
from comfyui_qvg.qvg.cache.peak import peaks

from .test_spec import CONFIGS

TOKENS = 24


def _run(
    spec: CacheSpec, config: QVGConfig, chunks: list[int], dtype: torch.dtype, by_layer: bool
) -> tuple[list[int], list[int]]:
    """Bytes at the worst moment so far and bytes now, after every chunk."""
    generator = torch.Generator().manual_seed(0)
    most, now = [], []
    with KVCache(spec, config) as cache:
        held = CacheWatch(cache)
        for chunk in chunks:
            shape = (spec.batch, spec.heads, TOKENS * chunk, spec.head_dim)
            for layer in range(spec.layers):
                q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
                cache.attend(layer, q, k, v)
                del k, v
                held.most = max(held.most, held.now())
                if by_layer:
                    cache.commit_layer(layer)
            if not by_layer:
                cache.commit()
            most.append(held.most)
            now.append(cache.nbytes().total)
        assert held.now() == cache.nbytes().total
    return most, now


def _fitting(config: QVGConfig, chunk_frames: int) -> QVGConfig:
    if config.window_frames is None or chunk_frames == 1:
        return config
    return config.with_changes(window_frames={7: 12, 9: 13}.get(config.window_frames, config.window_frames))


@pytest.mark.parametrize("by_layer", [True, False], ids=["by_layer", "at_once"])
@pytest.mark.parametrize("chunk_frames", [1, 3], ids=["chunk_1", "chunk_3"])
@pytest.mark.parametrize("name", [*CONFIGS, *(f"preset_{name}" for name in PRESETS)])
def test_peak_equals_count_at_every_chunk(name: str, chunk_frames: int, by_layer: bool) -> None:
    config = _fitting(CONFIGS[name], chunk_frames) if name in CONFIGS else PRESETS[name.removeprefix("preset_")]
    spec = CacheSpec(layers=3, heads=2, head_dim=128, tokens_per_frame=TOKENS, chunk_frames=chunk_frames)
    chunks = even_chunks(27, chunk_frames) if name.startswith("preset") else even_chunks(8 * chunk_frames + 1, chunk_frames)
    most, now = _run(spec, config, chunks, torch.bfloat16, by_layer)
    predicted = list(peaks(spec, config, chunks, torch.bfloat16, by_layer))
    assert [peak.peak_bytes for peak in predicted] == most
    assert [peak.now_bytes for peak in predicted] == now
    assert predicted[-1].frames == sum(chunks)
    assert spec.predict_peak(config, sum(chunks), by_layer=by_layer) == most[-1]


@pytest.mark.parametrize("codec", ["none", "klt", "qvg"])
def test_a_first_block_of_its_own_size_and_wider_blocks(codec: str) -> None:
    """A start image is a block of one frame; a network may compute in float32 what is kept in 16 bits."""
    config = QVGConfig(codec, clusters="auto", span_frames=3, spans_per_codebook=4, iterations=1)
    spec = CacheSpec(layers=2, heads=2, head_dim=128, tokens_per_frame=TOKENS, chunk_frames=3)
    chunks = even_chunks(18, 3, first_frames=1)
    assert chunks == [1, 3, 3, 3, 3, 3, 2]
    most, now = _run(spec, config, chunks, torch.float32, True)
    assert spec.predict_peak(config, 18, chunks, torch.float32) == most[-1]
    assert spec.predict(config, 18, chunks).total == now[-1]


def test_batches_scale_everything() -> None:
    one, three = (CacheSpec(2, 2, 128, TOKENS, 3, batch) for batch in (1, 3))
    config = PRESETS["balanced"]
    assert three.predict_peak(config, 30) == 3 * one.predict_peak(config, 30)


def test_a_window_is_full_after_a_while() -> None:
    """Its peak comes with its first filling, and no longer run has a higher one."""
    spec = CacheSpec(2, 2, 128, TOKENS, 3)
    for preset in ("exact", "balanced", "qvg"):
        config = PRESETS[preset].with_changes(window_frames=18)
        assert spec.predict_peak(config, 60) == spec.predict_peak(config, 600) < spec.predict_peak(PRESETS[preset], 600)


def test_nothing_is_held_in_a_run_of_no_frames() -> None:
    assert CacheSpec(2, 2, 128, TOKENS).predict_peak(PRESETS["balanced"], 0) == 0
