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
from ..compile_case import CompileCase, Tile, strides
from ..launch import OTHER_TARGETS, RDNA_TARGETS, gpu_kind
from ..rotary import Grid
from ..tiles.triton_kernel import decode_e4m3, whole_halves
from ..turn import Turns
from ..turn.triton_kernel import dense_channels, load_halves, store_halves, turn_keys, turn_values, turns_for_kernel
from . import SPAN_FIELDS, STRETCH_FIELDS, SpanTable, StretchTable, Tiles

_WARPS = 4
_COPIED_TOKENS = 32

# Columns of the tables, as kernels name them.
COLUMN_CODES, COLUMN_GAINS, COLUMN_IDS, COLUMN_CODEWORDS, COLUMN_CODEWORD_SCALES = (tl.constexpr(n) for n in range(5))
COLUMN_BASIS, COLUMN_SCALES, COLUMN_SIZES = (tl.constexpr(n) for n in range(5, 8))
COLUMN_TOKENS, COLUMN_BYTES, COLUMN_CODEWORD_COUNT, COLUMN_DIRECTIONS = (tl.constexpr(n) for n in range(8, 12))
COLUMN_FIRST, COLUMN_SKIP = (tl.constexpr(n) for n in range(12, 14))
SPAN_COLUMNS = tl.constexpr(len(SPAN_FIELDS))
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
def _whole_numbers(x):
    """int8 -> float32, exactly: behind 2^23 an integer is its own mantissa. Conversions run at a quarter of the speed."""
    return ((x.to(tl.uint8, bitcast=True).to(tl.uint32) ^ 0x4B000080).to(tl.float32, bitcast=True)) - 8388736.0


@triton.jit
def span_halves(
    ROW, LEVELS, batch, row, token, live,
    PLANES: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Both halves of the channels of some tokens of a span, decoded: float32 [BLOCK_S, CHANNELS / 2]. `row`: the (b, h).

    The halves are multiplied apart, so that a rotation finds its partners in the same place.
    """
    HALF: tl.constexpr = CHANNELS // 2
    span_tokens = tl.load(ROW + COLUMN_TOKENS)
    directions = tl.load(ROW + COLUMN_DIRECTIONS)
    SIZES = address(ROW, COLUMN_SIZES, tl.int32) + batch * 6
    SCALES = address(ROW, COLUMN_SCALES, tl.float16) + row * tl.where(directions > 0, directions, CHANNELS)
    BASIS = address(ROW, COLUMN_BASIS, tl.int8) + row * directions * CHANNELS
    # Directions are taken as shares of the longest one, so that levels times shares fit float16, or all are as long as 1.
    longest = tl.rsqrt(tl.zeros((), tl.float32) + CHANNELS)
    if directions > 0:
        channel = tl.arange(0, CHANNELS)
        longest = tl.max(tl.load(SCALES + channel, mask=channel < directions, other=0.0).to(tl.float32))
    rows = (row * span_tokens + token) * tl.load(ROW + COLUMN_BYTES)
    CODES = address(ROW, COLUMN_CODES, tl.uint8)
    low, high = tl.zeros((BLOCK_S, HALF), tl.float32), tl.zeros((BLOCK_S, HALF), tl.float32)
    column = tl.arange(0, HALF)
    with_bits = tl.load(SIZES)
    for at in range(0, with_bits, BLOCK_D):
        levels = load_levels(CODES, SIZES, LEVELS, rows, live, at, PLANES, BLOCK_D, BLOCK_S)
        direction = at + tl.arange(0, BLOCK_D)
        used = direction < with_bits
        if directions > 0:
            levels *= (tl.load(SCALES + direction, mask=used, other=0.0).to(tl.float32) * (1.0 / longest))[None, :]
        part = BASIS + direction[:, None] * CHANNELS + column[None, :]
        levels = levels.to(tl.float16)
        low = tl.dot(levels, whole_halves(tl.load(part, mask=used[:, None], other=0)), low)
        high = tl.dot(levels, whole_halves(tl.load(part + HALF, mask=used[:, None], other=0)), high)
    if directions == 0:
        low *= tl.load(SCALES + column).to(tl.float32)[None, :]
        high *= tl.load(SCALES + HALF + column).to(tl.float32)[None, :]
    gains = decode_e4m3(tl.load(address(ROW, COLUMN_GAINS, tl.uint8) + row * span_tokens + token, mask=live, other=0)) * longest
    ids = tl.load(address(ROW, COLUMN_IDS, tl.uint8) + row * span_tokens + token, mask=live, other=0).to(tl.int64)
    name = row * tl.load(ROW + COLUMN_CODEWORD_COUNT) + ids
    scales = tl.load(address(ROW, COLUMN_CODEWORD_SCALES, tl.float16) + name, mask=live, other=0.0).to(tl.float32)
    codewords = address(ROW, COLUMN_CODEWORDS, tl.int8) + name[:, None] * CHANNELS + column[None, :]
    words = _whole_numbers(tl.load(codewords, mask=live[:, None], other=0))
    low = low * gains[:, None] + words * scales[:, None]
    words = _whole_numbers(tl.load(codewords + HALF, mask=live[:, None], other=0))
    high = high * gains[:, None] + words * scales[:, None]
    return low, high


@triton.jit
def find_live(ROW, token, start, tokens):
    """Places of a span's tokens among those of a tile, and which of them are in it and seen."""
    place = tl.load(ROW + COLUMN_FIRST) - start + token
    return place, (token >= tl.load(ROW + COLUMN_SKIP)) & (token < tl.load(ROW + COLUMN_TOKENS)) & (place >= 0) & (place < tokens)


# Numbers that change from tile to tile: a kernel of its own for each kind of them would be compiled in the midst of a video.
_CHANGING = ("count", "blocks", "side", "start", "tokens", "tile_heads", "first_head")
_CHANGING_COPIES = (
    "count", "stretches", "blocks", "side", "start", "tokens", "tile_heads", "first_head", "current_first",
    "current_tokens",
)  # fmt: skip


@triton.jit(do_not_specialize=_CHANGING)
def _decode_spans(
    ROWS, LEVELS, COS, SIN, KEYS, VALUES, count, blocks, side, start, tokens, heads, tile_heads, first_head, grid,
    out_batch, out_head, out_token,
    PLANES: tl.constexpr, TURNS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Grid (spans * blocks of one span, B * tile_heads, sides from `side` on): keys are side 0, values side 1.

    The two halves of a head are multiplied apart, so that a rotation finds its partners in the same place.
    """
    HALF: tl.constexpr = CHANNELS // 2
    which = side + tl.program_id(2)
    ROW = ROWS + (which * count + tl.program_id(0) // blocks) * SPAN_COLUMNS
    span_tokens, first, skip = tl.load(ROW + COLUMN_TOKENS), tl.load(ROW + COLUMN_FIRST) - start, tl.load(ROW + COLUMN_SKIP)
    token = (tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    live = (token >= skip) & (token < span_tokens) & (first + token >= 0) & (first + token < tokens)
    if tl.max(live.to(tl.int32)) == 0:
        return
    batch, head = (tl.program_id(1) // tile_heads).to(tl.int64), (tl.program_id(1) % tile_heads).to(tl.int64)
    row = batch * heads + first_head + head
    low, high = span_halves(ROW, LEVELS, batch, row, token, live, PLANES, CHANNELS, BLOCK_D, BLOCK_S)
    place = (first + token).to(tl.int32)
    if which == 0:
        low, high = turn_keys(low, high, COS, SIN, place, live, grid, TURNS, BLOCK_S, HALF)
        store_halves(KEYS, low, high, batch, head, place, live, out_batch, out_head, out_token, HALF)
    else:
        low, high = turn_values(low, high, COS, place, live, grid, TURNS, BLOCK_S, HALF)
        store_halves(VALUES, low, high, batch, head, place, live, out_batch, out_head, out_token, HALF)


@triton.jit
def load_stretch(
    ROWS, KIND, CURRENT_KEYS, CURRENT_VALUES, which, number, token, batch, head,
    count, start, tokens, stretches, current_first, current_tokens, current_keys, current_values,
    HALF: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Both halves of some tokens of a stretch, or behind them all of the current block: float32 [BLOCK_S, HALF], their places in
    the tile and which are in it."""
    low, high = tl.zeros((BLOCK_S, HALF), tl.float32), tl.zeros((BLOCK_S, HALF), tl.float32)
    if number < stretches:
        ROW = ROWS + (which * count + number) * _STRETCH_FIELDS
        place = tl.load(ROW + 5) - start + token
        live = (token >= tl.load(ROW + 6)) & (token < tl.load(ROW + 4)) & (place >= 0) & (place < tokens)
        X = tl.load(ROW).to(tl.pointer_type(KIND.dtype.element_ty))
        low, high = load_halves(X, batch, head, token, live, tl.load(ROW + 1), tl.load(ROW + 2), tl.load(ROW + 3), HALF)
    else:
        place = current_first - start + token
        live = (token < current_tokens) & (place >= 0) & (place < tokens)
        if which == 0:
            low, high = load_halves(
                CURRENT_KEYS, batch, head, token, live, current_keys.batch, current_keys.head, current_keys.token, HALF
            )
        else:
            low, high = load_halves(
                CURRENT_VALUES, batch, head, token, live, current_values.batch, current_values.head, current_values.token, HALF
            )
    return low, high, place.to(tl.int32), live


@triton.jit(do_not_specialize=_CHANGING_COPIES)
def _copy_stretches(
    ROWS, KIND, CURRENT_KEYS, CURRENT_VALUES, COS, SIN, KEYS, VALUES, count, stretches, blocks,
    side, start, tokens, tile_heads, first_head, current_first, current_tokens, current_keys, current_values, grid,
    out_batch, out_head, out_token,
    TURNS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Grid (stretches, the current block last, * blocks of one, B * tile_heads, sides). KIND: what stretches are kept in."""
    HALF: tl.constexpr = CHANNELS // 2
    which = side + tl.program_id(2)
    number = tl.program_id(0) // blocks
    token = (tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    batch, tile_head = (tl.program_id(1) // tile_heads).to(tl.int64), (tl.program_id(1) % tile_heads).to(tl.int64)
    head = first_head + tile_head
    low, high, place, live = load_stretch(
        ROWS, KIND, CURRENT_KEYS, CURRENT_VALUES, which, number, token, batch, head,
        count, start, tokens, stretches, current_first, current_tokens, current_keys, current_values,
        HALF, BLOCK_S,
    )  # fmt: skip
    if which == 0:
        if number < stretches:
            low, high = turn_keys(low, high, COS, SIN, place, live, grid, TURNS, BLOCK_S, HALF)
        store_halves(KEYS, low, high, batch, tile_head, place, live, out_batch, out_head, out_token, HALF)
    else:
        if number < stretches:
            low, high = turn_values(low, high, COS, place, live, grid, TURNS, BLOCK_S, HALF)
        store_halves(VALUES, low, high, batch, tile_head, place, live, out_batch, out_head, out_token, HALF)


def decode_spans(table: SpanTable, spans: tuple[int, int], tiles: Tiles, turns: Turns | None) -> None:
    """See `kernels.spans.decode_spans`."""
    out, span = tiles.either, table.keys[0]
    batch, tile_heads, tokens, channels = out.shape
    options = decoding_tiles(channels, gpu_kind(out.device).rdna)
    blocks = triton.cdiv(table.longest, options["BLOCK_S"])
    keys, values, side, sides = sides_of(tiles)
    cos, sin, grid, kind = turns_for_kernel(turns, out)
    with torch.cuda.device_of(out):
        _decode_spans[((spans[1] - spans[0]) * blocks, batch * tile_heads, sides)](
            table.rows[:, slice(*spans)], levels_on(out.device), cos, sin, keys, values, len(table.keys), blocks, side,
            tiles.start, tokens, span.codes.shape[1], tile_heads, tiles.first_head, grid, *out.stride()[:3],
            PLANES=max(table.planes), TURNS=kind, CHANNELS=channels, num_stages=1, **options,
        )  # fmt: skip


def copy_stretches(
    table: StretchTable,
    stretches: tuple[int, int],
    tiles: Tiles,
    turns: Turns | None,
    current: tuple[Tensor, Tensor, int] | None,
) -> None:
    """See `kernels.spans.copy_stretches`."""
    out = tiles.either
    batch, tile_heads, tokens, channels = out.shape
    source = Stretches(table, stretches, current, out)
    blocks = triton.cdiv(source.longest, _COPIED_TOKENS)
    keys, values, side, sides = sides_of(tiles)
    cos, sin, grid, kind = turns_for_kernel(turns, out)
    with torch.cuda.device_of(out):
        _copy_stretches[(source.programs * blocks, batch * tile_heads, sides)](
            *source.pointers, cos, sin, keys, values, len(table.keys), source.count, blocks,
            side, tiles.start, tokens, tile_heads, tiles.first_head, *source.current, grid, *out.stride()[:3],
            TURNS=kind, CHANNELS=channels, BLOCK_S=_COPIED_TOKENS, num_warps=_WARPS,
        )  # fmt: skip


class Stretches:
    """Some stretches of a table and the current block as kernels take them."""

    def __init__(
        self,
        table: StretchTable,
        stretches: tuple[int, int],
        current: tuple[Tensor, Tensor, int] | None,
        like: Tensor,
    ):
        self.count = stretches[1] - stretches[0]
        self.programs = self.count + (current is not None)
        keys, values, first = current or (like, like, 0)
        keys, values = dense_channels(keys), dense_channels(values)
        tokens = 0 if current is None else keys.shape[2]
        self.longest = max(tokens, table.longest if self.count else 0)
        rows, held = (table.rows[:, slice(*stretches)], table.keys[stretches[0]]) if self.count else (_nothing(like.device), like)
        self.pointers = (rows, held, keys, values)
        self.current = (first, tokens, OutStrides(*keys.stride()[:3]), OutStrides(*values.stride()[:3]))


def sides_of(tiles: Tiles) -> tuple[Tensor, Tensor, int, int]:
    """Where keys and values go, the first side that is wanted, and how many are."""
    keys, values = tiles.keys, tiles.values
    if keys is not None and values is not None and keys.stride() != values.stride():
        raise ValueError(f"tiles of keys and values are laid out alike, not {keys.stride()} and {values.stride()}")
    if tiles.either.stride(-1) != 1:
        raise ValueError("a tile is written in place: its channels must be dense")
    first = tiles.either
    sides = 2 - (keys is None or values is None)
    return first if keys is None else keys, first if values is None else values, int(keys is None), sides


@lru_cache(maxsize=16)
def levels_on(device: torch.device) -> Tensor:
    """`lloyd_max.table` on a device."""
    return lloyd_max.table().to(device)


@lru_cache(maxsize=16)
def _nothing(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=device)


def decoding_tiles(channels: int, rdna: bool) -> dict[str, int]:
    """Tokens of one program, whose sums of both halves stay in registers, and directions that are multiplied at a time."""
    block = min(64, 4096 // channels * 2)
    return {"BLOCK_S": block, "BLOCK_D": 32 if rdna else 64, "num_warps": 8 if rdna else _WARPS}


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    grid, tile = Grid(*("i32",) * len(Grid._fields)), OutStrides(*("i32",) * len(OutStrides._fields))
    wide = strides(out="batch head token")
    common = {"ROWS": "*i64", "COS": "*fp32", "SIN": "*fp32", "KEYS": "*bf16", "VALUES": "*bf16", "grid": grid}
    cases = []
    endings = ("", "_rotated", "_projected", "_projected_apart")
    for channels, planes, turns in ((128, 4, 1), (128, 6, 1), (128, 4, 0), (128, 4, 3), (64, 4, 1), (256, 4, 1)):
        for rdna in (False, True):
            types = {**common, "LEVELS": "*fp32", **dict.fromkeys((*_CHANGING, "heads", *wide), "i32")}
            tiles = decoding_tiles(channels, rdna)
            warps = tiles.pop("num_warps")
            constants = {"PLANES": planes, "TURNS": turns, "CHANNELS": channels, **tiles}
            name = f"decode_p{planes}_d{channels}{endings[turns]}{'_rdna' * rdna}"
            default, without = (channels, planes) == (128, 4) and turns in (1, 3), OTHER_TARGETS if rdna else RDNA_TARGETS
            held = Tile(tiles["BLOCK_S"] * channels, turns=channels // tiles["BLOCK_D"])
            cases.append(CompileCase(name, _decode_spans, types, constants, wide, warps, 1, True, default, without, held))
        types = {**common, "KIND": "*bf16", "CURRENT_KEYS": "*bf16", "CURRENT_VALUES": "*bf16", "current_keys": tile}
        types |= {"current_values": tile, **dict.fromkeys((*_CHANGING_COPIES, *wide), "i32")}
        constants = {"TURNS": turns, "CHANNELS": channels, "BLOCK_S": _COPIED_TOKENS}
        if planes == 4:
            name = f"copy_d{channels}{endings[turns]}"
            default, held = channels == 128 and turns in (1, 3), Tile(_COPIED_TOKENS * channels)
            multiples = (*wide, "current_keys", "current_values")
            case = CompileCase(name, _copy_stretches, types, constants, multiples, _WARPS, default=default, tile=held)
            cases.append(case)
    return cases
