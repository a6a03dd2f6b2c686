"""Codes of unequal width: bit planes, the on-disk truth.

Channels are sorted so that widths never rise. Plane p holds bit p of the first `planes[p]` channels, the ones that have so many
bits; planes lie behind one another. Byte j of a plane holds channels 8j to 8j+7, the first in the lowest bit.

    planes (96, 64, 32): channels 0-31 have 3 bits, 32-63 two, 64-95 one, the rest none: 24 bytes per token
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor


def check_planes(planes: Sequence[int], channels: int, most: int = 8) -> None:
    """Raise ValueError unless planes are one to `most` multiples of 8 that fall from at most `channels`."""
    fit = all(size % 8 == 0 and size >= 8 for size in planes) and all(low >= high for low, high in pairwise((channels, *planes)))
    if not fit or not 1 <= len(planes) <= most:
        raise ValueError(f"planes {tuple(planes)} must be 1 to {most} multiples of 8 that fall from at most {channels}")


def packed_width(planes: Sequence[int]) -> int:
    """Bytes of one token's codes."""
    return sum(planes) // 8


def widths(planes: Sequence[int], channels: int) -> Tensor:
    """Bits of every channel: int32 [D]."""
    places = torch.arange(channels)
    return torch.stack([places < size for size in planes]).sum(0, dtype=torch.int32)


def pack(codes: Tensor, planes: Sequence[int]) -> Tensor:
    """uint8 codes [..., D], each below 2**width of its channel -> packed uint8 [..., sum(planes) / 8]."""
    weights = _powers(codes.device)
    parts = []
    for index, size in enumerate(planes):
        bits = (codes[..., :size] >> index) & 1
        parts.append((bits.unflatten(-1, (-1, 8)) * weights).sum(-1, dtype=torch.uint8))
    return torch.cat(parts, -1)


def unpack(packed: Tensor, planes: Sequence[int], channels: int) -> Tensor:
    """The inverse of `pack`; channels without bits are 0. -> uint8 [..., D]."""
    codes = torch.zeros((*packed.shape[:-1], channels), dtype=torch.uint8, device=packed.device)
    table = _eight_codes(packed.device)
    for index, (start, stop) in enumerate(pairwise(accumulate(planes, initial=0))):
        part = packed[..., start // 8 : stop // 8].to(torch.int32)
        # Eight codes at a time: one look-up of eight bytes.
        bits = table.index_select(0, part.flatten()).view(torch.uint8).view(*part.shape[:-1], stop - start)
        codes[..., : stop - start] |= bits << index if index else bits
    return codes


@cache
def _eight_codes(device: torch.device) -> Tensor:
    """For every byte its eight bits, one per byte of an int64, the lowest first: int64 [256]."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return bits.to(torch.uint8).view(torch.int64).flatten().to(device)


def _powers(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)
