"""Vectors in eight bits: int8 with one float16 scale per vector. Centroids and transforms that many tokens share are kept so.

The error is about 1/400 of a vector's largest component; E4M3, with three mantissa bits, would leave far more at the same size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .hadamard import hadamard

_FLOAT16_MAX = 65504.0
_FLOAT16_SMALLEST = 2.0**-24


class Rows8(NamedTuple):
    """values int8 [..., N, D], scales float16 [..., N]; row n means values[n] * scales[n]."""

    values: Tensor
    scales: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """-> [..., N, D] in float32, or float64: exact in both, eight bits times eleven."""
        return self.values * self.scales.to(dtype)[..., None]


def quantize_rows(x: Tensor) -> Rows8:
    """x [..., N, D] -> its nearest Rows8. Magnitudes beyond 127 * 65504 saturate."""
    wanted = x.float().abs().amax(-1) / 127
    # Rounded up, so that the largest component is not clipped; never zero, so that nothing is divided by it.
    scales = wanted.clamp(_FLOAT16_SMALLEST, _FLOAT16_MAX).half()
    scales = torch.where(scales.float() < wanted, _next_up(scales), scales)
    values = torch.round(x.float() / scales.float()[..., None]).clamp(-127, 127).to(torch.int8)
    return Rows8(values, scales)


def synthesis(directions: Tensor | None, scales: Tensor) -> Tensor:
    """Transform from coefficients (as row vectors) to residuals: float32 [..., D, D].

    directions: int8 [..., D, D], one per row, with scales [..., D]; None: the Hadamard matrix, with a scale for each channel.
    """
    if directions is not None:
        return Rows8(directions, scales).dequantize()
    return hadamard(scales.shape[-1]).to(scales.device) * scales.float()[..., None, :]


def dual_rows(rows: Tensor, squares: Tensor | None = None) -> Tensor:
    """Rows [..., R, D] that are nearly at right angles -> the dual ones: inner products with them are the coefficients of the
    nearest sum of `rows` (least squares). In the type of `rows`. `squares`: their lengths squared [..., R], if they are known."""
    squares = rows.square().sum(-1) if squares is None else squares
    norms = squares[..., None].sqrt().clamp(min=1e-30)
    unit = rows / norms
    gram = torch.matmul(unit, unit.transpose(-1, -2))
    twice = _twice_one(gram.shape[-1], rows.dtype, rows.device)
    # Two of Newton's steps towards the inverse of a matrix that is nearly 1: what eight-bit rounding left (1e-2) falls to 1e-8.
    inverse = twice - gram
    inverse = torch.matmul(inverse, twice - torch.matmul(gram, inverse))
    return torch.matmul(inverse, unit) / norms


@lru_cache(maxsize=32)
def _twice_one(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Twice the unit matrix."""
    return 2 * torch.eye(size, dtype=dtype, device=device)


def _next_up(x: Tensor) -> Tensor:
    """The next larger float16 of positive finite ones, the largest excepted."""
    bits = x.view(torch.int16)
    return torch.where(bits < 0x7BFF, bits + 1, bits).view(torch.float16)
