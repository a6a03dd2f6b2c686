"""Evenly spaced levels for groups of values, with a scale (and a lowest value) of each group in 16 or 32 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Below it the published code divides by this instead of by the scale; as a float16 it is zero.
_PUBLISHED_LEAST_SCALE = 1e-8


@dataclass(frozen=True)
class Grid:
    """`symmetric`: 2**bits - 1 levels around zero, otherwise 2**bits from the lowest to the highest value.

    `published`: as the code of arXiv 2603.27469 has it. Values are divided by the scale before it is rounded to 16 bits, and what
    an asymmetric group keeps is no lowest value but a zero point, a code that is clamped to 0 ... 2**bits - 1: a group on one
    side of zero loses its values.
    """

    bits: int
    symmetric: bool
    dtype: torch.dtype = torch.float16
    published: bool = False

    @property
    def offset(self) -> int:
        """The code of zero in a symmetric grid; the largest code is twice as large."""
        return (1 << (self.bits - 1)) - 1

    def quantize(self, groups: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Groups [..., g] float32 -> codes uint8 [..., g], scales [...], and for an asymmetric grid zero points [...]."""
        if self.symmetric:
            return self._symmetric(groups)
        levels = (1 << self.bits) - 1
        low, high = groups.aminmax(dim=-1)
        if self.published:
            scales = ((high - low) / levels).clamp(min=_PUBLISHED_LEAST_SCALE)
            zero_points = torch.round(-low / scales).clamp(0, levels)
            codes = groups / scales[..., None] + zero_points[..., None]
        else:
            low = self._stored(low)
            scales = self._stored((high - low.float()).clamp(min=0) / levels)
            zero_points, codes = low, (groups - low.float()[..., None]) / _divisor(scales)
        codes = torch.round(codes).clamp(0, levels).to(torch.uint8)
        return codes, self._stored(scales), self._stored(zero_points)

    def dequantize(self, codes: Tensor, scales: Tensor, zero_points: Tensor | None) -> Tensor:
        """The inverse, in float32."""
        steps = scales.float()[..., None]
        if zero_points is None:
            return (codes.float() - self.offset) * steps
        origin = zero_points.float()[..., None]
        return (codes.float() - origin) * steps if self.published else codes.float() * steps + origin

    def _symmetric(self, groups: Tensor) -> tuple[Tensor, Tensor, None]:
        scales = groups.abs().amax(-1) / self.offset
        if self.published:
            codes = groups / scales.clamp(min=_PUBLISHED_LEAST_SCALE)[..., None]
        else:
            codes = groups / _divisor(self._stored(scales))
        codes = torch.round(codes + self.offset).clamp(0, 2 * self.offset).to(torch.uint8)
        return codes, self._stored(scales), None

    def _stored(self, x: Tensor) -> Tensor:
        most = torch.finfo(self.dtype).max
        return x.float().clamp(-most, most).to(self.dtype)


def _divisor(scales: Tensor) -> Tensor:
    """Stored scales with a last axis of one; where one has become zero, its group's codes mean zero."""
    known = scales.float()[..., None]
    return torch.where(known > 0, known, torch.inf)
