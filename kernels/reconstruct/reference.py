"""Reconstruction in torch: the truth that other backends are tested against, and what runs where there is no Triton.

The first stage's centroids are gathered straight into the output; then each plane of codes (a contiguous stretch of channels,
see `packing.py`) becomes floats, scaled and added in place. Nothing larger than one plane is ever held beside the output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import e4m3, packing
from ..rotary import rotate_in_place


def reconstruct(
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    ids: Tensor,
    centroids: Tensor,
    bits: int,
    group_size: int,
    out: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """See `kernels.reconstruct`."""
    exact = out if out.dtype == torch.float32 else torch.empty(out.shape, device=out.device)
    _gather_centroids(ids, centroids, exact)
    steps = e4m3.decode(scales)
    lows = None if zero_points is None else e4m3.decode(zero_points)
    offset = (1 << (bits - 1)) - 1 if lows is None else 0
    for first, part in _planes(codes, bits):
        values = part.to(torch.float32)
        if offset:
            values -= offset
        last = first + part.shape[-1]
        # A plane may hold several groups, a part of one, or the end of one and the start of the next.
        for group in range(first // group_size, -(-last // group_size)):
            start, stop = max(first, group * group_size), min(last, (group + 1) * group_size)
            target = exact[..., start:stop]
            target.addcmul_(values[..., start - first : stop - first], steps[:, :, group, :, None])
            if lows is not None:
                target += lows[:, :, group, :, None]
    if rotation is not None:
        rotate_in_place(exact, rotation)
    return exact if exact is out else out.copy_(exact)


def _planes(codes: Tensor, bits: int) -> list[tuple[int, Tensor]]:
    """(first channel, codes of consecutive channels) of every plane."""
    if bits == 3:
        return [(0, packing.unpack(codes, 3))]
    width = codes.shape[-1]
    return [(index * width, packing.plane(codes, bits, index)) for index in range(8 // bits)]


def _gather_centroids(ids: Tensor, centroids: Tensor, out: Tensor) -> None:
    """Sum of every stage's centroids, written into float32 out [B, H, S, D]; zeros where there is no stage."""
    stages = ids.shape[2]
    if stages == 0:
        out.zero_()
        return
    batch, heads, _, clusters, channels = centroids.shape
    base = torch.arange(batch * heads, dtype=torch.int32, device=ids.device).view(batch, heads, 1) * clusters
    for stage in range(stages):
        rows = (ids[:, :, stage].to(torch.int32) + base).flatten()
        table = centroids[:, :, stage].float().reshape(-1, channels)
        if stage == 0 and out.is_contiguous():
            torch.index_select(table, 0, rows, out=out.view(-1, channels))
            continue
        gathered = torch.index_select(table, 0, rows).view(out.shape)
        out.copy_(gathered) if stage == 0 else out.add_(gathered)
