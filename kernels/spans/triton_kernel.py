"""A tile of a memory in one launch: each program finds its span in the table, decodes a few of its tokens and turns the keys.

Basis and codewords are read as the eight-bit rows they are; directions without bits are neither kept nor read. Multiplies in
float16, whose rounding leaves 4e-4 of the residual's size, and sums in float32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import lloyd_max
from ..coefficients.triton_kernel import load_levels
from ..compile_case import CompileCase, strides
from ..launch import OTHER_TARGETS, RDNA_TARGETS, gpu_kind
from ..rotary import Angles, Grid
from ..tiles.triton_kernel import decode_e4m3
from . import SPAN_FIELDS, STRETCH_FIELDS, SpanTable, StretchTable, Tiles

_WARPS = 4
_COPIED_TOKENS = 32
_NO_GRID = Grid(0, 0, 1, 1, 0, 0, 0)

# Columns of the tables, as kernels name them.
_CODES, _GAINS, _IDS, _CODEWORDS, _CODEWORD_SCALES, _BASIS, _SCALES, _SIZES = (tl.constexpr(n) for n in range(8))
_TOKENS, _BYTES, _CODEWORD_COUNT, _DIRECTIONS, _FIRST, _SKIP = (tl.constexpr(n) for n in range(8, 14))
_SPAN_FIELDS = tl.constexpr(len(SPAN_FIELDS))
_STRETCH_FIELDS = tl.constexpr(len(STRETCH_FIELDS))


class OutStrides(NamedTuple):
    """Elements from one place to the next in a tile; channels are dense."""

    batch: int
    head: int
    token: int


@triton.jit
def address(ROW, field: tl.constexpr, TYPE: tl.constexpr):
    """What a span's row of the table points to."""
    return tl.multiple_of(tl.load(ROW + field).to(tl.pointer_type(TYPE)), 16)


@triton.jit
def load_angles(COS, SIN, tokens, live, grid, HALF: tl.constexpr):
    """Cosines and sines [tokens, HALF] of `Angles`."""
    place = tokens + grid.first
    per_frame = grid.rows * grid.cols
    frame, within = place // per_frame, place % per_frame
    row, col = within // grid.cols, within % grid.cols
    pair = tl.arange(0, HALF)
    of_row = (pair >= grid.time) & (pair < grid.time + grid.row)
    of_col = pair >= grid.time + grid.row
    # Behind the axes before: `rows` or `cols` times as many places as there are pairs of that axis.
    column = pair + tl.where(of_col, (grid.rows - 1) * grid.row, 0)
    per_row, per_col = tl.where(of_row, grid.row, 0), tl.where(of_col, grid.col, 0)
    at = frame.to(tl.int64)[:, None] * grid.frame + (
        column[None, :] + row[:, None] * per_row[None, :] + col[:, None] * per_col[None, :]
    )
    return tl.load(COS + at, mask=live[:, None], other=0.0), tl.load(SIN + at, mask=live[:, None], other=0.0)


@triton.jit
def _whole_numbers(x):
    """int8 -> float32, exactly: behind 2^23 an integer is its own mantissa. Conversions run at a quarter of the speed."""
    return ((x.to(tl.uint8, bitcast=True).to(tl.uint32) ^ 0x4B000080).to(tl.float32, bitcast=True)) - 8388736.0


@triton.jit
def _store_halves(
    OUT, low, high, batch, head, place, live, out_batch, out_head, out_token, HALF: tl.constexpr
):
    """Both halves of the channels of some tokens into a tile."""
    column = tl.arange(0, HALF)
    at = OUT + batch * out_batch + head * out_head + place.to(tl.int64)[:, None] * out_token + column[None, :]
    tl.store(at, low.to(OUT.dtype.element_ty), mask=live[:, None])
    tl.store(at + HALF, high.to(OUT.dtype.element_ty), mask=live[:, None])


# Numbers that change from tile to tile: a kernel of its own for each kind of them would be compiled in the midst of a video.
_CHANGING = ("count", "first_span", "blocks", "side", "start", "tokens", "tile_heads", "first_head")
_CHANGING_COPIES = (
    "count", "first_stretch", "stretches", "blocks", "side", "start", "tokens", "tile_heads", "first_head", "current_first",
    "current_tokens",
)  # fmt: skip


@triton.jit(do_not_specialize=_CHANGING)
def _decode_spans(
    ROWS, LEVELS, COS, SIN, KEYS, VALUES, count, first_span, blocks, side, start, tokens, heads, tile_heads, first_head, grid,
    out_batch, out_head, out_token,
    PLANES: tl.constexpr, ROTATE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Grid (spans * blocks of one span, B * tile_heads, sides from `side` on): keys are side 0, values side 1.

    The two halves of a head are multiplied apart, so that a rotation finds its partners in the same place.
    """
    HALF: tl.constexpr = CHANNELS // 2
    which = side + tl.program_id(2)
    ROW = ROWS + (which * count + first_span + tl.program_id(0) // blocks) * _SPAN_FIELDS
    span_tokens, first, skip = tl.load(ROW + _TOKENS), tl.load(ROW + _FIRST) - start, tl.load(ROW + _SKIP)
    token = (tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    live = (token >= skip) & (token < span_tokens) & (first + token >= 0) & (first + token < tokens)
    if tl.max(live.to(tl.int32)) == 0:
        return
    batch, head = (tl.program_id(1) // tile_heads).to(tl.int64), (tl.program_id(1) % tile_heads).to(tl.int64)
    row = batch * heads + first_head + head
    directions = tl.load(ROW + _DIRECTIONS)
    SIZES = address(ROW, _SIZES, tl.int32) + batch * 6
    SCALES = address(ROW, _SCALES, tl.float16) + row * tl.where(directions > 0, directions, CHANNELS)
    BASIS = address(ROW, _BASIS, tl.int8) + row * directions * CHANNELS
    # Directions are taken as shares of the longest one, so that levels times shares fit float16, or all are as long as 1.
    longest = tl.rsqrt(tl.zeros((), tl.float32) + CHANNELS)
    if directions > 0:
        channel = tl.arange(0, CHANNELS)
        longest = tl.max(tl.load(SCALES + channel, mask=channel < directions, other=0.0).to(tl.float32))
    rows = (row * span_tokens + token) * tl.load(ROW + _BYTES)
    CODES = address(ROW, _CODES, tl.uint8)
    low, high = tl.zeros((BLOCK_S, HALF), tl.float32), tl.zeros((BLOCK_S, HALF), tl.float32)
    column = tl.arange(0, HALF)
    with_bits = tl.load(SIZES)
    for at in range(0, with_bits, BLOCK_D):
        levels = load_levels(CODES, SIZES, LEVELS, rows, live, at, PLANES, BLOCK_D, BLOCK_S)
        direction = at + tl.arange(0, BLOCK_D)
        used = direction < with_bits
        if directions > 0:
            levels *= (tl.load(SCALES + direction, mask=used, other=0.0).to(tl.float32) / longest)[None, :]
        part = BASIS + direction[:, None] * CHANNELS + column[None, :]
        levels = levels.to(tl.float16)
        low = tl.dot(levels, _whole_numbers(tl.load(part, mask=used[:, None], other=0)).to(tl.float16), low)
        high = tl.dot(levels, _whole_numbers(tl.load(part + HALF, mask=used[:, None], other=0)).to(tl.float16), high)
    if directions == 0:
        low *= tl.load(SCALES + column).to(tl.float32)[None, :]
        high *= tl.load(SCALES + HALF + column).to(tl.float32)[None, :]
    gains = decode_e4m3(tl.load(address(ROW, _GAINS, tl.uint8) + row * span_tokens + token, mask=live, other=0)) * longest
    ids = tl.load(address(ROW, _IDS, tl.uint8) + row * span_tokens + token, mask=live, other=0).to(tl.int64)
    name = row * tl.load(ROW + _CODEWORD_COUNT) + ids
    scales = tl.load(address(ROW, _CODEWORD_SCALES, tl.float16) + name, mask=live, other=0.0).to(tl.float32)
    codewords = address(ROW, _CODEWORDS, tl.int8) + name[:, None] * CHANNELS + column[None, :]
    words = _whole_numbers(tl.load(codewords, mask=live[:, None], other=0))
    low = low * gains[:, None] + words * scales[:, None]
    words = _whole_numbers(tl.load(codewords + HALF, mask=live[:, None], other=0))
    high = high * gains[:, None] + words * scales[:, None]
    place = (first + token).to(tl.int32)
    if which == 0:
        if ROTATE:
            cos, sin = load_angles(COS, SIN, place, live, grid, HALF)
            low, high = low * cos - high * sin, high * cos + low * sin
        _store_halves(KEYS, low, high, batch, head, place, live, out_batch, out_head, out_token, HALF)
    else:
        _store_halves(VALUES, low, high, batch, head, place, live, out_batch, out_head, out_token, HALF)


@triton.jit
def _load_halves(X, batch, head, token, live, x_batch, x_head, x_token, HALF: tl.constexpr):
    """Both halves of the channels of some tokens, float32."""
    at = X + batch * x_batch + head * x_head + token[:, None] * x_token + tl.arange(0, HALF)[None, :]
    low = tl.load(at, mask=live[:, None], other=0.0).to(tl.float32)
    return low, tl.load(at + HALF, mask=live[:, None], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=_CHANGING_COPIES)
def _copy_stretches(
    ROWS, KIND, CURRENT_KEYS, CURRENT_VALUES, COS, SIN, KEYS, VALUES, count, first_stretch, stretches, blocks,
    side, start, tokens, tile_heads, first_head, current_first, current_tokens, current_keys, current_values, grid,
    out_batch, out_head, out_token,
    ROTATE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Grid (stretches, the current block last, * blocks of one, B * tile_heads, sides). KIND: what stretches are kept in."""
    HALF: tl.constexpr = CHANNELS // 2
    which = side + tl.program_id(2)
    number = tl.program_id(0) // blocks
    token = (tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    batch, tile_head = (tl.program_id(1) // tile_heads).to(tl.int64), (tl.program_id(1) % tile_heads).to(tl.int64)
    head = first_head + tile_head
    low, high = tl.zeros((BLOCK_S, HALF), tl.float32), tl.zeros((BLOCK_S, HALF), tl.float32)
    if number < stretches:
        ROW = ROWS + (which * count + first_stretch + number) * _STRETCH_FIELDS
        place = tl.load(ROW + 5) - start + token
        live = (token >= tl.load(ROW + 6)) & (token < tl.load(ROW + 4)) & (place >= 0) & (place < tokens)
        X = tl.load(ROW).to(tl.pointer_type(KIND.dtype.element_ty))
        low, high = _load_halves(X, batch, head, token, live, tl.load(ROW + 1), tl.load(ROW + 2), tl.load(ROW + 3), HALF)
    else:
        place = current_first - start + token
        live = (token < current_tokens) & (place >= 0) & (place < tokens)
        if which == 0:
            low, high = _load_halves(
                CURRENT_KEYS, batch, head, token, live, current_keys.batch, current_keys.head, current_keys.token, HALF
            )
        else:
            low, high = _load_halves(
                CURRENT_VALUES, batch, head, token, live, current_values.batch, current_values.head, current_values.token, HALF
            )
    place = place.to(tl.int32)
    if which == 0:
        if ROTATE:
            if number < stretches:
                cos, sin = load_angles(COS, SIN, place, live, grid, HALF)
                low, high = low * cos - high * sin, high * cos + low * sin
        _store_halves(KEYS, low, high, batch, tile_head, place, live, out_batch, out_head, out_token, HALF)
    else:
        _store_halves(VALUES, low, high, batch, tile_head, place, live, out_batch, out_head, out_token, HALF)


def decode_spans(table: SpanTable, spans: tuple[int, int], tiles: Tiles, angles: Angles | None) -> None:
    """See `kernels.spans.decode_spans`."""
    out, span = tiles.either, table.keys[0]
    batch, tile_heads, tokens, channels = out.shape
    options = _decoding_tiles(channels, gpu_kind(out.device).rdna)
    blocks = triton.cdiv(table.longest, options["BLOCK_S"])
    keys, values, side, sides = _sides(tiles)
    cos, sin, grid = _turns(angles, out)
    with torch.cuda.device_of(out):
        _decode_spans[((spans[1] - spans[0]) * blocks, batch * tile_heads, sides)](
            table.rows, _levels(out.device), cos, sin, keys, values, len(table.keys), spans[0], blocks, side,
            tiles.start, tokens, span.codes.shape[1], tile_heads, tiles.first_head, grid, *out.stride()[:3],
            PLANES=max(table.planes), ROTATE=angles is not None, CHANNELS=channels, num_stages=1, **options,
        )  # fmt: skip


def copy_stretches(
    table: StretchTable,
    stretches: tuple[int, int],
    tiles: Tiles,
    angles: Angles | None,
    current: tuple[Tensor, Tensor, int] | None,
) -> None:
    """See `kernels.spans.copy_stretches`."""
    out = tiles.either
    batch, tile_heads, tokens, channels = out.shape
    count = stretches[1] - stretches[0]
    current_keys, current_values, first = current or (out, out, 0)
    current_keys, current_values = _dense_channels(current_keys), _dense_channels(current_values)
    current_tokens = 0 if current is None else current_keys.shape[2]
    blocks = triton.cdiv(max(current_tokens, table.longest if count else 0), _COPIED_TOKENS)
    keys, values, side, sides = _sides(tiles)
    cos, sin, grid = _turns(angles, out)
    rows, kind = (table.rows, table.keys[0]) if count else (_nothing(out.device), out)
    with torch.cuda.device_of(out):
        _copy_stretches[((count + (current is not None)) * blocks, batch * tile_heads, sides)](
            rows, kind, current_keys, current_values, cos, sin, keys, values, len(table.keys), stretches[0], count, blocks,
            side, tiles.start, tokens, tile_heads, tiles.first_head, first, current_tokens,
            OutStrides(*current_keys.stride()[:3]), OutStrides(*current_values.stride()[:3]), grid, *out.stride()[:3],
            ROTATE=angles is not None, CHANNELS=channels, BLOCK_S=_COPIED_TOKENS, num_warps=_WARPS,
        )  # fmt: skip


def _sides(tiles: Tiles) -> tuple[Tensor, Tensor, int, int]:
    """Where keys and values go, the first side that is wanted, and how many are."""
    keys, values = tiles.keys, tiles.values
    if keys is not None and values is not None and keys.stride() != values.stride():
        raise ValueError(f"tiles of keys and values are laid out alike, not {keys.stride()} and {values.stride()}")
    if tiles.either.stride(-1) != 1:
        raise ValueError("a tile is written in place: its channels must be dense")
    first = tiles.either
    return first if keys is None else keys, first if values is None else values, int(keys is None), 2 - (keys is None or values is None)


def _turns(angles: Angles | None, out: Tensor) -> tuple[Tensor, Tensor, Grid]:
    return (out, out, _NO_GRID) if angles is None else (angles.cos, angles.sin, angles.grid)


def _dense_channels(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@lru_cache(maxsize=16)
def _levels(device: torch.device) -> Tensor:
    """`lloyd_max.table` on a device."""
    return lloyd_max.table().to(device)


@lru_cache(maxsize=16)
def _nothing(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=device)


def _decoding_tiles(channels: int, rdna: bool) -> dict[str, int]:
    """Tokens of one program, whose sums of both halves stay in registers, and directions that are multiplied at a time."""
    block = min(64, 4096 // channels * 2)
    return {"BLOCK_S": block, "BLOCK_D": 32 if rdna else 64, "num_warps": 8 if rdna else _WARPS}
