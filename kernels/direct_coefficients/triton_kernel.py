"""Attention on transform coefficients for few queries, in the manner of `direct/triton_kernel.py`.

A key has to be brought back into its channels before it can be rotated: one more product per tile. Values need that only once:
the sum of weighted coefficients is brought back to channels at the end, beside the sum of weighted codewords. Basis and codewords
are read as the eight-bit rows they are, plane sizes are data: a codebook with other planes compiles nothing anew.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import lloyd_max
from ..attention.triton_kernel import add_bias, softmax_step, store_result
from ..coefficients.triton_kernel import load_levels
from ..compile_case import CompileCase, Tile, strides
from ..direct.triton_kernel import fenced, half_float, load_query_halves, needs_fence, rotate_halves, score_halves
from ..hadamard import hadamard
from ..launch import LOG2_E, GpuKind, coefficient_tiles, dense_rows, flat_rows, gpu_kind, key_splits, row_stride
from ..tiles.triton_kernel import decode_e4m3

if TYPE_CHECKING:
    from ..direct import CosSin
    from . import TransformCodes

_BLOCK_D = 64  # coefficients that become channels at a time


class CoefficientStrides(NamedTuple):
    """Elements from one place to the next in the tensors of one operand; a row is a (b, h). All others are dense."""

    codes_row: int
    codes_token: int
    gains_row: int
    ids_row: int
    codewords_row: int
    codeword_scales_row: int
    basis_row: int
    scales_row: int


@triton.jit
def whole_numbers(x):
    """int8 -> float32, exactly: behind 2^23 an integer is its own mantissa. Conversions run at a quarter of the speed."""
    return ((x.to(tl.uint8, bitcast=True).to(tl.uint32) ^ 0x4B000080).to(tl.float32, bitcast=True)) - 8388736.0


@triton.jit
def load_codewords(CODEWORDS, names, live, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """Channels FIRST to FIRST + WIDTH of some tokens' codewords, without their scales: float32 [tokens, WIDTH]."""
    at = CODEWORDS + names[:, None] * DIM + (FIRST + tl.arange(0, WIDTH))[None, :]
    return whole_numbers(tl.load(at, mask=live[:, None], other=0))


@triton.jit
def load_coefficients(
    CODES, SIZES, LEVELS, SCALES, longest, rows, live, first,
    PLANES: tl.constexpr, HADAMARD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Levels of BLOCK_D channels from `first` on, each times its direction's length as a share of the longest: float32."""
    levels = load_levels(CODES, SIZES, LEVELS, rows, live, first, PLANES, BLOCK_D, BLOCK_N)
    if not HADAMARD:
        shares = tl.load(SCALES + first + tl.arange(0, BLOCK_D)).to(tl.float32) / longest
        levels *= shares[None, :]
    return levels


@triton.jit
def load_directions(
    BASIS, first, COLUMN: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, FENCE: tl.constexpr
):
    """Channels COLUMN to COLUMN + WIDTH of BLOCK_D directions from `first` on, without their lengths: float16."""
    at = BASIS + (first + tl.arange(0, BLOCK_D))[:, None] * DIM + (COLUMN + tl.arange(0, WIDTH))[None, :]
    return fenced(whole_numbers(tl.load(at)).to(tl.float16), FENCE)


@triton.jit
def longest_scale(SCALES, HADAMARD: tl.constexpr, DIM: tl.constexpr):
    """What all directions are multiplied by at the end: the largest scale, or what makes rows of +-1 as long as 1."""
    if HADAMARD:
        return tl.rsqrt(tl.zeros((), tl.float32) + DIM)
    return tl.max(tl.load(SCALES + tl.arange(0, DIM)).to(tl.float32))


@triton.jit
def flip_signs(low, high, SCALES, HALF: tl.constexpr):
    """Both halves of the channels times the signs that stand before a Hadamard matrix."""
    low *= tl.load(SCALES + tl.arange(0, HALF)).to(tl.float32)[None, :]
    high *= tl.load(SCALES + HALF + tl.arange(0, HALF)).to(tl.float32)[None, :]
    return low, high


@triton.jit
def turn_back_keys(
    CODES, SIZES, LEVELS, BASIS, SCALES, longest, count, rows, live,
    PLANES: tl.constexpr, HADAMARD: tl.constexpr, FENCE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Both halves of the channels of a tile of keys, without gains and codewords: two float32 tiles [BLOCK_N, DIM / 2]."""
    half: tl.constexpr = DIM // 2
    low, high = tl.zeros((BLOCK_N, half), tl.float32), tl.zeros((BLOCK_N, half), tl.float32)
    for first in range(0, count, BLOCK_D):
        levels = load_coefficients(CODES, SIZES, LEVELS, SCALES, longest, rows, live, first, PLANES, HADAMARD, BLOCK_D, BLOCK_N)
        levels = fenced(levels.to(tl.float16), FENCE)
        low = tl.dot(levels, load_directions(BASIS, first, 0, BLOCK_D, half, DIM, FENCE), low)
        high = tl.dot(levels, load_directions(BASIS, first, half, BLOCK_D, half, DIM, FENCE), high)
    if HADAMARD:
        low, high = flip_signs(low, high, SCALES, half)
    return low, high


@triton.jit
def add_key_codewords(low, high, GAINS, IDS, CODEWORDS, CODEWORD_SCALES, longest, row, wide, live, strides, DIM: tl.constexpr):
    """Both halves of a tile of keys times their gains, plus their codewords."""
    half: tl.constexpr = DIM // 2
    gains = decode_e4m3(tl.load(GAINS + row * strides.gains_row + wide, mask=live, other=0)) * longest
    names = tl.load(IDS + row * strides.ids_row + wide, mask=live, other=0).to(tl.int32)
    scales = tl.load(CODEWORD_SCALES + row * strides.codeword_scales_row + names, mask=live, other=0.0).to(tl.float32)[:, None]
    codewords = CODEWORDS + row * strides.codewords_row
    low = low * gains[:, None] + load_codewords(codewords, names, live, 0, half, DIM) * scales
    high = high * gains[:, None] + load_codewords(codewords, names, live, half, half, DIM) * scales
    return low, high


@triton.jit
def add_value_codewords(
    low, high, weights, rescale, IDS, CODEWORDS, CODEWORD_SCALES, row, wide, live, strides, FENCE: tl.constexpr, DIM: tl.constexpr
):
    """Weighted sums of codewords, both halves of their channels, after one more tile of values: float32 [BLOCK_M, DIM / 2]."""
    half: tl.constexpr = DIM // 2
    names = tl.load(IDS + row * strides.ids_row + wide, mask=live, other=0).to(tl.int32)
    scales = tl.load(CODEWORD_SCALES + row * strides.codeword_scales_row + names, mask=live, other=0.0)[:, None]
    codewords = CODEWORDS + row * strides.codewords_row
    tile = half_float(load_codewords(codewords, names, live, 0, half, DIM).to(tl.float16) * scales, FENCE)
    low = tl.dot(weights, tile, low * rescale[:, None])
    tile = half_float(load_codewords(codewords, names, live, half, half, DIM).to(tl.float16) * scales, FENCE)
    high = tl.dot(weights, tile, high * rescale[:, None])
    return low, high


@triton.jit
def add_coefficients(
    low, high, weights, rescale, gains, CODES, SIZES, LEVELS, SCALES, longest, rows, live,
    PLANES: tl.constexpr, HADAMARD: tl.constexpr, FENCE: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Weighted sums of coefficients, the first half and the second, after one more tile of values: float32 [BLOCK_M, DIM / 2]."""
    half: tl.constexpr = DIM // 2
    # At most 3.75 * 448: no need to saturate.
    levels = load_coefficients(CODES, SIZES, LEVELS, SCALES, longest, rows, live, 0, PLANES, HADAMARD, half, BLOCK_N)
    low = tl.dot(weights, fenced((levels * gains[:, None]).to(tl.float16), FENCE), low * rescale[:, None])
    levels = load_coefficients(CODES, SIZES, LEVELS, SCALES, longest, rows, live, half, PLANES, HADAMARD, half, BLOCK_N)
    high = tl.dot(weights, fenced((levels * gains[:, None]).to(tl.float16), FENCE), high * rescale[:, None])
    return low, high


@triton.jit
def turn_back_sums(sums_low, sums_high, BASIS, SCALES, longest, HADAMARD: tl.constexpr, FENCE: tl.constexpr, DIM: tl.constexpr):
    """Both halves of the channels that weighted sums of coefficients stand for: two float32 tiles [BLOCK_M, DIM / 2]."""
    half: tl.constexpr = DIM // 2
    # A sum may be as large as its keys are many, or vanish: as a share of its row's largest it keeps float16's precision.
    peak = tl.maximum(tl.max(tl.abs(sums_low), 1), tl.max(tl.abs(sums_high), 1))
    divisor = tl.where(peak > 0, peak, 1.0)[:, None]
    sums_low, sums_high = (sums_low / divisor).to(tl.float16), (sums_high / divisor).to(tl.float16)
    low = tl.dot(sums_low, load_directions(BASIS, 0, 0, half, half, DIM, FENCE))
    low = tl.dot(sums_high, load_directions(BASIS, half, 0, half, half, DIM, FENCE), low)
    high = tl.dot(sums_low, load_directions(BASIS, 0, half, half, half, DIM, FENCE))
    high = tl.dot(sums_high, load_directions(BASIS, half, half, half, half, DIM, FENCE), high)
    if HADAMARD:
        low, high = flip_signs(low, high, SCALES, half)
    back = (peak * longest)[:, None]
    return low * back, high * back


@triton.jit
def attend_coefficients_kernel(
    Q, K_CODES, K_GAINS, K_IDS, K_CODEWORDS, K_CODEWORD_SCALES, K_BASIS, K_SCALES, K_SIZES,
    V_CODES, V_GAINS, V_IDS, V_CODEWORDS, V_CODEWORD_SCALES, V_BASIS, V_SCALES, V_SIZES, LEVELS, COS, SIN, BIAS, OUT, LSE,
    q_row, q_token, k_strides, v_strides, heads, query_count, key_count, split_keys, scale,
    K_PLANES: tl.constexpr, V_PLANES: tl.constexpr, K_HADAMARD: tl.constexpr, V_HADAMARD: tl.constexpr,
    ROTATE: tl.constexpr, FENCE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, B * H, splits); OUT [splits, B * H, queries, DIM] and LSE float32. SIZES [B, 6] int32."""
    half: tl.constexpr = DIM // 2
    row, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live_q = queries < query_count
    q_low, q_high = load_query_halves(Q, row, queries, live_q, q_row, q_token, scale, half)
    K_BASIS, V_BASIS = K_BASIS + row * k_strides.basis_row, V_BASIS + row * v_strides.basis_row
    K_SCALES, V_SCALES = K_SCALES + row * k_strides.scales_row, V_SCALES + row * v_strides.scales_row
    K_SIZES, V_SIZES = K_SIZES + row // heads * 6, V_SIZES + row // heads * 6
    k_longest, v_longest = longest_scale(K_SCALES, K_HADAMARD, DIM), longest_scale(V_SCALES, V_HADAMARD, DIM)
    count = tl.load(K_SIZES)
    best, mass = tl.full((BLOCK_M,), -float("inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    codewords_low, codewords_high = tl.zeros((BLOCK_M, half), tl.float32), tl.zeros((BLOCK_M, half), tl.float32)
    sums_low, sums_high = tl.zeros((BLOCK_M, half), tl.float32), tl.zeros((BLOCK_M, half), tl.float32)
    for start in range(split * split_keys, tl.minimum((split + 1) * split_keys, key_count), BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        live, wide = tokens < key_count, tokens.to(tl.int64)
        rows = row * k_strides.codes_row + wide * k_strides.codes_token
        low, high = turn_back_keys(
            K_CODES, K_SIZES, LEVELS, K_BASIS, K_SCALES, k_longest, count, rows, live,
            K_PLANES, K_HADAMARD, FENCE, BLOCK_N, BLOCK_D, DIM,
        )  # fmt: skip
        low, high = add_key_codewords(
            low, high, K_GAINS, K_IDS, K_CODEWORDS, K_CODEWORD_SCALES, k_longest, row, wide, live, k_strides, DIM
        )
        if ROTATE:
            low, high = rotate_halves(low, high, COS, SIN, tokens, live, half)
        scores = add_bias(score_halves(q_low, q_high, low, high, live, FENCE), BIAS, tokens, live)
        weights, rescale, best, mass = softmax_step(scores, best, mass)
        weights = weights.to(tl.float16)
        gains = decode_e4m3(tl.load(V_GAINS + row * v_strides.gains_row + wide, mask=live, other=0))
        codewords_low, codewords_high = add_value_codewords(
            codewords_low,
            codewords_high,
            weights,
            rescale,
            V_IDS,
            V_CODEWORDS,
            V_CODEWORD_SCALES,
            row,
            wide,
            live,
            v_strides,
            FENCE,
            DIM,
        )
        rows = row * v_strides.codes_row + wide * v_strides.codes_token
        sums_low, sums_high = add_coefficients(
            sums_low, sums_high, weights, rescale, gains, V_CODES, V_SIZES, LEVELS, V_SCALES, v_longest, rows, live,
            V_PLANES, V_HADAMARD, FENCE, BLOCK_N, DIM,
        )  # fmt: skip
    low, high = turn_back_sums(sums_low, sums_high, V_BASIS, V_SCALES, v_longest, V_HADAMARD, FENCE, DIM)
    total = tl.join(codewords_low + low, codewords_high + high)
    total = tl.reshape(tl.permute(total, (0, 2, 1)), (BLOCK_M, DIM))
    result = split.to(tl.int64) * tl.num_programs(1) + row
    store_result(OUT, LSE, result, queries.to(tl.int64), query_count, live_q, total, best, mass, DIM)


class TransformOperand:
    """`Operand` of transform coefficients."""

    def __init__(self, stored: TransformCodes):
        codes, channels, codewords = flat_rows(stored.codes), stored.scales.shape[-1], stored.codewords
        gains, ids, scales = (dense_rows(part) for part in (stored.gains, stored.ids, stored.scales))
        values = codewords.values if codewords.values[0, 0].is_contiguous() else codewords.values.contiguous()
        values, codeword_scales = dense_rows(values), dense_rows(codewords.scales)
        if stored.directions is None:
            basis, basis_row = _signs(channels, codes.tensor.device), 0
        else:
            directions = stored.directions
            basis = dense_rows(directions if directions[0, 0].is_contiguous() else directions.contiguous())
            basis_row = row_stride(basis)
        sizes = _sizes(stored.planes, codes.tensor.device)
        self.pointers = (codes.tensor, gains, ids, values, codeword_scales, basis, scales, sizes)
        self.strides = CoefficientStrides(
            codes_row=codes.row,
            codes_token=codes.token,
            gains_row=row_stride(gains),
            ids_row=row_stride(ids),
            codewords_row=row_stride(values),
            codeword_scales_row=row_stride(codeword_scales),
            basis_row=basis_row,
            scales_row=row_stride(scales),
        )
        self.planes = max(map(len, stored.planes))


@lru_cache(maxsize=16)
def _signs(channels: int, device: torch.device) -> Tensor:
    """The Hadamard matrix as +-1: int8 [D, D]."""
    return hadamard(channels).sign().to(device, torch.int8)


@lru_cache(maxsize=256)
def _sizes(planes: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Plane sizes of every batch row where a kernel can read them: int32 [B, 6], missing ones 0."""
    rows = [[*row, *[0] * (lloyd_max.MAX_BITS - len(row))] for row in planes]
    return torch.tensor(rows, dtype=torch.int32, device=device)


def attend_coefficients(
    q: Tensor, keys: TransformCodes, values: TransformCodes, rotation: CosSin | None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `attend_coefficients` of the package: a part per split, [P, B, H, Sq, D] and [P, B, H, Sq], both float32."""
    batch, heads, queries, channels = q.shape
    tokens = keys.num_tokens
    block, tile = coefficient_tiles(queries, channels, gpu_kind(q.device))
    blocks = triton.cdiv(queries, block.rows)
    splits = key_splits(q.device, blocks * batch * heads, tokens)
    split_keys = triton.cdiv(triton.cdiv(tokens, splits), tile.keys) * tile.keys
    out = torch.empty((splits, *q.shape), dtype=torch.float32, device=q.device)
    lse = torch.empty((splits, *q.shape[:-1]), dtype=torch.float32, device=q.device)
    if not q.numel():
        return out, lse
    rows, k, v = flat_rows(q), TransformOperand(keys), TransformOperand(values)
    cos, sin = (rows.tensor, rows.tensor) if rotation is None else (part.contiguous() for part in rotation)
    with torch.cuda.device_of(out):
        attend_coefficients_kernel[(blocks, batch * heads, splits)](
            rows.tensor, *k.pointers, *v.pointers, _levels(q.device), cos, sin,
            None if bias is None else bias.contiguous(), out, lse,
            rows.row, rows.token, k.strides, v.strides, heads, queries, tokens, split_keys, LOG2_E / math.sqrt(channels),
            K_PLANES=k.planes, V_PLANES=v.planes, K_HADAMARD=keys.directions is None, V_HADAMARD=values.directions is None,
            ROTATE=rotation is not None, FENCE=needs_fence(q.device),
            BLOCK_M=block.rows, BLOCK_N=tile.keys, BLOCK_D=_BLOCK_D, DIM=channels, num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
    return out, lse


@lru_cache(maxsize=16)
def _levels(device: torch.device) -> Tensor:
    """`lloyd_max.table` on a device."""
    return lloyd_max.table().to(device)


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`. Sixteen and many queries on every kind of card are CI's."""
    types: dict[str, str | tuple[str, ...]] = {"Q": "*bf16"}
    for side in "KV":
        types |= {f"{side}_{name}": "*u8" for name in ("CODES", "GAINS", "IDS")}
        types |= {f"{side}_{name}": "*i8" for name in ("CODEWORDS", "BASIS")}
        types |= {f"{side}_{name}": "*fp16" for name in ("CODEWORD_SCALES", "SCALES")} | {f"{side}_SIZES": "*i32"}
    types |= dict.fromkeys(("LEVELS", "COS", "SIN", "OUT", "LSE"), "*fp32") | {"scale": "fp32"}
    types |= dict.fromkeys((*strides(q="row token"), "heads", "query_count", "key_count", "split_keys"), "i32")
    types |= dict.fromkeys(("k_strides", "v_strides"), CoefficientStrides(*("i32",) * len(CoefficientStrides._fields)))
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
            wide = (*strides(q="row token"), "k_strides", "v_strides")
            held = Tile(2 * tile.keys * channels, walked=True, turns=channels // _BLOCK_D)
            cases.append(
                CompileCase(name, attend_coefficients_kernel, types, constants, wide, tile.warps, 1, True, default, without, held)
            )
    return cases
