"""What k-means leaves over, as small integers: subtract centroids, scale each group, round, pack."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..dispatch import implementation, shape_refusal
from ..packing import BITS


class QuantizedGroups(NamedTuple):
    """Packed codes [B, H, S, D * bits / 8], E4M3 scales [B, H, G, S] and zero points [B, H, G, S] or None; all uint8."""

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None


def quantize_groups(
    x: Tensor,
    ids: Tensor,
    centroids: Tensor,
    bits: int,
    group_size: int,
    symmetric: bool = True,
    backend: str = "auto",
) -> QuantizedGroups:
    """Quantize x minus its centroids in groups of channels (Quant VideoGen, arXiv 2602.02958, eq. of the last PRQ step).

    x [B, H, S, D]; ids [B, H, N, S] uint8 and centroids [B, H, N, C, D] for N stages, N may be 0. Symmetric: scale = max|r| /
    (2^(bits-1) - 1), stored code = round(r / scale) + 2^(bits-1) - 1. Asymmetric: scale = (max r - min r) / (2^bits - 1), zero
    point = min r, code = round((r - zero point) / scale). Codes are made with the rounded E4M3 scale, the one that is stored.

    Where E4M3 ends (448 and 2^-9) values saturate. Scales are rounded unlike in the published code in two ways that cost no byte:
    up from 4 bits on (clipping the top of a fine grid costs more than a wider step), and never to zero unless the group is zero.
    """
    channels = x.shape[-1]
    if bits not in BITS:
        raise ValueError(f"bits {bits} must be one of {BITS}")
    if channels % group_size or channels % 8:
        raise ValueError(f"head_dim {channels} must be a multiple of group_size {group_size} and of 8")
    module = implementation("residual", x, backend, shape_refusal(channels, group_size))
    return QuantizedGroups(*module.quantize_groups(x, ids, centroids, bits, group_size, symmetric))
