"""One softmax over the decoded history, within a workspace that does not grow with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, ConfigError, GridRope, KVCache, QVGConfig
from comfyui_qvg.qvg.attention import plan_tiling
from comfyui_qvg.qvg.positions.rope import geometric_frequencies, rotate
from torch import Tensor

from ...helpers import ROOT, LiveBytes, assert_close
from ...rounding import attend

ROPE = GridRope(3, 4, (geometric_frequencies(8, 4, 60), geometric_frequencies(28, 3, 60), geometric_frequencies(28, 3, 60)))
CODECS = {
    "exact": QVGConfig(codec="none", span_frames=5),
    "qvg": QVGConfig(clusters=16, span_frames=4),
    "pro": QVGConfig(clusters=16, span_frames=4, num_stages=4, group_size=16, symmetric=False),
    "klt": QVGConfig(codec="klt", bits=2.5, bits_v=1.5, clusters="auto", span_frames=4, spans_per_codebook=3),
    "kivi": QVGConfig(codec="kivi", span_frames=4),
}


def _fill(cache: KVCache, frames: int, seed: int = 0) -> torch.Generator:
    generator = torch.Generator().manual_seed(seed)
    spec = cache.spec
    for frame in range(frames):
        if cache.rope is not None:
            cache.place([(frame, frame * 0.5, -frame)])
        for layer in cache.layers:
            layer.append(*torch.randn(2, spec.batch, spec.heads, spec.tokens_per_frame, spec.head_dim, generator=generator))
        cache.commit()
    return generator


def _one_softmax(cache: KVCache, q: Tensor, k: Tensor, v: Tensor, origin: tuple[float, float, float]) -> Tensor:
    """The definition, in float64, from the decoded history."""
    return attend(*(x.double() for x in _seen(cache, q, k, v, origin)))


def _seen(cache: KVCache, q: Tensor, k: Tensor, v: Tensor, origin: tuple[float, float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, decoded keys and values as they go into attention."""
    layer = cache.layers[0]
    keys, values = [], []
    for pair in layer.state.history:
        for which, store in ((0, keys), (1, values)):
            span = pair[which]
            codec = layer.exact if span.codec == "none" else layer.codecs[which]
            shape = (cache.spec.batch, cache.spec.heads, span.num_tokens, cache.spec.head_dim)
            store.append(codec.decode(span, slice(None), slice(None), torch.empty(shape)))
    all_keys, all_values = torch.cat([*keys, k], 2), torch.cat([*values, v], 2)
    if cache.rope is not None:
        q = rotate(q, cache.rope.rotation(torch.tensor([origin])))
        all_keys = rotate(all_keys, cache.rope.rotation(torch.tensor([*cache.origins, origin])))
    return q, all_keys, all_values


@pytest.mark.parametrize("tile_bytes", [90_000, 300_000, 50 << 20], ids=["small_tiles", "middle_tiles", "one_tile"])
@pytest.mark.parametrize("rope", [None, ROPE], ids=["no_rope", "rope"])
@pytest.mark.parametrize("name", CODECS)
def test_equals_one_softmax(name: str, rope: GridRope | None, tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1e-5 in float32, however the history is cut into tiles and head groups."""
    monkeypatch.setattr("comfyui_qvg.qvg.attention.exact._CPU_TILE_BYTES", tile_bytes)
    cache = KVCache(CacheSpec(1, 3, 128, 12, batch=2), CODECS[name], rope)
    generator = _fill(cache, 23)
    q, k, v = torch.randn(3, 2, 3, 12, 128, generator=generator)
    origin = (23.0, 4.5, 2.0)
    if rope is not None:
        cache.place([origin])
    out = cache.attend(0, q, k, v)
    assert_close("attention", _one_softmax(cache, q, k, v, origin), out, 1e-5)


def _walk(config: QVGConfig, frames: int, dtype: torch.dtype) -> list[Tensor]:
    """What attention gives in every frame of a walk."""
    cache = KVCache(CacheSpec(1, 3, 128, 12, dtype=dtype), config, ROPE)
    generator, outs = torch.Generator().manual_seed(0), []
    for frame in range(frames):
        cache.place([(frame, frame * 0.5, -frame)])
        outs.append(cache.attend(0, *torch.randn(3, 1, 3, 12, 128, generator=generator)))
        cache.commit()
    return outs


def test_exact_keys_may_be_turned_before_or_after_they_are_kept() -> None:
    """Rotations add up: with keys kept in float32 both ways are the same to rounding, with bf16 to bf16's."""
    for dtype, accuracy in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        before, after = (
            _walk(QVGConfig(codec="none", span_frames=4, window_frames=13, keys=keys), 25, dtype)
            for keys in ("before_rope", "after_rope")
        )
        for frame, (a, b) in enumerate(zip(before, after, strict=True)):
            assert_close(f"attention in frame {frame}", a, b, accuracy)


def test_coded_keys_are_kept_the_way_that_is_asked() -> None:
    """Two bits tell the two ways apart: outputs differ, and those of keys kept turned are the ones of keys turned by hand."""
    for config in (CODECS["qvg"], CODECS["klt"]):
        before, after = (_walk(config.with_changes(keys=keys), 12, torch.float32) for keys in ("before_rope", "after_rope"))
        assert not torch.allclose(before[-1], after[-1], atol=1e-4)
        cache = KVCache(CacheSpec(1, 3, 128, 12, dtype=torch.float32), config)  # no rope: turned here
        generator = torch.Generator().manual_seed(0)
        for frame, wanted in enumerate(after):
            turn = ROPE.rotation(torch.tensor([(frame, frame * 0.5, -frame)]))
            q, k, v = torch.randn(3, 1, 3, 12, 128, generator=generator)
            assert_close(f"attention in frame {frame}", wanted, cache.attend(0, rotate(q, turn), rotate(k, turn), v), 1e-5)
            cache.commit()


def test_first_block_attends_to_itself_alone() -> None:
    cache = KVCache(CacheSpec(1, 2, 64, 5, chunk_frames=2), QVGConfig(span_frames=60))
    q, k, v = torch.randn(3, 1, 2, 10, 64)
    assert_close("attention", torch.nn.functional.scaled_dot_product_attention(q, k, v), cache.attend(0, q, k, v), 1e-5)


@pytest.mark.parametrize("name", CODECS)
def test_peak_memory_stays_under_the_bound_however_long_the_history(name: str) -> None:
    """Bytes alive at once inside attend, watched op by op: output and rotated current block apart, at most workspace_mb."""
    config = CODECS[name].with_changes(workspace_mb=1)
    peaks = []
    for frames in (40, 320):
        cache = KVCache(CacheSpec(1, 2, 128, 12), config, ROPE)
        generator = _fill(cache, frames)
        q, k, v = torch.randn(3, 1, 2, 12, 128, generator=generator)
        cache.place([(frames, 0.0, 0.0)])
        with LiveBytes() as live:
            cache.attend(0, q, k, v)
        peaks.append(live.peak)
        assert cache.workspace.nbytes < 1 << 20
    block_bytes = 3 * q.nbytes  # output, rotated queries, rotated keys
    assert max(peaks) <= (1 << 20) + block_bytes, peaks
    history_bytes = 320 * 12 * 2 * 128 * 2 * 4
    assert max(peaks) < history_bytes / 4, "the test is too small to tell a tile from the whole history"


@pytest.mark.parametrize("queries", [12, 1200], ids=["one_frame", "a_hundred_frames"])
def test_a_large_current_block_is_cut_too(queries: int) -> None:
    """A block that attends to itself must not hold all its scores at once: 1,200 x 1,200 x 2 heads would be 11 MiB."""
    cache = KVCache(CacheSpec(1, 2, 128, 12, chunk_frames=100), CODECS["qvg"].with_changes(workspace_mb=8))
    generator = _fill(cache, 15)
    q, k, v = torch.randn(3, 1, 2, queries, 128, generator=generator)
    with LiveBytes() as live:
        out = cache.attend(0, q, k, v)
    assert live.peak <= (8 << 20) + 3 * q.nbytes
    assert_close("attention", _one_softmax(cache, q, k, v, (0.0, 0.0, 0.0)), out, 1e-5)


def test_a_workspace_too_small_says_so() -> None:
    q = torch.zeros(1, 1, 20_000, 128)
    with pytest.raises(ConfigError, match="does not hold one tile of 16 keys for 20000 queries of one head; raise workspace_mb"):
        plan_tiling(q, 1000, 1 << 20)


def test_tiles_are_whole_frames_where_they_can_be() -> None:
    tiling = plan_tiling(torch.zeros(1, 2, 64, 128), 100_000, 512 << 20, tokens_per_frame=64)
    assert tiling.heads == 2 and tiling.tokens % 64 == 0


def test_huge_logits_stay_finite() -> None:
    cache = KVCache(CacheSpec(1, 2, 128, 12), CODECS["exact"])
    _fill(cache, 9)
    q, k, v = torch.randn(3, 1, 2, 12, 128)
    out = cache.attend(0, q * 1e4, k, v)
    assert out.isfinite().all()


class LinesRun:
    """Counts the lines of the library (`qvg/`) that run inside the `with`, comprehensions' turns included: work, and not time."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> LinesRun:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(str(ROOT / "qvg")):
            return None
        self.count += 1
        return self._line

    def _line(self, _frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        self.count += event == "line"
        return self._line


@pytest.mark.parametrize("read", ["exact", "direct", "fast"])
@pytest.mark.parametrize("codec", ["rtn", "qvg"])
def test_work_is_linear_in_the_number_of_spans(codec: str, read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each 60 spans more are as much work as the 100 before: bookkeeping does not walk through all spans for every tile."""
    monkeypatch.setattr("comfyui_qvg.qvg.attention.exact._CPU_TILE_BYTES", 90_000)
    rope = GridRope(2, 4, (geometric_frequencies(8, 4, 60), geometric_frequencies(12, 3, 60), geometric_frequencies(12, 3, 60)))
    config = QVGConfig(codec=codec, read=read, clusters=1, iterations=1, span_frames=1, recent_frames=1)
    cache, lines = KVCache(CacheSpec(1, 1, 64, 8), config, rope), []
    q = torch.randn(1, 1, 8, 64, generator=torch.Generator().manual_seed(1))
    for number in range(3):
        _fill(cache, 60)
        cache.place([(60.0 * number, 0.0, 0.0)])
        with LinesRun() as run:
            cache.attend(0, q, q, q)
        lines.append(run.count)
    more, still_more = lines[1] - lines[0], lines[2] - lines[1]
    assert more > 60 and still_more < 1.1 * more, lines
