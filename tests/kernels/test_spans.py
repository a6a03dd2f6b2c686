"""A tile of many stretches in one launch: every backend gives what decoding span by span gives, and writes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from comfyui_qvg.kernels.coefficients.reference import reconstruct_coefficients
from comfyui_qvg.kernels.rotary import Angles
from comfyui_qvg.kernels.rows8 import Rows8, quantize_rows, synthesis
from comfyui_qvg.kernels.spans import Place, SpanTable, StretchTable, Tiles, copy_stretches, decode_spans, reference
from comfyui_qvg.kernels.transform_codes import TransformCodes
from comfyui_qvg.qvg.positions.rope import GridRope, geometric_frequencies, rotate
from torch import Tensor

from ..helpers import assert_close
from ..triton_interpreter import DEVICE

Load = Callable[[str], ModuleType]
BATCH, HEADS, CHANNELS = 2, 3, 64
ROPE = GridRope(3, 4, (geometric_frequencies(4, 4, 60), geometric_frequencies(12, 3, 60), geometric_frequencies(16, 3, 60)))
# Tiles that begin and end within spans, of some heads; the last one lies within one span.
TILES = ((0, 240, 0, 3), (50, 131, 1, 2), (100, 110, 0, 3))
# float16 levels times eight-bit rows: as `test_triton_codec.COEFFICIENT_ERROR`, and the rounding of what is written.
ERRORS = {torch.float32: 6e-4, torch.bfloat16: 6e-4 + 2.0**-7}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _codebook(count: int, directions: int, planes: tuple[tuple[int, ...], ...], seed: int) -> tuple[Rows8, Tensor | None, Tensor]:
    generator = _generator(seed)
    codewords = quantize_rows(torch.randn(BATCH, HEADS, count, CHANNELS, generator=generator))
    if not directions:
        return codewords, None, torch.exp2(torch.randint(-2, 2, (BATCH, HEADS, CHANNELS), generator=generator).float()).half()
    rows = torch.linalg.qr(torch.randn(BATCH, HEADS, CHANNELS, CHANNELS, generator=generator))[0][:, :, :directions]
    return codewords, *quantize_rows(rows * torch.logspace(0, -1, directions)[:, None])


def _spans(
    books: dict[int, tuple[int, int, tuple[tuple[int, ...], ...]]], order: tuple[tuple[int, int], ...]
) -> list[TransformCodes]:
    """Spans of some (codebook, tokens), all codes random."""
    made = {number: _codebook(*book, seed=number) for number, book in books.items()}
    generator, spans = _generator(99), []
    for number, tokens in order:
        planes = books[number][2]

        def bytes_(*shape: int, low: int = 0, high: int = 256) -> Tensor:
            return torch.randint(low, high, shape, dtype=torch.uint8, generator=generator)

        codes, gains = bytes_(BATCH, HEADS, tokens, sum(planes[0]) // 8), bytes_(BATCH, HEADS, tokens, low=30, high=60)
        ids = bytes_(BATCH, HEADS, tokens, high=books[number][0])
        spans.append(TransformCodes(codes, gains, ids, *made[number], planes))
    return spans


def _table() -> SpanTable:
    """Directions that are kept in part, the Hadamard matrix, planes of each batch row's own; a hidden beginning."""
    keys = _spans(
        {1: (7, 40, ((40, 24, 8), (32, 32, 8))), 2: (5, 0, ((64, 32), (64, 32))), 3: (9, 16, ((16, 16, 16, 8),) * 2)},
        ((1, 48), (1, 48), (2, 96), (3, 24)),
    )
    values = _spans({4: (6, 64, ((64, 64),) * 2), 5: (3, 32, ((32, 32),) * 2)}, ((4, 48), (4, 48), (4, 96), (5, 24)))
    return SpanTable(tuple(keys), tuple(values), (Place(24, 8), Place(72), Place(120), Place(216)))


def _moved(table: SpanTable) -> SpanTable:
    """On the device of the tests; what shared a codebook shares it still."""
    known: dict[int, Tensor] = {}

    def put(x: Tensor) -> Tensor:
        return known.setdefault(id(x), x.to(DEVICE))

    def moved(span: TransformCodes) -> TransformCodes:
        directions = None if span.directions is None else put(span.directions)
        rows = Rows8(*map(put, span.codewords))
        return TransformCodes(*map(put, span[:3]), rows, directions, put(span.scales), span.planes)

    return SpanTable(tuple(map(moved, table.keys)), tuple(map(moved, table.values)), table.places)


def _empty(start: int, stop: int, heads: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Keys and values as torch hands them out: nothing may be read, and what nothing belongs to stays as it is."""
    return tuple(torch.full((BATCH, heads, stop - start, CHANNELS), torch.nan, dtype=dtype, device=device) for _ in range(2))


def _angles(frames: int, device: str = "cpu") -> Angles:
    return ROPE.angles((torch.randn(frames, 3, generator=_generator(5)) * 9).to(device))


def _assert_same(name: str, expected: Tensor, got: Tensor, accuracy: float) -> None:
    got = got.cpu().float()
    assert torch.equal(expected.isnan(), got.isnan()), f"{name}: other places were written"
    assert_close(name, expected.nan_to_num(0), got.nan_to_num(0), accuracy)


def test_runs_are_codebooks() -> None:
    assert _table().runs == [(0, 2), (2, 3), (3, 4)]


@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
def test_the_reference_is_decoding_span_by_span(rotated: bool) -> None:
    table, start, stop = _table(), 40, 230
    angles = _angles(20).tokens(start, stop) if rotated else None
    tiles = _empty(start, stop, HEADS)
    decode_spans(table, (0, 4), Tiles(*tiles, start), angles, "torch")
    for which, (side, tile) in enumerate(zip((table.keys, table.values), tiles, strict=True)):
        whole = torch.full((BATCH, HEADS, 300, CHANNELS), torch.nan)
        for span, place in zip(side, table.places, strict=True):
            out, matrix = torch.empty(BATCH, HEADS, span.num_tokens, CHANNELS), synthesis(*span.filled()[4:6])
            for row, planes in enumerate(span.planes):
                one = slice(row, row + 1)
                codewords = span.codewords.dequantize()[one]
                parts = (part[one] for part in span[:3])
                reconstruct_coefficients(*parts, codewords, matrix[one], planes, out[one], None)
            whole[:, :, place.first + place.skip : place.first + span.num_tokens] = out[:, :, place.skip :]
        expected = whole[:, :, start:stop]
        if rotated and which == 0:
            expected = rotate(expected, ROPE.rotation(torch.randn(20, 3, generator=_generator(5)) * 9).tokens(start, stop))
        _assert_same(f"side {which}", expected, tile, 1e-6)


@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize(("start", "stop", "first", "last"), TILES)
def test_spans_in_triton(
    triton_kernel: Load, start: int, stop: int, first: int, last: int, dtype: torch.dtype, rotated: bool
) -> None:
    table, angles = _table(), _angles(20).tokens(start, stop) if rotated else None
    expected, got = _empty(start, stop, last - first), _empty(start, stop, last - first, dtype, DEVICE)
    reference.decode_spans(table, (0, 4), Tiles(*expected, start, first), angles)
    turned = None if angles is None else angles._replace(cos=angles.cos.to(DEVICE), sin=angles.sin.to(DEVICE))
    triton_kernel("spans").decode_spans(_moved(table), (0, 4), Tiles(*got, start, first), turned)
    for name, one, other in zip(("keys", "values"), expected, got, strict=True):
        _assert_same(name, one, other, ERRORS[dtype])


@pytest.mark.parametrize("side", [0, 1], ids=["keys", "values"])
def test_one_side_alone(triton_kernel: Load, side: int) -> None:
    table, start, stop = _table(), 60, 240
    expected, got = _empty(start, stop, HEADS), _empty(start, stop, HEADS, device=DEVICE)
    reference.decode_spans(table, (1, 4), Tiles(*expected, start), None)
    wanted = [tile if which == side else None for which, tile in enumerate(got)]
    triton_kernel("spans").decode_spans(_moved(table), (1, 4), Tiles(wanted[0], wanted[1], start), None)
    _assert_same("side", expected[side], got[side], ERRORS[torch.float32])
    assert got[1 - side].isnan().all()


def _stretches() -> tuple[StretchTable, tuple[Tensor, Tensor, int]]:
    """A sink, two blocks of a tail whose first frame is hidden, and a current block in another dtype and order of axes."""
    generator = _generator(3)
    keys = tuple(torch.randn(BATCH, HEADS, tokens, CHANNELS, generator=generator).bfloat16() for tokens in (12, 24, 36))
    values = tuple(torch.randn(x.shape, generator=generator).bfloat16() for x in keys)
    current_keys = torch.randn(BATCH, 40, HEADS, CHANNELS, generator=generator).transpose(1, 2)
    current = (current_keys, torch.randn(BATCH, HEADS, 40, CHANNELS, generator=generator), 300)
    return StretchTable(keys, values, (Place(0), Place(240, 12), Place(264))), current


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("start", "stop", "first", "last"), [(0, 340, 0, 3), (250, 310, 1, 3), (5, 300, 0, 1), (255, 290, 0, 2)])
def test_stretches_in_triton(triton_kernel: Load, start: int, stop: int, first: int, last: int, dtype: torch.dtype) -> None:
    table, current = _stretches()
    angles = _angles(25).tokens(start, min(stop, 300))
    expected, got = _empty(start, stop, last - first), _empty(start, stop, last - first, dtype, DEVICE)
    copy_stretches(table, (0, 3), Tiles(*expected, start, first), angles, "torch", current)
    there = StretchTable(*(tuple(x.to(DEVICE) for x in side) for side in (table.keys, table.values)), table.places)
    turned = angles._replace(cos=angles.cos.to(DEVICE), sin=angles.sin.to(DEVICE))
    now = (current[0].to(DEVICE), current[1].to(DEVICE), current[2])
    triton_kernel("spans").copy_stretches(there, (0, 3), Tiles(*got, start, first), turned, now)
    for name, one, other in zip(("keys", "values"), expected, got, strict=True):
        _assert_same(name, one, other, 2e-6 if dtype == torch.float32 else 2.0**-7)


def test_the_reference_copies_and_turns_what_is_kept() -> None:
    table, current = _stretches()
    start, stop = 250, 330
    tiles = _empty(start, stop, HEADS)
    copy_stretches(table, (1, 3), Tiles(*tiles, start), _angles(25).tokens(start, 300), "torch", current)
    kept = [torch.cat([x[1][:, :, 12:].float(), x[2].float()], 2) for x in (table.keys, table.values)]  # from token 252 on
    turn = ROPE.rotation(torch.randn(25, 3, generator=_generator(5)) * 9).tokens(252, 300)
    _assert_same("keys", rotate(kept[0], turn), tiles[0][:, :, 2:50], 1e-6)
    assert torch.equal(kept[1], tiles[1][:, :, 2:50]) and tiles[0][:, :, :2].isnan().all()
    assert torch.equal(current[0][:, :, :30], tiles[0][:, :, 50:]) and torch.equal(current[1][:, :, :30], tiles[1][:, :, 50:])


def test_a_current_block_alone(triton_kernel: Load) -> None:
    """Nothing is kept exactly yet: keys are keys and values are values."""
    _, current = _stretches()
    nothing, start, stop = StretchTable((), (), ()), 310, 335
    expected, got = _empty(start, stop, HEADS), _empty(start, stop, HEADS, device=DEVICE)
    copy_stretches(nothing, (0, 0), Tiles(*expected, start), None, "torch", current)
    now = (current[0].to(DEVICE), current[1].to(DEVICE), current[2])
    triton_kernel("spans").copy_stretches(nothing, (0, 0), Tiles(*got, start), None, now)
    for which in (0, 1):
        assert torch.equal(current[which][:, :, 10:35], expected[which]) and torch.equal(expected[which], got[which].cpu())


def test_angles_by_axis_are_those_of_every_token() -> None:
    origins = torch.randn(5, 3, generator=_generator(1)) * 9
    angles = ROPE.angles(origins)
    assert angles.nbytes == 5 * ROPE.bytes_per_frame
    for start, stop in ((0, 60), (7, 31), (30, 30), (50, 70)):
        for part, whole in zip(angles.tokens(start, stop).spread(), ROPE.rotation(origins), strict=True):
            assert torch.equal(part, whole[start : min(stop, 60)])
