"""The memory format inside a Triton kernel: E4M3 bytes and planes of codes, by integer operations alone.

The hardware's own 8-bit floats differ from card to card (none below sm_89, another variant on gfx942), integers do not: a span
means the same on every device. The truth is `kernels/e4m3.py` and `kernels/packing.py`. No inline assembly: Triton 3.6 aborts the
process on packed ones. Constants are written where they are used, because a helper that returns one promotes in 3.6.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decode_e4m3(code):
    """uint8 tile -> float32. As in `e4m3.decode`: shifted by seven bits a byte is a float16 whose exponent is off by eight."""
    wide = code.to(tl.uint16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def whole_halves(x):
    """int8 tile -> float16, exactly: behind 2^10 an integer is a float16's own mantissa, and two of them share an instruction."""
    bits = (x.to(tl.uint8, bitcast=True) ^ 0x80).to(tl.uint16) | 0x6400
    return bits.to(tl.float16, bitcast=True) - tl.full(x.shape, 1152.0, tl.float16)


@triton.jit
def encode_e4m3(x):
    """float32 tile -> uint8: nearest, ties to even, saturating at 448."""
    magnitude = tl.minimum(tl.abs(x), 448.0)
    bits = magnitude.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
    # Adding 2^14 leaves 2^-9, the step of the subnormals, as the last bit of the mantissa: rounded to even, by the hardware.
    subnormal = (magnitude + 16384.0).to(tl.int32, bitcast=True) & 0xF
    code = tl.where(magnitude < 0.015625, subnormal, normal)
    return (code | tl.where(x < 0, 128, 0)).to(tl.uint8)


@triton.jit
def encode_scale_e4m3(x, UP: tl.constexpr):
    """Positive float32 scales -> uint8, as `e4m3.encode_scale`: `UP` rounds up, and only zero becomes zero."""
    code = encode_e4m3(x).to(tl.int32)
    if UP:
        below = decode_e4m3(code.to(tl.uint8)) < x
        code += (below & (code < 0x7E)).to(tl.int32)
    return tl.where((code == 0) & (x > 0), 1, code).to(tl.uint8)


@triton.jit
def pack_planes(codes, BITS: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr):
    """int32 codes [BLOCK_S, CHANNELS] below 2^BITS -> packed int32 [BLOCK_S, CHANNELS * BITS / 8]. BITS 1, 2, 4 or 8."""
    PLANES: tl.constexpr = 8 // BITS
    planes = tl.reshape(codes, (BLOCK_S, PLANES, CHANNELS // PLANES))
    return tl.sum(planes << (tl.arange(0, PLANES) * BITS)[None, :, None], 1)


@triton.jit
def _load_plane(
    CODES, rows, live, START: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, PLANE: tl.constexpr
):
    """Codes of channels FIRST to FIRST + WIDTH, all of one plane. Planes of this set are PLANE wide and begin at byte START."""
    byte = START + FIRST % PLANE + tl.arange(0, WIDTH)
    packed = tl.load(CODES + rows[:, None] + byte[None, :], mask=live[:, None], other=0).to(tl.int32)
    return (packed >> (BITS * (FIRST // PLANE))) & ((1 << BITS) - 1)


@triton.jit
def load_codes(CODES, rows, live, FIRST: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, CHANNELS: tl.constexpr):
    """int32 codes [tokens, WIDTH] of channels FIRST to FIRST + WIDTH. rows: int64 offset of each token's first byte.

    The stretch must lie in one plane: WIDTH a power of two, at most `stretch_width`, FIRST a multiple of it.
    """
    if BITS == 3:
        low = _load_plane(CODES, rows, live, 0, FIRST, WIDTH, 2, CHANNELS // 4)
        return low | (_load_plane(CODES, rows, live, CHANNELS // 4, FIRST, WIDTH, 1, CHANNELS // 8) << 2)
    else:
        return _load_plane(CODES, rows, live, 0, FIRST, WIDTH, BITS, CHANNELS * BITS // 8)


@triton.jit
def _load_groups(
    PLACES, offsets, live, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, BLOCK_S: tl.constexpr
):
    """float32 values of E4M3 bytes [G, S], spread over the channels of a stretch: [BLOCK_S, 1] or [BLOCK_S, WIDTH]."""
    if GROUP >= WIDTH:
        byte = tl.load(PLACES + offsets + (FIRST // GROUP) * stride, mask=live, other=0)
        return decode_e4m3(byte)[:, None]
    else:
        group = FIRST // GROUP + tl.arange(0, WIDTH // GROUP)
        byte = tl.load(PLACES + offsets[:, None] + group[None, :] * stride, mask=live[:, None], other=0)
        spread = tl.broadcast_to(decode_e4m3(byte)[:, :, None], (BLOCK_S, WIDTH // GROUP, GROUP))
        return tl.reshape(spread, (BLOCK_S, WIDTH))


@triton.jit
def dequantize_stretch(
    CODES, SCALES, PLACES, rows, offsets, live, scales_group,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """What codes of a stretch mean without their centroids: float32 [BLOCK_S, WIDTH]. PLACES: zero points, if there are ZEROS.

    rows, offsets: int64 place of each token in CODES, and in SCALES and PLACES for group 0; both have the same strides.
    """
    codes = load_codes(CODES, rows, live, FIRST, WIDTH, BITS, CHANNELS)
    # Behind 2^23 an integer is its own mantissa: no conversion instruction, which runs at a quarter of the speed.
    shifted = (codes | 0x4B000000).to(tl.float32, bitcast=True)
    scale = _load_groups(SCALES, offsets, live, scales_group, FIRST, WIDTH, GROUP, BLOCK_S)
    if ZEROS:
        return (shifted - 8388608.0) * scale + _load_groups(PLACES, offsets, live, scales_group, FIRST, WIDTH, GROUP, BLOCK_S)
    else:
        return (shifted - (8388608.0 + ((1 << (BITS - 1)) - 1))) * scale


@triton.jit
def project_halves(
    low, high, MATRICES, tokens, live, first, per_frame, APART: tl.constexpr, BLOCK_S: tl.constexpr, HALF: tl.constexpr
):
    """Both halves of the channels of some tokens, float32 [BLOCK_S, HALF], every four channels times the matrix of their token's
    frame, as `Projection.apply_`: MATRICES float32 [F, 4, 4], `first` tokens of the first frame lie before token 0."""
    frame = (first + tl.where(live, tokens, 0)) // per_frame
    at = MATRICES + frame.to(tl.int64) * 16
    if APART:
        # Channel 4g + 2b + a of the model's own order lies in half a at 2g + b.
        a, c = tl.split(tl.reshape(low, (BLOCK_S, HALF // 2, 2)))
        b, d = tl.split(tl.reshape(high, (BLOCK_S, HALF // 2, 2)))
        a, b, c, d = _project(a, b, c, d, at)
        return tl.reshape(tl.join(a, c), (BLOCK_S, HALF)), tl.reshape(tl.join(b, d), (BLOCK_S, HALF))
    else:
        return _project_fours(low, at, BLOCK_S, HALF), _project_fours(high, at, BLOCK_S, HALF)


@triton.jit
def _project_fours(x, at, BLOCK_S: tl.constexpr, WIDTH: tl.constexpr):
    """Neighbouring fours of channels."""
    even, odd = tl.split(tl.reshape(x, (BLOCK_S, WIDTH // 4, 2, 2)))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    a, b, c, d = _project(a, b, c, d, at)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK_S, WIDTH))


@triton.jit
def _project(a, b, c, d, at):
    """The four channels of every group times the matrices [4, 4] of their tokens."""
    return (
        _project_onto(a, b, c, d, at),
        _project_onto(a, b, c, d, at + 4),
        _project_onto(a, b, c, d, at + 8),
        _project_onto(a, b, c, d, at + 12),
    )


@triton.jit
def _project_onto(a, b, c, d, at):
    """One row of a matrix times four channels."""
    first = tl.load(at)[:, None] * a + tl.load(at + 1)[:, None] * b
    return first + tl.load(at + 2)[:, None] * c + tl.load(at + 3)[:, None] * d


def stretch_width(bits: int, channels: int) -> int:
    """Channels that a kernel takes at a time: inside one plane, inside one half (RoPE pairs halves), and at most 64."""
    return min(channels // 8 if bits == 3 else channels * min(bits, 4) // 8, 64)
