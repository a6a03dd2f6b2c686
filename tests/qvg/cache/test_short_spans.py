"""Spans that a window cuts too short to learn a basis from: a bit more for each value, counted, said, less than exact."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg.bench.synthetic import make_keys_values
from comfyui_qvg.qvg.cache import CacheSpec, KVCache
from comfyui_qvg.qvg.cache.codebooks import codebooks_text
from comfyui_qvg.qvg.config import PRESETS, QVGConfig

FRAME = 64
SPEC = CacheSpec(layers=1, heads=2, head_dim=128, tokens_per_frame=FRAME)
KLT = ("fewest-bytes", "balanced", "near-exact")
# The first window that a preset can encode in, and the last one whose spans have fewer than four tokens for each channel.
SHORT, LEARNS = range(6, 21), 21


def _filled(config: QVGConfig, frames: int) -> tuple[KVCache, int]:
    """A cache after so many frames, and the most bytes that it held."""
    cache, most = KVCache(SPEC, config), 0
    keys, values = make_keys_values(3, frames, 2, rows=8, cols=8)
    for start in range(0, frames * FRAME, FRAME):
        k, v = (x[:, :, start : start + FRAME] for x in (keys, values))
        cache.attend(0, k.bfloat16(), k.bfloat16(), v.bfloat16())
        cache.commit()
        most = max(most, cache.nbytes().total)
        assert cache.nbytes() == SPEC.predict(config, cache.frames_committed, codebooks=cache.codebooks())
    return cache, most


@pytest.mark.parametrize("preset", KLT)
def test_they_get_one_bit_more_and_the_others_none(preset: str) -> None:
    config = PRESETS[preset]
    for window in (*SHORT, LEARNS, None):
        codecs = SPEC.codecs(config.with_changes(window_frames=window))
        more = int(window in SHORT)
        assert [codec.config.bits for codec in codecs] == [config.bits + more, config.bits_v + more], window
        assert bool(SPEC.short_spans_text(config.with_changes(window_frames=window))) == bool(more)


def test_spans_of_a_length_that_was_asked_for_keep_their_bits() -> None:
    config = PRESETS["balanced"].with_changes(window_frames=12, span_frames=2)
    assert [codec.config.bits for codec in SPEC.codecs(config)] == [1.5, 2] and not SPEC.short_spans_text(config)


def test_no_more_bits_than_there_are() -> None:
    config = PRESETS["balanced"].with_changes(window_frames=9, bits=5.5, bits_v=6)
    assert [codec.config.bits for codec in SPEC.codecs(config)] == [6, 6]


@pytest.mark.parametrize("window", SHORT)
def test_bytes_are_predicted_and_below_those_of_exact_and_of_better_presets(window: int) -> None:
    caches = [_filled(PRESETS[name].with_changes(window_frames=window), window + 7) for name in (*KLT, "exact")]
    bytes_ = [most for _, most in caches]
    assert bytes_ == sorted(set(bytes_)), bytes_


def test_a_bit_more_halves_the_error_and_is_said() -> None:
    """Of attention's output, against the same tokens kept exactly."""
    config, frames = PRESETS["balanced"].with_changes(window_frames=12), 14
    query = make_keys_values(4, 1, 2, rows=8, cols=8).keys.bfloat16()
    outputs = []
    for kept in (config, config.with_changes(span_frames=3), PRESETS["exact"].with_changes(window_frames=12)):
        cache = _filled(kept, frames)[0]
        outputs.append(cache.attend(0, query, query, query).float())
    more, asked, exact = outputs
    assert (more - exact).norm() < 0.7 * (asked - exact).norm()
    text = codebooks_text(_filled(config, frames)[0])
    assert "192 tokens a span, too few to learn a basis from; keys take 2.5 and values 3 bits instead" in text
    assert torch.isfinite(more).all()
