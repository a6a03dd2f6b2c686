"""Into eight bits, many stretches in one launch: torch against what is decoded first, Triton against torch."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from comfyui_qvg.kernels import e4m3
from comfyui_qvg.kernels.projective import Projection
from comfyui_qvg.kernels.rotary import Angles
from comfyui_qvg.kernels.spans import Place, SpanTable, StretchTable, Tiles, copy_stretches, decode_spans
from comfyui_qvg.kernels.transcode import (
    Keys8,
    Values8,
    projected_bounds,
    reference,
    span_value_bounds,
    transcode_spans,
    transcode_stretches,
)
from comfyui_qvg.kernels.turn import Turns
from torch import Tensor

from ..helpers import assert_close
from ..triton_interpreter import DEVICE
from .test_direct_coefficients import _codebook, _kept

Load = Callable[[str], ModuleType]
CHANNELS, HEADS = 64, 2
MIXED = (56, 40, 24, 8)  # channels of 4, 3, 2, 1 and 0 bits
ROWS, COLS = 3, 4
TURNS = ("as stored", "rotated", "projected", "projected, pairs apart")


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def _turns(kind: str, first: int, count: int) -> Turns | None:
    """Of tokens first:first + count of a grid."""
    frames = -(-(first + count) // (ROWS * COLS))
    if kind == "rotated":
        pairs = (12, 10, 10)
        angles = _randn(frames, pairs[0] + ROWS * pairs[1] + COLS * pairs[2], seed=9) * 3
        return Angles(angles.cos(), angles.sin(), ROWS, COLS, pairs, first, count)
    if kind == "as stored":
        return None
    return Projection(_randn(frames, 4, 4, seed=11), ROWS * COLS, first, kind.endswith("apart"))


def _spans() -> SpanTable:
    """Three spans: two of one codebook and, behind a gap, one of the Hadamard matrix whose first tokens nobody sees."""
    sides = []
    for seed in (0, 100):
        shared = _codebook(CHANNELS, HEADS, seed=seed)
        kept = [_kept(n, MIXED, channels=CHANNELS, seed=seed + n, codebook=shared) for n in (40, 30)]
        sides.append((*kept, _kept(20, (64, 64), channels=CHANNELS, seed=seed + 7, hadamard=True)))
    return SpanTable(*sides, (Place(0), Place(40), Place(70, 6)))


def _stretches() -> StretchTable:
    sides = [tuple(_randn(1, HEADS, n, CHANNELS, seed=seed + n, dtype=torch.bfloat16) for n in (12, 36)) for seed in (0, 50)]
    return StretchTable(*sides, (Place(0), Place(12, 5)))


def _outputs(tokens: int, bounds: Tensor | None) -> tuple[Keys8, Values8]:
    """Filled with what nothing writes, so that what is left alone shows."""
    keys = torch.full((1, HEADS, tokens, CHANNELS), 99, dtype=torch.int8, device=DEVICE)
    scales = torch.full((1, HEADS, tokens), -1.0, device=DEVICE)
    if bounds is None:
        return Keys8(keys, scales), Values8(torch.full(keys.shape, -1.0, dtype=torch.float16, device=DEVICE), None)
    values = torch.full((1, HEADS, CHANNELS, tokens), 0x7F, dtype=torch.uint8, device=DEVICE)
    return Keys8(keys, scales), Values8(values, bounds / 448)


def _bounds(table: SpanTable, turns: Turns | None) -> Tensor:
    bounds = span_value_bounds(table.values)
    return projected_bounds(bounds, reference_turns(turns)) if isinstance(turns, Projection) else bounds


def reference_turns(turns: Projection) -> Projection:
    """What values go through."""
    return Projection(turns.matrices, turns.tokens_per_frame, turns.first)


def _same(expected: tuple[Keys8, Values8], got: tuple[Keys8, Values8]) -> None:
    """But for roundings that Triton tips over: it rounds levels to float16, which costs 2^-11 of each token's size about (twice
    that is allowed), and a value near zero, that parts of that size add up to, more than a step of its own."""
    assert_close("scales", expected[0].scales, got[0].scales, 1e-3)
    steps = (expected[0].values.int() - got[0].values.int()).abs()
    assert steps.max() <= 1 and steps.float().mean() < 0.05
    if expected[1].scales is None:
        assert_close("values", expected[1].values, got[1].values, 1e-3)
        return
    one, other = e4m3.decode(expected[1].values), e4m3.decode(got[1].values)
    assert (one != other).float().mean() < 0.05
    size = one.abs().amax(2, keepdim=True)
    assert bool(((one - other).abs() <= one.abs() / 8 + 2.0**-9 + size / 1024).all())


@pytest.mark.parametrize("eight", [True, False], ids=["e4m3", "float16"])
@pytest.mark.parametrize("kind", TURNS)
def test_spans_are_what_is_decoded_first(kind: str, eight: bool) -> None:
    """Keys within half a step, E4M3 within a sixteenth; tokens before, behind and between these spans stay as they are."""
    table, start, tokens = _spans(), 5, 80
    turns, common = _turns(kind, 3 + start, tokens), _randn(1, HEADS, CHANNELS, seed=7)
    bounds = _bounds(table, turns)
    keys, values = _outputs(tokens, bounds if eight else None)
    transcode_spans(table, (1, 3), start, common, turns, keys, values, "torch")
    k, v = (torch.full((1, HEADS, tokens, CHANNELS), torch.nan, device=DEVICE) for _ in range(2))
    decode_spans(table, (1, 3), Tiles(k, v, start), turns, "torch")
    there = k[0, 0].isfinite().all(-1)
    assert there.tolist() == [35 <= n < 65 or n >= 71 for n in range(tokens)]
    assert bool((keys.scales[:, :, ~there] == -1).all()) and bool((keys.values[:, :, ~there] == 99).all())
    got = keys.values.float() * keys.scales[..., None] + common[:, :, None]
    assert bool(((got - k).abs() <= 0.5001 * keys.scales[..., None])[:, :, there].all())
    back = e4m3.decode(values.values).transpose(2, 3) * values.scales[:, :, None] if eight else values.values.float()
    error = (back - v).abs()[:, :, there]
    assert bool((error <= v.abs()[:, :, there] / 16 + bounds[:, :, None] / 448 / 1024).all())


def test_bounds_bound_and_leave_room() -> None:
    """Of spans, of those of several codebooks, and through cameras' matrices; at least 11 of E4M3's 17 powers of two are left."""
    table = _spans()
    for kind in TURNS:
        turns = _turns(kind, 0, 90)
        v = torch.empty(1, HEADS, 90, CHANNELS, device=DEVICE)
        decode_spans(table, (0, 3), Tiles(None, v, 0), turns, "torch")
        largest, bounds = torch.cat([v[:, :, :70], v[:, :, 76:]], 2).abs().amax(2), _bounds(table, turns)
        assert bool((largest <= bounds * 1.0001).all()) and bool((bounds <= 64 * largest).all())


@pytest.mark.parametrize("eight", [True, False], ids=["e4m3", "float16"])
@pytest.mark.parametrize("kind", TURNS)
def test_triton_spans(triton_kernel: Load, kind: str, eight: bool) -> None:
    table, start, tokens = _spans(), 5, 80
    turns, common = _turns(kind, 3 + start, tokens), _randn(1, HEADS, CHANNELS, seed=7)
    bounds = _bounds(table, turns) if eight else None
    expected, got = _outputs(tokens, bounds), _outputs(tokens, bounds)
    reference.transcode_spans(table, (1, 3), start, common, turns, *expected)
    triton_kernel("transcode").transcode_spans(table, (1, 3), start, common, turns, *got)
    _same(expected, got)


@pytest.mark.parametrize("eight", [True, False], ids=["e4m3", "float16"])
@pytest.mark.parametrize("kind", TURNS)
def test_stretches(triton_kernel: Load, kind: str, eight: bool) -> None:
    """Torch against what is copied first, Triton against torch; the current block is not turned, and may be all there is."""
    table, start, tokens = _stretches(), 3, 60
    turns, common = _turns(kind, start, 45), _randn(1, HEADS, CHANNELS, seed=7)
    current = (_randn(1, HEADS, 24, CHANNELS, seed=1), _randn(1, HEADS, 24, CHANNELS, seed=2), 48)
    bounds = torch.full((1, HEADS, CHANNELS), 30.0, device=DEVICE) if eight else None
    expected, got = _outputs(tokens, bounds), _outputs(tokens, bounds)
    transcode_stretches(table, (0, 2), start, common, turns, *expected, "torch", current)
    k, v = (torch.full((1, HEADS, tokens, CHANNELS), torch.nan, device=DEVICE) for _ in range(2))
    copy_stretches(table, (0, 2), Tiles(k, v, start), turns, "torch", current)
    there = k[0, 0].isfinite().all(-1)
    assert there.tolist() == [n < 9 or n >= 14 for n in range(tokens)]
    made = expected[0].values.float() * expected[0].scales[..., None] + common[:, :, None]
    assert bool(((made - k).abs() <= 0.5001 * expected[0].scales[..., None])[:, :, there].all())
    kernel = triton_kernel("transcode")
    kernel.transcode_stretches(table, (0, 2), start, common, turns, *got, current)
    _same(expected, got)
    nothing = StretchTable((), (), ())
    alone, again = _outputs(20, bounds), _outputs(20, bounds)
    reference.transcode_stretches(nothing, (0, 0), 48, common, None, *alone, current)
    made = alone[0].values.float() * alone[0].scales[..., None] + common[:, :, None]
    assert bool(((made - current[0][:, :, :20]).abs() <= 0.5001 * alone[0].scales[..., None]).all())
    kernel.transcode_stretches(nothing, (0, 0), 48, common, None, *again, current)
    _same(alone, again)


def test_outputs_that_do_not_belong_together() -> None:
    keys, values = _outputs(8, None)
    with pytest.raises(ValueError, match="outputs for 7 keys and 8 values"):
        transcode_spans(_spans(), (0, 1), 0, _randn(1, HEADS, CHANNELS), None, keys.tokens(0, 7), values, "torch")
