"""How codes lie in memory: planes, the on-disk truth.

At b bits a byte holds F = 8 / b codes and a token's D codes take P = D / F bytes. Byte j holds channels j, j+P, j+2P, ...

    2 bits, D = 128, P = 32      byte j:  | c[j+96] | c[j+64] | c[j+32] | c[j] |      high bits ... low bits

so one plane (one bit position of all bytes) is a contiguous stretch of channels, and unpacking needs no shuffle. Three bits
are a two-bit plane set (the low bits) followed by a one-bit plane set (the high bit): P = D/4 + D/8 bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (2, 3, 4, 8)


def packed_width(channels: int, bits: int) -> int:
    """Bytes of one token's codes."""
    return channels * bits // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., D] below 2**bits -> packed uint8 [..., D * bits / 8]."""
    if bits == 3:
        return torch.cat([_pack_planes(codes & 3, 2), _pack_planes(codes >> 2, 1)], -1)
    return _pack_planes(codes, bits)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`."""
    if bits == 3:
        low, high = packed.split([packed.shape[-1] * 2 // 3, packed.shape[-1] // 3], -1)
        return _unpack_planes(low, 2) | (_unpack_planes(high, 1) << 2)
    return _unpack_planes(packed, bits)


def plane(packed: Tensor, bits: int, index: int) -> Tensor:
    """Codes of one plane: channels [index * P, (index + 1) * P) of packed [..., P]. Not for 3 bits."""
    shifted = packed >> (bits * index) if index else packed
    return shifted if bits * (index + 1) == 8 else shifted & ((1 << bits) - 1)


def _pack_planes(codes: Tensor, bits: int) -> Tensor:
    planes = codes.chunk(8 // bits, -1)
    # Dense whatever the codes are: a transposed view would be kept, and saved, with its strides.
    packed = planes[0].clone(memory_format=torch.contiguous_format)
    for index, part in enumerate(planes[1:], 1):
        packed |= part << (bits * index)
    return packed


def _unpack_planes(packed: Tensor, bits: int) -> Tensor:
    return torch.cat([plane(packed, bits, index) for index in range(8 // bits)], -1)
