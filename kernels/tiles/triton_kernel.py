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
