"""Transform coefficients in Triton. Plane sizes are data, so that a codebook with other planes compiles nothing anew.

Encoding adds up in another order than the reference: a gain may land on the other side of an E4M3 border (measured in the tests),
and codes then follow the gain. Decoding multiplies in float16, whose rounding leaves 4e-4 of the residual's size.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import lloyd_max
from ..bitplanes import packed_width
from ..compile_case import CompileCase, Tile, strides
from ..launch import OTHER_TARGETS, RDNA_TARGETS, gpu_kind
from ..tiles.triton_kernel import decode_e4m3, encode_scale_e4m3
from .reference import MOST_OF_LEAST_SQUARES, TOO_MUCH

_WARPS = 4
# With four, a thread's 32 values and their borders take 234 registers, and Triton 3.6 spills.
_ENCODING_WARPS = 8


@triton.jit
def _nearest(y, BORDERS, widths, start, PLANES: tl.constexpr):
    """int32 codes of y [S, D]: binary search among the borders of each channel's width; start = 2^width - 1."""
    codes = tl.zeros(y.shape, tl.int32)
    for index in tl.static_range(PLANES):
        half = 1 << (PLANES - 1 - index)
        wide = (widths > PLANES - 1 - index)[None, :] & (codes >= 0)
        border = tl.load(BORDERS + start[None, :] + codes + (half - 1), mask=wide, other=float("inf"))
        codes = tl.where(y > border, codes + half, codes)
    return codes


@triton.jit
def _quantize(
    Y, WEIGHTS, SIZES, BORDERS, LEVELS, CODES, GAINS, heads, tokens, bytes,
    y_batch, y_head, y_token, y_channel, weights_batch, weights_head, weights_channel,
    PLANES: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr,
    MOST: tl.constexpr, TOO_MUCH: tl.constexpr,
):  # fmt: skip
    """Y [B, H, S, D], WEIGHTS [B, H, D] in any strides; SIZES [6] int32 -> CODES [BH, S, bytes], GAINS [BH, S]."""
    row = tl.program_id(1).to(tl.int64)
    batch, head = row // heads, row % heads
    token = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    channel = tl.arange(0, CHANNELS)
    count = tl.load(SIZES)
    live = token < tokens
    widths = tl.zeros((CHANNELS,), tl.int32)
    for plane in tl.static_range(PLANES):
        widths += (channel < tl.load(SIZES + plane)).to(tl.int32)
    start = (1 << widths) - 1
    y = Y + batch * y_batch + head * y_head + token[:, None] * y_token + channel[None, :] * y_channel
    y = tl.load(y, mask=live[:, None] & (channel < count)[None, :], other=0.0).to(tl.float32)
    weights = WEIGHTS + batch * weights_batch + head * weights_head + channel * weights_channel
    weights = tl.load(weights, mask=channel < count, other=0.0).to(tl.float32)
    spread = tl.sqrt_rn(tl.div_rn(tl.sum(y * y, 1), tl.zeros((BLOCK_S,), tl.float32) + count))
    levels = tl.load(LEVELS + start[None, :] + _nearest(_scaled(y, spread), BORDERS, widths, start, PLANES))
    weighted = weights[None, :] * y
    energy, product = tl.sum(weighted * y, 1), tl.sum(weighted * levels, 1)
    gain = tl.where(product > 0, tl.div_rn(energy, tl.maximum(product, 1e-30)), 0.0)
    least = _least_squares(product, tl.sum(weights[None, :] * levels * levels, 1))
    most = MOST * tl.minimum(least, _least_squares(tl.sum(y * levels, 1), tl.sum(levels * levels, 1)))
    gains = encode_scale_e4m3(tl.minimum(gain, most), False)
    gains = tl.where(decode_e4m3(gains) > TOO_MUCH * most, gains - 1, gains)
    codes = _nearest(_scaled(y, decode_e4m3(gains)), BORDERS, widths, start, PLANES)
    tl.store(GAINS + row * tokens + token, gains, mask=live)
    eight, place = tl.arange(0, 8), tl.arange(0, CHANNELS // 8)
    out = CODES + (row * tokens + token[:, None]) * bytes + place[None, :]
    for plane in tl.static_range(PLANES):
        size = tl.load(SIZES + plane)
        bits = tl.reshape((codes >> plane) & 1, (BLOCK_S, CHANNELS // 8, 8))
        packed = tl.sum(bits << eight[None, None, :], 2)
        tl.store(out, packed.to(tl.uint8), mask=live[:, None] & (place * 8 < size)[None, :])
        out += size // 8


@triton.jit
def _least_squares(product, energy):
    """The gain of least error, never below 0."""
    return tl.div_rn(tl.maximum(product, 0.0), tl.maximum(energy, 1e-30))


@triton.jit
def _scaled(y, scale):
    """y [S, D] over scale [S], correctly rounded; a scale of zero gives zero."""
    return tl.div_rn(y, tl.broadcast_to(tl.where(scale > 0, scale, float("inf"))[:, None], y.shape))


@triton.jit
def load_levels(
    CODES, SIZES, LEVELS, rows, live, first,
    PLANES: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Levels [BLOCK_S, BLOCK_D] of the channels from `first` on, in the table's type; 0 where a channel has no bits.

    Eight channels share a byte of every plane, and so their width. All that belongs to such a byte stays with one thread: each of
    its channels is looked up in a tile [BLOCK_S, BLOCK_D / 8] of its own, as bytes are loaded. One tile of all channels would be
    spread over lanes channel by channel, and each of eight lanes would do the work of the byte.
    """
    byte = first // 8 + tl.arange(0, BLOCK_D // 8)
    low = tl.zeros((BLOCK_S, BLOCK_D // 8), tl.uint32)
    high = tl.zeros((BLOCK_S, BLOCK_D // 8), tl.uint32)
    widths = tl.zeros((BLOCK_D // 8,), tl.int32)
    place = CODES + rows[:, None] + byte[None, :]
    for plane in tl.static_range(PLANES):
        size = tl.load(SIZES + plane)
        packed = tl.load(place, mask=live[:, None] & (byte * 8 < size)[None, :], other=0).to(tl.uint32)
        if plane < 4:
            low |= packed << (8 * plane)
        else:
            high |= packed << (8 * (plane - 4))
        widths += (byte * 8 < size).to(tl.int32)
        place += size // 8
    low = _turned(low)
    if PLANES > 4:
        high = _turned(high)
    LEVELS += ((1 << widths) - 1)[None, :]
    a = tl.join(_level(LEVELS, low, high, 0, PLANES), _level(LEVELS, low, high, 1, PLANES))
    b = tl.join(_level(LEVELS, low, high, 2, PLANES), _level(LEVELS, low, high, 3, PLANES))
    c = tl.join(_level(LEVELS, low, high, 4, PLANES), _level(LEVELS, low, high, 5, PLANES))
    d = tl.join(_level(LEVELS, low, high, 6, PLANES), _level(LEVELS, low, high, 7, PLANES))
    levels = tl.join(tl.join(a, b), tl.join(c, d))
    return tl.reshape(tl.permute(levels, (0, 1, 4, 3, 2)), (BLOCK_S, BLOCK_D))


@triton.jit
def _turned(planes):
    """Four planes' bytes in a word -> codes: of channel c the four bits from 8 * (c % 4) + 4 * (c // 4) on. Bits of channel and
    plane change places as numbers of rows and columns do when a matrix is transposed (Warren, Hacker's Delight, 7-3)."""
    some = (planes ^ (planes >> 7)) & 0x00AA00AA
    planes ^= some ^ (some << 7)
    some = (planes ^ (planes >> 14)) & 0x0000CCCC
    return planes ^ some ^ (some << 14)


@triton.jit
def _level(LEVELS, low, high, CHANNEL: tl.constexpr, PLANES: tl.constexpr):
    """The level of one channel of every byte."""
    code = (low >> (8 * (CHANNEL % 4) + 4 * (CHANNEL // 4))) & 15
    if PLANES > 4:
        code |= ((high >> (8 * (CHANNEL % 4) + 4 * (CHANNEL // 4))) & 15) << 4
    return tl.load(LEVELS + code.to(tl.int32))


@triton.jit
def _reconstruct(
    CODES, GAINS, IDS, CODEWORDS, MATRIX, UNITS, SIZES, LEVELS, COS, SIN, OUT, heads, tokens,
    codes_batch, codes_head, codes_token, gains_batch, gains_head, ids_batch, ids_head,
    codewords_batch, codewords_head, codewords_cluster, angles_token, out_batch, out_head, out_token, out_channel,
    PLANES: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """OUT [B, H, S, D] in any strides = CODEWORDS[IDS] + GAINS * (levels @ MATRIX * UNITS).

    MATRIX [BH, D, D] float16, UNITS [BH].

    The two halves of a head are multiplied apart, so that a rotation (COS not None) finds its partners in the same place.
    """
    HALF: tl.constexpr = CHANNELS // 2
    row = tl.program_id(1).to(tl.int64)
    batch, head = row // heads, row % heads
    token = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    column = tl.arange(0, HALF)
    live = token < tokens
    rows = batch * codes_batch + head * codes_head + token * codes_token
    low, high = tl.zeros((BLOCK_S, HALF), tl.float32), tl.zeros((BLOCK_S, HALF), tl.float32)
    count = tl.load(SIZES)
    for first in range(0, count, BLOCK_D):
        levels = load_levels(CODES, SIZES, LEVELS, rows, live, first, PLANES, BLOCK_D, BLOCK_S).to(tl.float16)
        channel = first + tl.arange(0, BLOCK_D)
        part = MATRIX + (row * CHANNELS + channel[:, None]) * CHANNELS + column[None, :]
        used = (channel < count)[:, None]
        low = tl.dot(levels, tl.load(part, mask=used, other=0.0), low)
        high = tl.dot(levels, tl.load(part + HALF, mask=used, other=0.0), high)
    gains = tl.load(GAINS + batch * gains_batch + head * gains_head + token, mask=live, other=0)
    gains = decode_e4m3(gains) * tl.load(UNITS + row)
    ids = tl.load(IDS + batch * ids_batch + head * ids_head + token, mask=live, other=0).to(tl.int64)
    codewords = CODEWORDS + batch * codewords_batch + head * codewords_head + ids[:, None] * codewords_cluster + column[None, :]
    low = low * gains[:, None] + tl.load(codewords, mask=live[:, None], other=0.0).to(tl.float32)
    high = high * gains[:, None] + tl.load(codewords + HALF, mask=live[:, None], other=0.0).to(tl.float32)
    if COS is not None:
        angle = token[:, None] * angles_token + column[None, :]
        cos = tl.load(COS + angle, mask=live[:, None], other=0.0)
        sin = tl.load(SIN + angle, mask=live[:, None], other=0.0)
        low, high = low * cos - high * sin, high * cos + low * sin
    target = OUT + batch * out_batch + head * out_head + token[:, None] * out_token + column[None, :].to(tl.int64) * out_channel
    tl.store(target, low.to(OUT.dtype.element_ty), mask=live[:, None])
    tl.store(target + HALF * out_channel, high.to(OUT.dtype.element_ty), mask=live[:, None])


@lru_cache(maxsize=256)
def _sizes(planes: tuple[int, ...], device: torch.device) -> Tensor:
    """Plane sizes where a kernel can read them: int32 [6], the missing ones 0."""
    return torch.tensor([*planes, *[0] * (lloyd_max.MAX_BITS - len(planes))], dtype=torch.int32, device=device)


@lru_cache(maxsize=16)
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Levels and borders of every width (`lloyd_max.py`) on a device."""
    return lloyd_max.table().to(device), lloyd_max.border_table().to(device)


def _block(channels: int) -> int:
    """Tokens of one encoding program: 16 values for each of its threads."""
    return 4096 // channels


def _decoding_tiles(channels: int, rdna: bool) -> dict[str, int]:
    """Tokens of one decoding program, whose sums of both halves stay in registers, and channels whose levels are multiplied at a
    time."""
    block = min(64, 4096 // channels * 2)
    return {"BLOCK_S": block, "BLOCK_D": 32 if rdna else 64, "num_warps": 8 if rdna else _WARPS}


def quantize_coefficients(y: Tensor, weights: Tensor, planes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """See `kernels.quantize_coefficients`."""
    batch, heads, tokens, channels = y.shape
    width = packed_width(planes)
    codes = torch.empty(batch, heads, tokens, width, dtype=torch.uint8, device=y.device)
    gains = torch.empty(batch, heads, tokens, dtype=torch.uint8, device=y.device)
    levels, borders = _tables(y.device)
    if gains.numel():
        with torch.cuda.device_of(y):
            _quantize[(triton.cdiv(tokens, _block(channels)), batch * heads)](
                y, weights, _sizes(planes, y.device), borders, levels, codes, gains, heads, tokens, width,
                *y.stride(), *weights.stride(),
                PLANES=len(planes), CHANNELS=channels, BLOCK_S=_block(channels),
                MOST=MOST_OF_LEAST_SQUARES, TOO_MUCH=TOO_MUCH, num_warps=_ENCODING_WARPS,
            )  # fmt: skip
    return codes, gains


def reconstruct_coefficients(
    codes: Tensor,
    gains: Tensor,
    ids: Tensor,
    codewords: Tensor,
    matrix: Tensor,
    planes: tuple[int, ...],
    out: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """See `kernels.reconstruct_coefficients`."""
    batch, heads, tokens, channels = out.shape
    if not out.numel():
        return out
    codes, gains, ids, codewords = (_rows(part) for part in (codes, gains, ids, codewords))
    cos, sin = (None, None) if rotation is None else (_rows(part) for part in rotation)
    if cos is not None and cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    halves, units = _normalized(matrix)
    tiles = _decoding_tiles(channels, gpu_kind(out.device).rdna)
    with torch.cuda.device_of(out):
        _reconstruct[(triton.cdiv(tokens, tiles["BLOCK_S"]), batch * heads)](
            codes, gains, ids, codewords, halves, units, _sizes(planes, out.device), _tables(out.device)[0], cos, sin, out,
            heads, tokens, *codes.stride()[:3], *gains.stride()[:2], *ids.stride()[:2], *codewords.stride()[:3],
            0 if cos is None else cos.stride(0), *out.stride(),
            PLANES=len(planes), CHANNELS=channels, num_stages=1, **tiles,
        )  # fmt: skip
    return out


def _normalized(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """float16 matrices [BH, D, D] below 1 and the powers of two [BH] float32 that they are to be multiplied by."""
    flat = matrix.float().flatten(0, 1)
    exponents = torch.frexp(flat.abs().amax((1, 2))).exponent
    units = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents)
    return (flat / units[:, None, None]).half().contiguous(), units


def _rows(x: Tensor) -> Tensor:
    """x with a last stride of 1: as a rule x itself."""
    return x if x.stride(-1) == 1 else x.contiguous()


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    cases = []
    tables = {"SIZES": "*i32", "LEVELS": "*fp32"}
    for channels in (128, 64, 256):
        for planes in (3, 4, 6) if channels == 128 else (4,):
            name = f"p{planes}_d{channels}"
            types = {"Y": "*fp32", "WEIGHTS": "*fp32", "BORDERS": "*fp32", "CODES": "*u8", "GAINS": "*u8", **tables}
            multiples, default = strides(y="batch head token", weights="batch head"), (channels, planes) == (128, 4)
            types |= dict.fromkeys(("heads", "tokens", "bytes", *multiples), "i32")
            constants = {"y_channel": 1, "weights_channel": 1, "MOST": MOST_OF_LEAST_SQUARES, "TOO_MUCH": TOO_MUCH}
            constants |= {"PLANES": planes, "CHANNELS": channels, "BLOCK_S": _block(channels)}
            full, held = f"quantize_{name}", Tile(_block(channels) * channels)
            cases.append(CompileCase(full, _quantize, types, constants, multiples, _ENCODING_WARPS, default=default, tile=held))
            for rotated, rdna in itertools.product((False, True), (False, True)):
                types = {"CODES": "*u8", "GAINS": "*u8", "IDS": "*u8", "CODEWORDS": "*fp32", "MATRIX": "*fp16", "UNITS": "*fp32"}
                types |= tables | {"OUT": "*bf16"} | ({"COS": "*fp32", "SIN": "*fp32"} if rotated else {})
                multiples = strides(codes="batch head", codewords="batch head cluster", angles="token", out="batch head token")
                others = strides(codes="token", gains="batch head", ids="batch head")
                types |= dict.fromkeys(("heads", "tokens", *others, *multiples), "i32")
                tiles = _decoding_tiles(channels, rdna)
                warps = tiles.pop("num_warps")
                constants = {"out_channel": 1, "PLANES": planes, "CHANNELS": channels, **tiles}
                constants |= {} if rotated else {"COS": None, "SIN": None}
                full = f"reconstruct_{name}{'_rotated' * rotated}{'_rdna' * rdna}"
                without = OTHER_TARGETS if rdna else RDNA_TARGETS
                common, held = default and not rdna, Tile(tiles["BLOCK_S"] * channels, turns=channels // tiles["BLOCK_D"])
                cases.append(CompileCase(full, _reconstruct, types, constants, multiples, warps, 1, True, common, without, held))
    return cases
