"""Bytes predicted before anything is allocated: the published anchors, and equality with what is then counted."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, ConfigError, KVCache, QVGConfig
from comfyui_qvg.qvg.codec import QVGCodec
from comfyui_qvg.qvg.codec.base import EncodeHint
from comfyui_qvg.qvg.codec.span import storage_bytes

# Bytes of keys and values of one layer, 2 bits, group 64, one stage: what the official pack counts (docs/memory.md, "One layer").
ANCHORS = {
    "longcat": ((1, 32, 29_640, 128), 256, 70_587_904, 67.318),
    "self_forcing": ((1, 12, 37_440, 128), 256, 33_022_464, 31.493),
    "worldplay": ((1, 24, 7_040, 256), 256, 29_607_936, 28.236),
}


@pytest.mark.parametrize("name", ANCHORS)
def test_published_anchors_to_the_byte(name: str) -> None:
    shape, clusters, anchor_bytes, anchor_mib = ANCHORS[name]
    (batch, heads, tokens, channels) = shape
    codec = QVGCodec(QVGConfig(clusters=clusters, span_frames=1))
    predicted = 2 * sum(
        {**codec.predicted_bytes(shape), **codec.predicted_codebook_bytes((batch, heads, channels), [tokens])}.values()
    )
    assert predicted == anchor_bytes and round(predicted / 2**20, 3) == anchor_mib


@pytest.mark.parametrize("name", ANCHORS)
def test_anchors_are_what_is_counted(name: str) -> None:
    """The same shapes, encoded for real; one head of them, because heads are independent and the machine may be small."""
    (batch, heads, tokens, channels), clusters, anchor_bytes, _ = ANCHORS[name]
    codec = QVGCodec(QVGConfig(clusters=clusters, iterations=1))
    x = torch.randn(batch, 1, tokens, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float32).bfloat16()
    counted = sum(storage_bytes([codec.encode(x, EncodeHint())]).values())
    assert counted * heads * 2 == anchor_bytes


CONFIGS = {
    "exact": QVGConfig(codec="none", span_frames=4),
    "qvg": QVGConfig(clusters=16, span_frames=4),
    "asymmetric_3_bits": QVGConfig(bits=3, clusters=5, span_frames=2, symmetric=False, group_size=32),
    "pro": QVGConfig(clusters="auto", num_stages=4, group_size=16, span_frames=8),
    "shared_codebooks": QVGConfig(clusters=16, span_frames=2, spans_per_codebook=3),
    "shared_and_evicted": QVGConfig(clusters=16, span_frames=2, spans_per_codebook=3, window_frames=13),
    "window": QVGConfig(bits=4, clusters=7, span_frames=3, sink_frames=2, recent_frames=2, window_frames=9),
    "bits_v": QVGConfig(bits=4, bits_v=2, clusters=7, span_frames=3),
    **{
        f"klt_{shared}{'_window' if window else ''}": QVGConfig(
            codec="klt",
            bits=2.5,
            bits_v=1.5,
            clusters="auto",
            iterations=1,
            span_frames=3,
            spans_per_codebook=shared,
            window_frames=window,
        )
        for shared in (1, 3, 8)
        for window in (None, 13)
    },
    "klt_hadamard": QVGConfig(
        codec="klt", transform="hadamard", clusters=8, span_frames=2, spans_per_codebook=3, window_frames=13
    ),
    # A window with room for one span: it leaves before the next one is encoded, which therefore cannot share its codebook.
    "klt_tight": QVGConfig(codec="klt", clusters="auto", span_frames=2, spans_per_codebook=8, window_frames=7),
    "qvg_tight": QVGConfig(clusters=8, span_frames=2, spans_per_codebook=8, window_frames=7),
    "klt_codewords_by_hand": QVGConfig(codec="klt", clusters=10, clusters_added=7, span_frames=2, spans_per_codebook=4),
    **{
        f"{codec}{'_symmetric' if symmetric else ''}{'_window' if window else ''}": QVGConfig(
            codec=codec, bits=3, bits_v=2, symmetric=symmetric, span_frames=3, spans_per_codebook=3, window_frames=window
        )
        for codec in ("rtn", "kivi", "quarot")
        for symmetric in (True, False)
        for window in (None, 13)
    },
}


@pytest.mark.parametrize("chunk_frames", [1, 3], ids=["chunk_1", "chunk_3"])
@pytest.mark.parametrize("name", CONFIGS)
def test_prediction_equals_count_at_every_frame(name: str, chunk_frames: int) -> None:
    config = CONFIGS[name]
    if name == "window" and chunk_frames == 3:
        config = config.with_changes(window_frames=13)
    if name.endswith("tight") and chunk_frames == 3:
        config = config.with_changes(window_frames=12)
    spec = CacheSpec(layers=2, heads=2, head_dim=128, tokens_per_frame=12, chunk_frames=chunk_frames, batch=2)
    generator = torch.Generator().manual_seed(0)
    frames = 0
    with KVCache(spec, config) as cache:
        for chunk in [chunk_frames] * 8 + [1]:
            for layer in range(2):
                q, k, v = torch.randn(3, 2, 2, 12 * chunk, 128, generator=generator)
                cache.attend(layer, q, k, v)
            cache.commit()
            frames += chunk
            assert cache.nbytes() == spec.predict(config, frames, codebooks=cache.codebooks()), frames
        assert cache.frames_committed == frames


def test_exact_bytes_are_sixteen_bits_per_value() -> None:
    """6.0 GB for 81 frames of Wan 1.3B at 832x480 (docs/memory.md, "Self-Forcing, counted")."""
    spec = CacheSpec(layers=30, heads=12, head_dim=128, tokens_per_frame=1560, chunk_frames=3)
    assert spec.exact_bytes(21) == 30 * 21 * 1560 * 1536 * 2 * 2
    assert spec.predict(QVGConfig.preset("exact"), 21).total == spec.exact_bytes(21)


@pytest.mark.parametrize("sink_frames", [0, 1, 3])
@pytest.mark.parametrize("chunks", [[1, *[3] * 8, 2], [2, *[3] * 8], [3, 1, 3, 2, 3, 3, 3, 1]], ids=["image", "extension", "any"])
@pytest.mark.parametrize("name", ["exact", "qvg", "shared_and_evicted", "klt_8_window", "klt_3", "kivi", "bits_v"])
def test_short_chunks_are_predicted(name: str, chunks: list[int], sink_frames: int) -> None:
    """A video that begins with an image, or goes on from another one, has a short first chunk."""
    config = CONFIGS[name].with_changes(sink_frames=sink_frames)
    config = config if config.window_frames is None else config.with_changes(window_frames=16)
    spec = CacheSpec(layers=1, heads=2, head_dim=128, tokens_per_frame=12, chunk_frames=3)
    generator = torch.Generator().manual_seed(0)
    with KVCache(spec, config) as cache:
        for at, chunk in enumerate(chunks):
            cache.attend(0, *torch.randn(3, 1, 2, 12 * chunk, 128, generator=generator))
            cache.commit()
            assert cache.nbytes() == spec.predict(config, sum(chunks[: at + 1]), chunks, cache.codebooks()), at
            assert config.window_frames is None or cache.layout.frames <= config.window_frames - 3
        assert cache.nbytes() == spec.predict(config, sum(chunks), [*chunks, 3, 3], cache.codebooks())


def test_chunks_must_reach_the_frames_to_predict_for() -> None:
    spec = CacheSpec(layers=1, heads=2, head_dim=128, tokens_per_frame=12, chunk_frames=3)
    with pytest.raises(ConfigError, match=r"chunks \[1, 3\] are 2 frames short"):
        spec.predict(QVGConfig(), 6, [1, 3])
