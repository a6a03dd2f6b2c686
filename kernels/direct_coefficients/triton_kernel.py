"""Attention on transform coefficients for few queries, in the manner of `direct/triton_kernel.py`.

A key has to be brought back into its channels before it can be rotated: one more product per tile. Values need that only once:
the sum of weighted coefficients is brought back to channels at the end, beside the sum of weighted codewords. Basis and codewords
are read as the eight-bit rows they are, plane sizes are data: a codebook with other planes compiles nothing anew.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import lloyd_max
from ..attention.triton_kernel import add_bias, softmax_step, store_result
from ..coefficients.triton_kernel import load_levels
from ..compile_case import CompileCase, Tile, strides
from ..direct.triton_kernel import fenced, half_float, load_query_halves, needs_fence, score_halves
from ..launch import LOG2_E, GpuKind, coefficient_tiles, flat_rows, gpu_kind, key_splits
from ..rotary import Angles, Grid
from ..spans.triton_kernel import (
    COLUMN_BASIS,
    COLUMN_BYTES,
    COLUMN_CODES,
    COLUMN_CODEWORD_COUNT,
    COLUMN_CODEWORD_SCALES,
    COLUMN_CODEWORDS,
    COLUMN_DIRECTIONS,
    COLUMN_FIRST,
    COLUMN_GAINS,
    COLUMN_IDS,
    COLUMN_SCALES,
    COLUMN_SIZES,
    COLUMN_SKIP,
    COLUMN_TOKENS,
    SPAN_COLUMNS,
    address,
)
from ..tiles.triton_kernel import decode_e4m3, whole_halves
from ..turn.triton_kernel import load_angles

if TYPE_CHECKING:
    from ..spans import SpanTable

_NO_GRID = Grid(0, 0, 1, 1, 0, 0, 0)
_BLOCK_D = 64  # coefficients that become channels at a time


@triton.jit
def whole_numbers(x):
    """int8 -> float32, exactly: behind 2^23 an integer is its own mantissa. Conversions run at a quarter of the speed."""
    return ((x.to(tl.uint8, bitcast=True).to(tl.uint32) ^ 0x4B000080).to(tl.float32, bitcast=True)) - 8388736.0


@triton.jit
def load_codewords(CODEWORDS, names, live, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """Channels FIRST to FIRST + WIDTH of some tokens' codewords, without their scales: int8 [tokens, WIDTH]."""
    at = CODEWORDS + names[:, None] * DIM + (FIRST + tl.arange(0, WIDTH))[None, :]
    return tl.load(at, mask=live[:, None], other=0)


@triton.jit
def load_coefficients(
    CODES, SIZES, LEVELS, SCALES, longest, directions, rows, live, first,
    PLANES: tl.constexpr, HADAMARD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Levels of BLOCK_D channels from `first` on, each times its direction's length as a share of the longest: float32."""
    levels = load_levels(CODES, SIZES, LEVELS, rows, live, first, PLANES, BLOCK_D, BLOCK_N)
    if not HADAMARD:
        direction = first + tl.arange(0, BLOCK_D)
        shares = tl.load(SCALES + direction, mask=direction < directions, other=0.0).to(tl.float32) * (1.0 / longest)
        levels *= shares[None, :]
    return levels


@triton.jit
def load_directions(
    BASIS,
    directions,
    first,
    COLUMN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    FENCE: tl.constexpr,
):
    """Channels COLUMN to COLUMN + WIDTH of BLOCK_D directions from `first` on, without their lengths: float16. Zeros behind the
    `directions` that are kept."""
    direction = first + tl.arange(0, BLOCK_D)
    at = BASIS + direction[:, None] * DIM + (COLUMN + tl.arange(0, WIDTH))[None, :]
    return fenced(whole_halves(tl.load(at, mask=(direction < directions)[:, None], other=0)), FENCE)


@triton.jit
def longest_scale(SCALES, directions, HADAMARD: tl.constexpr, DIM: tl.constexpr):
    """What all directions are multiplied by at the end: the largest scale, or what makes rows of +-1 as long as 1."""
    if HADAMARD:
        return tl.rsqrt(tl.zeros((), tl.float32) + DIM)
    direction = tl.arange(0, DIM)
    return tl.max(tl.load(SCALES + direction, mask=direction < directions, other=0.0).to(tl.float32))


@triton.jit
def flip_signs(low, high, SCALES, HALF: tl.constexpr):
    """Both halves of the channels times the signs that stand before a Hadamard matrix."""
    low *= tl.load(SCALES + tl.arange(0, HALF)).to(tl.float32)[None, :]
    high *= tl.load(SCALES + HALF + tl.arange(0, HALF)).to(tl.float32)[None, :]
    return low, high


@triton.jit
def turn_back_keys(
    CODES, SIZES, LEVELS, BASIS, SCALES, longest, directions, count, rows, live,
    PLANES: tl.constexpr, HADAMARD: tl.constexpr, FENCE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Both halves of the channels of a tile of keys, without gains and codewords: two float32 tiles [BLOCK_N, DIM / 2]."""
    half: tl.constexpr = DIM // 2
    low, high = tl.zeros((BLOCK_N, half), tl.float32), tl.zeros((BLOCK_N, half), tl.float32)
    for first in range(0, count, BLOCK_D):
        levels = load_coefficients(
            CODES, SIZES, LEVELS, SCALES, longest, directions, rows, live, first, PLANES, HADAMARD, BLOCK_D, BLOCK_N
        )
        levels = fenced(levels.to(tl.float16), FENCE)
        low = tl.dot(levels, load_directions(BASIS, directions, first, 0, BLOCK_D, half, DIM, FENCE), low)
        high = tl.dot(levels, load_directions(BASIS, directions, first, half, BLOCK_D, half, DIM, FENCE), high)
    if HADAMARD:
        low, high = flip_signs(low, high, SCALES, half)
    return low, high


@triton.jit
def add_key_codewords(low, high, GAINS, IDS, CODEWORDS, CODEWORD_SCALES, longest, live, DIM: tl.constexpr):
    """Both halves of a tile of keys times their gains, plus their codewords. GAINS and IDS: those of the tile's tokens."""
    half: tl.constexpr = DIM // 2
    gains = decode_e4m3(tl.load(GAINS, mask=live, other=0)) * longest
    names = tl.load(IDS, mask=live, other=0).to(tl.int32)
    scales = tl.load(CODEWORD_SCALES + names, mask=live, other=0.0).to(tl.float32)[:, None]
    low = low * gains[:, None] + whole_numbers(load_codewords(CODEWORDS, names, live, 0, half, DIM)) * scales
    high = high * gains[:, None] + whole_numbers(load_codewords(CODEWORDS, names, live, half, half, DIM)) * scales
    return low, high


@triton.jit
def add_value_codewords(
    low, high, weights, rescale, IDS, CODEWORDS, CODEWORD_SCALES, live, FENCE: tl.constexpr, DIM: tl.constexpr
):
    """Weighted sums of codewords, both halves of their channels, after one more tile of values: float32 [BLOCK_M, DIM / 2]."""
    half: tl.constexpr = DIM // 2
    names = tl.load(IDS, mask=live, other=0).to(tl.int32)
    scales = tl.load(CODEWORD_SCALES + names, mask=live, other=0.0)[:, None]
    tile = half_float(whole_halves(load_codewords(CODEWORDS, names, live, 0, half, DIM)) * scales, FENCE)
    low = tl.dot(weights, tile, low * rescale[:, None])
    tile = half_float(whole_halves(load_codewords(CODEWORDS, names, live, half, half, DIM)) * scales, FENCE)
    high = tl.dot(weights, tile, high * rescale[:, None])
    return low, high


@triton.jit
def add_coefficients(
    low, high, weights, rescale, gains, CODES, SIZES, LEVELS, rows, live,
    PLANES: tl.constexpr, FENCE: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Weighted sums of levels, of the first half of the directions and of the second, after one more tile of values: float32
    [BLOCK_M, DIM / 2], 64 times as large.

    Gains go to the weights, the directions' lengths to the sums (`turn_back_sums`): a level is multiplied by nothing.
    """
    half: tl.constexpr = DIM // 2
    # At most 64 * 480: no need to saturate. The smallest gain, 2^-9, leaves weights their precision.
    weights = (weights * (gains * 64.0)[None, :]).to(tl.float16)
    levels = load_levels(CODES, SIZES, LEVELS, rows, live, 0, PLANES, half, BLOCK_N).to(tl.float16)
    low = tl.dot(weights, fenced(levels, FENCE), low * rescale[:, None])
    levels = load_levels(CODES, SIZES, LEVELS, rows, live, half, PLANES, half, BLOCK_N).to(tl.float16)
    high = tl.dot(weights, fenced(levels, FENCE), high * rescale[:, None])
    return low, high


@triton.jit
def turn_back_sums(
    sums_low, sums_high, BASIS, SCALES, longest, directions,
    HADAMARD: tl.constexpr, FENCE: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Both halves of the channels that weighted sums of coefficients stand for: two float32 tiles [BLOCK_M, DIM / 2]."""
    half: tl.constexpr = DIM // 2
    if not HADAMARD:
        low_part, high_part = tl.arange(0, half), half + tl.arange(0, half)
        low_shares = tl.load(SCALES + low_part, mask=low_part < directions, other=0.0).to(tl.float32) / longest
        high_shares = tl.load(SCALES + high_part, mask=high_part < directions, other=0.0).to(tl.float32) / longest
        sums_low, sums_high = sums_low * low_shares[None, :], sums_high * high_shares[None, :]
    # A sum may be as large as its keys are many, or vanish: as a share of its row's largest it keeps float16's precision.
    peak = tl.maximum(tl.max(tl.abs(sums_low), 1), tl.max(tl.abs(sums_high), 1))
    divisor = tl.where(peak > 0, peak, 1.0)[:, None]
    sums_low, sums_high = (sums_low / divisor).to(tl.float16), (sums_high / divisor).to(tl.float16)
    low = tl.dot(sums_low, load_directions(BASIS, directions, 0, 0, half, half, DIM, FENCE))
    low = tl.dot(sums_high, load_directions(BASIS, directions, half, 0, half, half, DIM, FENCE), low)
    high = tl.dot(sums_low, load_directions(BASIS, directions, 0, half, half, half, DIM, FENCE))
    high = tl.dot(sums_high, load_directions(BASIS, directions, half, half, half, half, DIM, FENCE), high)
    if HADAMARD:
        low, high = flip_signs(low, high, SCALES, half)
    back = (peak * longest / 64)[:, None]
    return low * back, high * back


@triton.jit(do_not_specialize=["count", "query_count", "start", "blocks", "all_blocks", "split_blocks"])
def attend_spans_kernel(
    Q, ROWS, LEVELS, COS, SIN, BIAS, OUT, LSE,
    q_row, q_token, count, heads, query_count, start, blocks, all_blocks, split_blocks, scale, grid,
    K_PLANES: tl.constexpr, V_PLANES: tl.constexpr, K_HADAMARD: tl.constexpr, V_HADAMARD: tl.constexpr,
    ROTATE: tl.constexpr, FENCE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, B * H, splits); OUT [splits, B * H, queries, DIM] and LSE float32.

    ROWS: spans of a codebook, keys first and values `count` rows behind them; `blocks` tiles for each, also where a span has
    fewer. `start`: the visible token with which angles and BIAS begin; BIAS None: no bias.
    """
    half: tl.constexpr = DIM // 2
    row, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live_q = queries < query_count
    q_low, q_high = load_query_halves(Q, row, queries, live_q, q_row, q_token, scale, half)
    VALUES = ROWS + count * SPAN_COLUMNS
    # Codebooks are those of the first span.
    k_directions = DIM if K_HADAMARD else tl.load(ROWS + COLUMN_DIRECTIONS).to(tl.int32)
    v_directions = DIM if V_HADAMARD else tl.load(VALUES + COLUMN_DIRECTIONS).to(tl.int32)
    k_words, v_words = tl.load(ROWS + COLUMN_CODEWORD_COUNT), tl.load(VALUES + COLUMN_CODEWORD_COUNT)
    K_BASIS = address(ROWS, COLUMN_BASIS, tl.int8) + row * (0 if K_HADAMARD else k_directions * DIM)
    V_BASIS = address(VALUES, COLUMN_BASIS, tl.int8) + row * (0 if V_HADAMARD else v_directions * DIM)
    K_SCALES = address(ROWS, COLUMN_SCALES, tl.float16) + row * k_directions
    V_SCALES = address(VALUES, COLUMN_SCALES, tl.float16) + row * v_directions
    K_SIZES = address(ROWS, COLUMN_SIZES, tl.int32) + row // heads * 6
    V_SIZES = address(VALUES, COLUMN_SIZES, tl.int32) + row // heads * 6
    K_CODEWORDS = address(ROWS, COLUMN_CODEWORDS, tl.int8) + row * (k_words * DIM)
    V_CODEWORDS = address(VALUES, COLUMN_CODEWORDS, tl.int8) + row * (v_words * DIM)
    K_CODEWORD_SCALES = address(ROWS, COLUMN_CODEWORD_SCALES, tl.float16) + row * k_words
    V_CODEWORD_SCALES = address(VALUES, COLUMN_CODEWORD_SCALES, tl.float16) + row * v_words
    k_longest = longest_scale(K_SCALES, k_directions, K_HADAMARD, DIM)
    v_longest = longest_scale(V_SCALES, v_directions, V_HADAMARD, DIM)
    with_bits = tl.load(K_SIZES)
    best, mass = tl.full((BLOCK_M,), -float("inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    codewords_low, codewords_high = tl.zeros((BLOCK_M, half), tl.float32), tl.zeros((BLOCK_M, half), tl.float32)
    sums_low, sums_high = tl.zeros((BLOCK_M, half), tl.float32), tl.zeros((BLOCK_M, half), tl.float32)
    for block in tl.range(split * split_blocks, tl.minimum((split + 1) * split_blocks, all_blocks), disable_licm=True):
        K_ROW = ROWS + block // blocks * SPAN_COLUMNS
        V_ROW = K_ROW + count * SPAN_COLUMNS
        span_tokens = tl.load(K_ROW + COLUMN_TOKENS)
        tokens = block % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
        live, wide = (tokens >= tl.load(K_ROW + COLUMN_SKIP)) & (tokens < span_tokens), tokens.to(tl.int64)
        rows = (row * span_tokens + wide) * tl.load(K_ROW + COLUMN_BYTES)
        low, high = turn_back_keys(
            address(K_ROW, COLUMN_CODES, tl.uint8), K_SIZES, LEVELS, K_BASIS, K_SCALES, k_longest, k_directions, with_bits,
            rows, live, K_PLANES, K_HADAMARD, FENCE, BLOCK_N, BLOCK_D, DIM,
        )  # fmt: skip
        low, high = add_key_codewords(
            low, high, address(K_ROW, COLUMN_GAINS, tl.uint8) + row * span_tokens + wide,
            address(K_ROW, COLUMN_IDS, tl.uint8) + row * span_tokens + wide, K_CODEWORDS, K_CODEWORD_SCALES, k_longest, live, DIM,
        )  # fmt: skip
        place = (tl.load(K_ROW + COLUMN_FIRST) - start + wide).to(tl.int32)
        if ROTATE:
            cos, sin = load_angles(COS, SIN, place, live, grid, half)
            low, high = low * cos - high * sin, high * cos + low * sin
        scores = add_bias(score_halves(q_low, q_high, low, high, live, FENCE), BIAS, place, live)
        weights, rescale, best, mass = softmax_step(scores, best, mass)
        gains = decode_e4m3(tl.load(address(V_ROW, COLUMN_GAINS, tl.uint8) + row * span_tokens + wide, mask=live, other=0))
        codewords_low, codewords_high = add_value_codewords(
            codewords_low, codewords_high, weights.to(tl.float16), rescale,
            address(V_ROW, COLUMN_IDS, tl.uint8) + row * span_tokens + wide,
            V_CODEWORDS, V_CODEWORD_SCALES, live, FENCE, DIM,
        )  # fmt: skip
        rows = (row * span_tokens + wide) * tl.load(V_ROW + COLUMN_BYTES)
        sums_low, sums_high = add_coefficients(
            sums_low, sums_high, weights, rescale, gains, address(V_ROW, COLUMN_CODES, tl.uint8), V_SIZES, LEVELS,
            rows, live, V_PLANES, FENCE, BLOCK_N, DIM,
        )  # fmt: skip
    low, high = turn_back_sums(sums_low, sums_high, V_BASIS, V_SCALES, v_longest, v_directions, V_HADAMARD, FENCE, DIM)
    total = tl.join(codewords_low + low, codewords_high + high)
    total = tl.reshape(tl.permute(total, (0, 2, 1)), (BLOCK_M, DIM))
    result = split.to(tl.int64) * tl.num_programs(1) + row
    store_result(OUT, LSE, result, queries.to(tl.int64), query_count, live_q, total, best, mass, DIM)


def attend_spans(
    q: Tensor, table: SpanTable, run: tuple[int, int], start: int, angles: Angles | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `attend_spans` of the package: a part per split, [P, B, H, Sq, D] and [P, B, H, Sq], both float32."""
    batch, heads, queries, channels = q.shape
    keys, values = table.keys[run[0]], table.values[run[0]]
    longest = max(span.num_tokens for span in table.keys[slice(*run)])
    block, tile = coefficient_tiles(queries, channels, gpu_kind(q.device))
    programs, blocks = triton.cdiv(queries, block.rows), triton.cdiv(longest, tile.keys)
    all_blocks = blocks * (run[1] - run[0])
    splits = key_splits(q.device, programs * batch * heads, all_blocks * tile.keys)
    split_blocks = triton.cdiv(all_blocks, splits)
    out = torch.empty((splits, *q.shape), dtype=torch.float32, device=q.device)
    lse = torch.empty((splits, *q.shape[:-1]), dtype=torch.float32, device=q.device)
    if not q.numel():
        return out, lse
    rows = flat_rows(q)
    cos, sin, grid = (rows.tensor, rows.tensor, _NO_GRID) if angles is None else (angles.cos, angles.sin, angles.grid)
    with torch.cuda.device_of(out):
        attend_spans_kernel[(programs, batch * heads, splits)](
            rows.tensor, table.rows[:, slice(*run)], _levels(q.device), cos, sin,
            None if bias is None else bias.contiguous(), out, lse,
            rows.row, rows.token, len(table.keys), heads, queries, start, blocks, all_blocks, split_blocks,
            LOG2_E / math.sqrt(channels), grid,
            K_PLANES=max(map(len, keys.planes)), V_PLANES=max(map(len, values.planes)),
            K_HADAMARD=keys.directions is None, V_HADAMARD=values.directions is None,
            ROTATE=angles is not None, FENCE=needs_fence(q.device),
            BLOCK_M=block.rows, BLOCK_N=tile.keys, BLOCK_D=_BLOCK_D, DIM=channels, num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
    return out, lse


@lru_cache(maxsize=16)
def _levels(device: torch.device) -> Tensor:
    """`lloyd_max.table` on a device."""
    return lloyd_max.table().to(device)


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`. Sixteen and many queries on every kind of card are CI's."""
    types: dict[str, str | tuple[str, ...]] = {"Q": "*bf16", "ROWS": "*i64"}
    types |= dict.fromkeys(("LEVELS", "COS", "SIN", "OUT", "LSE"), "*fp32") | {"scale": "fp32"}
    numbers = ("count", "heads", "query_count", "start", "blocks", "all_blocks", "split_blocks")
    types |= dict.fromkeys((*strides(q="row token"), *numbers), "i32") | {"grid": Grid(*("i32",) * len(Grid._fields))}
    kinds = {
        "": (GpuKind(), ("sm_90", "sm_100")),
        "_fence": (GpuKind(fed_from_registers=True), ("sm_80", "sm_86", "sm_89", "sm_120")),
        "_cdna": (GpuKind(amd=True, lanes=64), ("gfx942",)),
        "_rdna": (GpuKind(amd=True, lanes=32), ("gfx1100", "gfx1201")),
    }
    targets = [target for _, some in kinds.values() for target in some]
    cases = []
    for keys, values, channels, queries, fixed, rotate in (
        (3, 4, 128, 64, False, True),
        (3, 4, 128, 16, False, True),
        (3, 4, 128, 64, False, False),
        (2, 2, 128, 64, True, True),
        (6, 6, 128, 64, False, True),
        (3, 4, 64, 64, False, True),
        (3, 4, 256, 64, False, True),
    ):
        for ending, (kind, own) in kinds.items():
            block, tile = coefficient_tiles(queries, channels, kind)
            constants = {"K_PLANES": keys, "V_PLANES": values, "K_HADAMARD": fixed, "V_HADAMARD": fixed}
            constants |= {"ROTATE": rotate, "DIM": channels, "BIAS": None}
            constants |= {"BLOCK_M": block.rows, "BLOCK_N": tile.keys, "BLOCK_D": _BLOCK_D, "FENCE": kind.fed_from_registers}
            name = f"p{keys}{values}_d{channels}_q{queries}{'_hadamard' * fixed}{'_rotated' * rotate}{ending}"
            default, without = (keys, channels, rotate) == (3, 128, True), tuple(set(targets) - set(own))
            wide = strides(q="row token")
            held = Tile(2 * tile.keys * channels, walked=True, turns=channels // _BLOCK_D)
            cases.append(
                CompileCase(name, attend_spans_kernel, types, constants, wide, tile.warps, 1, True, default, without, held)
            )
    return cases
