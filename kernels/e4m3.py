"""Eight-bit floats (E4M3, the OCP "fn" variant) as plain bytes, for machines whose torch or hardware has no fp8.

    byte  s eeee mmm        e > 0: (-1)^s * 2^(e-7) * (1 + m/8)        e = 0: (-1)^s * 2^-6 * m/8

Largest value 448 (byte 0x7E), smallest positive 2^-9. 0x7F and 0xFF mean NaN and are never written:
larger values saturate.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX = 448.0
_SMALLEST_NORMAL = 2.0**-6


def encode(x: Tensor) -> Tensor:
    """Round float32 x to the nearest E4M3 value, ties to even, saturating. -> uint8 of the same shape."""
    magnitude = x.abs().clamp(max=MAX)
    bits = magnitude.view(torch.int32)
    # Keep three mantissa bits: add just under half of what is cut off, plus one if the last kept bit is odd.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    subnormal = torch.round(magnitude * 512).to(torch.int32)
    code = torch.where(magnitude < _SMALLEST_NORMAL, subnormal, normal)
    return (code + 128 * (x < 0)).to(torch.uint8)


def encode_scale(x: Tensor, up: bool) -> Tensor:
    """E4M3 of positive scales. `up` rounds up, so that no value of the group is clipped. Only 0 becomes 0: a scale below
    2^-10 would otherwise wipe its whole group out."""
    code = encode(x)
    if up:
        code = code + ((decode(code) < x) & (code < 0x7E)).to(torch.uint8)
    return torch.where((code == 0) & (x > 0), torch.ones_like(code), code)


def decode(code: Tensor) -> Tensor:
    """uint8 -> float32 of the same shape. The two bytes that mean NaN are never written and decode to +-480.

    Shifted by seven bits a byte is a float16 with the same mantissa and an exponent that is off by eight, subnormals included;
    bit 14 is the copy of the sign that widening has left there.
    """
    bits = (code.view(torch.int8).to(torch.int16) << 7) & ~(1 << 14)
    return bits.view(torch.float16).to(torch.float32).mul_(256.0)
