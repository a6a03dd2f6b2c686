"""Group quantization in torch: the truth that other backends are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import e4m3
from ..kmeans.reference import subtract_centroids
from ..packing import pack


def quantize_groups(
    x: Tensor, ids: Tensor, centroids: Tensor, bits: int, group_size: int, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `kernels.quantize_groups`."""
    residual = x.float()
    for stage in range(ids.shape[2]):
        residual = subtract_centroids(residual, ids[:, :, stage], centroids[:, :, stage])
    groups = residual.unflatten(-1, (-1, group_size))  # [B, H, S, G, group size]
    if symmetric:
        offset = (1 << (bits - 1)) - 1
        levels = 2 * offset
        scales, zero_points = e4m3.encode_scale(groups.abs().amax(-1) / offset, up=bits >= 4), None
        codes = groups / _divisor(scales) + offset
    else:
        levels = (1 << bits) - 1
        low, high = groups.aminmax(dim=-1)
        zero_points = e4m3.encode(low)
        lowest = e4m3.decode(zero_points)
        # Measured from the zero point that is stored, so that its own rounding does not push the top out of range.
        scales = e4m3.encode_scale((high - lowest).clamp(min=0) / levels, up=bits >= 4)
        codes = (groups - lowest[..., None]) / _divisor(scales)
    codes = torch.round(codes).clamp(0, levels).to(torch.uint8).flatten(-2)
    group_major = [None if part is None else part.transpose(2, 3).contiguous() for part in (scales, zero_points)]
    return pack(codes, bits), group_major[0], group_major[1]  # type: ignore[return-value]


def _divisor(scales: Tensor) -> Tensor:
    """Decoded scales with a last axis of one; a scale that rounded to zero divides by infinity, so its codes mean zero."""
    decoded = e4m3.decode(scales)[..., None]
    return torch.where(decoded > 0, decoded, torch.inf)
