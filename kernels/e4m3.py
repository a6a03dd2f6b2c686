"""Eight-bit floats (E4M3, the OCP "fn" variant) as plain bytes, for machines whose torch or hardware has no fp8.

    byte  s eeee mmm        e > 0: (-1)^s * 2^(e-7) * (1 + m/8)        e = 0: (-1)^s * 2^-6 * m/8

Largest value 448 (byte 0x7E), smallest positive 2^-9. 0x7F and 0xFF are NaN and are never written: larger values saturate.
"""

from __future__ import annotations

from functools import lru_cache

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


def decode(code: Tensor) -> Tensor:
    """uint8 -> float32 of the same shape."""
    return torch.nn.functional.embedding(code.to(torch.int32), _table(code.device)).squeeze(-1)


@lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    code = torch.arange(256)
    exponent, mantissa = (code >> 3) & 15, (code & 7) / 8
    value = torch.where(exponent == 0, mantissa * _SMALLEST_NORMAL, (1 + mantissa) * torch.exp2(exponent - 7.0))
    value[0x7F] = value[0xFF] = torch.nan
    return torch.where(code >= 128, -value, value).to(torch.float32)[:, None].to(device)
