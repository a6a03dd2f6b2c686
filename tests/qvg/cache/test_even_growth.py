"""Even chunks, counted at once, come to what a walk through them comes to: memory, commits, peaks, at every length."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, ConfigError, QVGConfig
from comfyui_qvg.qvg.cache.even_growth import EvenGrowth
from comfyui_qvg.qvg.cache.growth import Growth, even_chunks
from comfyui_qvg.qvg.cache.peak import EvenPeaks, peaks
from comfyui_qvg.qvg.config import CODECS

COUNT = 300


def _drawn(dice: random.Random) -> tuple[CacheSpec, QVGConfig, int, int]:
    """A model, settings that fit it, frames of the first chunk and of the video."""
    while True:
        chunk = dice.choice((1, 1, 2, 3, 4, 7))
        spec = CacheSpec(dice.choice((1, 2, 5)), 1, 64, dice.choice((1, 16, 150, 1200)), chunk, dtype=torch.bfloat16)
        codec = dice.choice((*CODECS, "klt", "none"))
        config = QVGConfig(
            codec,
            clusters="auto",
            sink_frames=dice.choice((0, 0, 1, 3, dice.randrange(20))),
            recent_frames=dice.choice((0, 0, 1, 3, dice.randrange(20))),
            span_frames=dice.choice(("auto", 1, chunk, 2 * chunk, dice.randrange(1, 40))),
            spans_per_codebook=dice.choice((1, 1, 2, 3, 8, 1024)),
            window_frames=dice.choice((None, dice.randrange(1, 60), dice.randrange(1, 200))),
            offload=dice.choice(("gpu", "cpu")),
        )
        first = dice.choice((0, 0, dice.randrange(chunk + 1)))
        try:
            spec.check(config)
            spec.codecs(config)
        except ConfigError:
            continue
        return spec, config, first, dice.randrange(1, dice.choice((8, 60, 400)))


def test_every_commit_is_the_same() -> None:
    dice = random.Random(1)
    for trial in range(COUNT):
        spec, config, first, frames = _drawn(dice)
        policy = spec.check(config)
        walk, even = Growth(policy, config.spans_per_codebook), EvenGrowth(policy, config.spans_per_codebook, first)
        chunks = even_chunks(frames, policy.chunk_frames, first)
        commits, last = even.commits(frames)
        assert commits == len(chunks), (trial, config)
        for index, chunk in enumerate(chunks):
            short = last if index == commits - 1 else None
            made, expected = even.commit(index, short), walk.commit(chunk)
            memory, seen = even.memory(index + 1, short), walk.memory()
            if config.codec == "none":  # which has no codebooks
                assert (made.chunk_frames, made.span_frames, made.gone_spans) == (
                    expected.chunk_frames,
                    expected.span_frames,
                    expected.gone_spans,
                ), (trial, index, config)
                assert (memory.exact_frames, memory.spans) == (seen.exact_frames, seen.spans), (trial, index, config)
            else:
                assert (made, memory) == (expected, seen), (trial, index, spec, config, first)


def test_every_peak_is_the_same() -> None:
    """At the end of videos of every length, a short last block among them."""
    dice = random.Random(2)
    for trial in range(COUNT // 3):
        spec, config, first, frames = _drawn(dice)
        by_layer, dtype = dice.choice((True, False)), dice.choice((None, torch.float32))
        even = EvenPeaks(spec, config, first, dtype, by_layer)
        whole = list(peaks(spec, config, even_chunks(frames, spec.chunk_frames, first), dtype, by_layer))
        for peak in {*whole[:-1:7], *whole[-3:]}:
            assert even.after(peak.frames) == peak, (trial, peak.frames, spec, config, first, by_layer)


def test_bytes_are_the_same_by_component() -> None:
    dice = random.Random(3)
    for trial in range(COUNT // 3):
        spec, config, first, frames = _drawn(dice)
        chunks = even_chunks(frames, spec.chunk_frames, first)
        walk = Growth(spec.check(config), config.spans_per_codebook)
        for chunk in chunks:
            walk.commit(chunk)
        for codebooks in (None, "most"):
            found = spec.predict(config, frames, chunks, codebooks)  # type: ignore[arg-type]
            assert found.total >= 0 and spec._first_of_even(chunks) is not None, trial
            assert found == _walked(spec, config, walk, codebooks), (trial, spec, config, first)


def _walked(spec: CacheSpec, config: QVGConfig, walk: Growth, codebooks: object) -> object:
    class Walking(CacheSpec):
        def _memory(self, *_: object) -> object:  # type: ignore[override]
            return walk.memory()

    walking = Walking(spec.layers, spec.heads, spec.head_dim, spec.tokens_per_frame, spec.chunk_frames, spec.batch, spec.dtype)
    return walking.predict(config, 1, None, codebooks)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", ["none", "klt", "qvg"])
@pytest.mark.parametrize("changes", [{}, {"window_frames": 20_000}, {"spans_per_codebook": 1024}, {"recent_frames": 90_000}])
def test_a_hundred_thousand_frames_are_counted_at_once(codec: str, changes: dict[str, int]) -> None:
    """A walk through the exact cache of the first case takes a minute, and grows with the square."""
    spec = CacheSpec(30, 12, 128, 1560, 1)
    config = QVGConfig(codec, clusters="auto", span_frames=1, spans_per_codebook=8).with_changes(**changes)
    begun = time.process_time()
    size, peak = spec.predict(config, 100_000), spec.predict_peak(config, 100_000)
    assert 0 < size.total <= peak
    assert time.process_time() - begun < 30


def test_chunks_of_other_sizes_are_walked() -> None:
    spec, config = CacheSpec(2, 1, 64, 150, 3), QVGConfig("qvg", clusters="auto", span_frames=3)
    assert spec._first_of_even([3, 3, 2, 3]) is None and spec._first_of_even([5, 3]) is None
    assert spec.predict(config, 11, [3, 3, 2, 3]).total > 0
    assert Counter(even_chunks(11, 3)) == Counter({3: 3, 2: 1})
