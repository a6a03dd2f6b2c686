"""Budget-PCA: the mean and the four strongest directions of a span, and all four levels for what they leave over.

After the description in the audit of Quant VideoGen (JamesSand/Quant-VideoGen). Each token has a coefficient for each of its
head's four principal directions, in two bits with an E4M3 scale and zero point per token; a channel of `group_size` tokens of the
remainder has four levels with an E4M3 scale and zero point, in units of a power of two that is each channel's own, so that quiet
and loud channels alike stay in E4M3's range. Bits per value at 128 channels: 2 + 16/g + 3/16 + 88/S.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...kernels import e4m3
from ...kernels.packing import pack, unpack
from .parts import Part, PartsCodec

DIRECTIONS = 4
_BITS = 2
_LEVELS = (1 << _BITS) - 1
# A channel's largest value becomes at most this: a factor of 28 to E4M3's end, and 11 bits above its smallest scale.
_UNIT = 16.0


class PCACodec(PartsCodec):
    """See the module docstring."""

    name = "pca"

    def __init__(self, group_size: int):
        self.group = group_size

    def parts(self, shape: tuple[int, int, int, int]) -> dict[str, Part]:
        """See `PartsCodec`."""
        batch, heads, tokens, channels = shape
        rows, runs = (batch, heads), -(-tokens // self.group)
        return {
            "basis": Part((*rows, DIRECTIONS + 1, channels), torch.bfloat16),
            "coefficient_codes": Part((*rows, tokens, DIRECTIONS * _BITS // 8)),
            "coefficient_scales": Part((*rows, tokens)),
            "coefficient_zero_points": Part((*rows, tokens)),
            "codes": Part((*rows, runs, channels, self.group * _BITS // 8)),
            "scales": Part((*rows, runs, channels)),
            "zero_points": Part((*rows, runs, channels)),
            "exponents": Part((*rows, channels), torch.int8),
        }

    def packed(self, x: Tensor) -> dict[str, Tensor]:
        """See `PartsCodec`."""
        basis = _basis(x)
        mean, directions = basis.float().split([1, DIRECTIONS], 2)
        squares = directions.square().sum(-1)[:, :, None]
        codes, scales, zero_points = _four_levels((x - mean) @ directions.transpose(2, 3) / squares)
        parts = {
            "basis": basis,
            "coefficient_codes": pack(codes, _BITS),
            "coefficient_scales": scales,
            "coefficient_zero_points": zero_points,
        }
        rest = x - mean - _dequantized(codes, scales, zero_points) @ directions
        exponents = _exponents(rest.abs().amax(2))
        rest = rest / torch.exp2(exponents)[:, :, None]
        missing = -x.shape[2] % self.group
        rest = torch.cat([rest, rest[:, :, -1:].expand(-1, -1, missing, -1)], 2)
        codes, scales, zero_points = _four_levels(rest.unflatten(2, (-1, self.group)).transpose(3, 4))
        return parts | {
            "codes": pack(codes, _BITS),
            "scales": scales,
            "zero_points": zero_points,
            "exponents": exponents.to(torch.int8),
        }

    def unpacked(self, parts: Mapping[str, Tensor], tokens: slice, heads: slice) -> Tensor:
        """See `PartsCodec`."""
        first, last = tokens.start // self.group, -(-tokens.stop // self.group)
        runs = (slice(None), heads, slice(first, last))
        rest = _dequantized(unpack(parts["codes"][runs], _BITS), parts["scales"][runs], parts["zero_points"][runs])
        rest = rest.transpose(3, 4).flatten(2, 3)[:, :, tokens.start - first * self.group : tokens.stop - first * self.group]
        rest = rest * torch.exp2(parts["exponents"][:, heads, None].float())
        mean, directions = parts["basis"][:, heads].float().split([1, DIRECTIONS], 2)
        codes, scales, zero_points = (
            parts[f"coefficient_{name}"][:, heads, tokens] for name in ("codes", "scales", "zero_points")
        )
        x: Tensor = mean + _dequantized(unpack(codes, _BITS), scales, zero_points) @ directions + rest
        return x


def _basis(x: Tensor) -> Tensor:
    """Mean and principal directions of every head: bfloat16 [B, H, 5, D]. A direction's length is the power of two by which its
    coefficients fit into E4M3."""
    mean = x.mean(2, keepdim=True)
    centred = x - mean
    even = centred / centred.abs().amax((2, 3), keepdim=True).clamp(min=1e-30)
    vectors = torch.linalg.eigh(even.transpose(2, 3) @ even).eigenvectors[..., -DIRECTIONS:].flip(-1)
    lengths = torch.exp2(_exponents((centred @ vectors).abs().amax(2)))
    return torch.cat([mean, (vectors * lengths[:, :, None]).transpose(2, 3)], 2).to(torch.bfloat16)


def _exponents(largest: Tensor) -> Tensor:
    """Powers of two to divide by, so that nothing is above `_UNIT`."""
    return torch.ceil(torch.log2((largest / _UNIT).clamp(min=2.0**-100))).clamp(-100, 100)


def _four_levels(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups [..., g] -> codes [..., g], E4M3 scales and zero points [...]."""
    low, high = groups.aminmax(dim=-1)
    zero_points = e4m3.encode(low)
    lowest = e4m3.decode(zero_points)
    scales = e4m3.encode_scale((high - lowest).clamp(min=0) / _LEVELS, up=False)
    steps = e4m3.decode(scales)[..., None]
    codes = (groups - lowest[..., None]) / torch.where(steps > 0, steps, torch.inf)
    return torch.round(codes).clamp(0, _LEVELS).to(torch.uint8), scales, zero_points


def _dequantized(codes: Tensor, scales: Tensor, zero_points: Tensor) -> Tensor:
    return codes.float() * e4m3.decode(scales)[..., None] + e4m3.decode(zero_points)[..., None]
