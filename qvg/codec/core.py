"""Codecs that quantize along time: a channel of some consecutive tokens shares a scale, or all channels of one token do.

What the 33-method study (arXiv 2603.27469) calls RTN, KIVI, QuaRot, PRQ and QAQ, and what LightX2V calls KIVI, are settings of
one `Core`. Bits per value: of each grid its bits and, per channel, 16 or 32 bits (with a zero point twice that) over g tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.hadamard import hadamard
from ...kernels.packing import pack, packed_width, unpack
from .grid import Grid
from .outliers import Outliers
from .parts import Part, PartsCodec

# Names of the second grid's tensors begin so.
_PREFIXES = ("", "residual_")


@dataclass(frozen=True)
class Core:
    """What is done to a tensor.

    grids        one or two; the second one quantizes what the first one leaves
    per_channel  a group is one channel of `tokens` consecutive tokens, the last ones filled up; otherwise all channels of all
                 heads of one token
    rotated      a Hadamard matrix goes before, and after it on the way out
    outliers     values that are kept exactly beside the codes
    published    unfinished groups are filled with zeros, which widen them, instead of the last token
    """

    grids: tuple[Grid, ...]
    per_channel: bool = True
    tokens: int = 16
    rotated: bool = False
    outliers: Outliers | None = None
    published: bool = False


class CoreCodec(PartsCodec):
    """See the module docstring."""

    def __init__(self, name: str, core: Core):
        self.name, self.core = name, core

    def parts(self, shape: tuple[int, int, int, int]) -> dict[str, Part]:
        """See `PartsCodec`."""
        batch, heads, tokens, channels = shape
        group, found = self.core.tokens, dict[str, Part]()
        for prefix, grid in zip(_PREFIXES, self.core.grids, strict=False):
            if self.core.per_channel:
                groups: tuple[int, ...] = (batch, heads, -(-tokens // group), channels)
                found[f"{prefix}codes"] = Part((*groups, packed_width(group, grid.bits)))
            else:
                groups = (batch, 1, tokens)
                found[f"{prefix}codes"] = Part((batch, heads, tokens, packed_width(channels, grid.bits)))
            found[f"{prefix}scales"] = Part(groups, grid.dtype)
            if not grid.symmetric:
                found[f"{prefix}zero_points"] = Part(groups, grid.dtype)
        if self.core.outliers is not None:
            found |= self.core.outliers.parts(shape)
        return found

    def packed(self, x: Tensor) -> dict[str, Tensor]:
        """See `PartsCodec`."""
        core, parts = self.core, dict[str, Tensor]()
        if core.outliers is not None:
            x, exact = core.outliers.split(x)
            parts |= exact
        rest = self._groups(x @ hadamard(x.shape[-1]).to(x.device) if core.rotated else x)
        for number, (prefix, grid) in enumerate(zip(_PREFIXES, core.grids, strict=False)):
            codes, scales, zero_points = grid.quantize(rest)
            if number + 1 < len(core.grids):
                rest = rest - grid.dequantize(codes, scales, zero_points)
            if not core.per_channel:  # from one row of all heads to a row for each
                codes = codes.unflatten(-1, (x.shape[1], -1)).transpose(1, 3).flatten(2, 3)
            parts[f"{prefix}codes"], parts[f"{prefix}scales"] = pack(codes, grid.bits), scales
            if zero_points is not None:
                parts[f"{prefix}zero_points"] = zero_points
        return parts

    def unpacked(self, parts: Mapping[str, Tensor], tokens: slice, heads: slice) -> Tensor:
        """See `PartsCodec`."""
        x = self.before_outliers(parts, tokens, heads)
        return x if self.core.outliers is None else self.core.outliers.put_back(x, parts, tokens, heads)

    def before_outliers(self, parts: Mapping[str, Tensor], tokens: slice, heads: slice) -> Tensor:
        """What the codes alone say."""
        core, group = self.core, self.core.tokens
        first = tokens.start // group if core.per_channel else tokens.start
        groups = slice(first, -(-tokens.stop // group) if core.per_channel else tokens.stop)
        known = slice(None) if not core.per_channel else heads  # scales of a token are those of all heads
        found: list[Tensor] = []
        for prefix, grid in zip(_PREFIXES, core.grids, strict=False):
            codes = unpack(parts[f"{prefix}codes"][:, heads, groups], grid.bits)
            zero_points = parts.get(f"{prefix}zero_points")
            origin = None if zero_points is None else zero_points[:, known, groups]
            part = grid.dequantize(codes, parts[f"{prefix}scales"][:, known, groups], origin)
            found.append(part)
        x: Tensor = found[0] if len(found) == 1 else found[0] + found[1]
        if core.per_channel:
            x = x.transpose(3, 4).flatten(2, 3)[:, :, tokens.start - first * group : tokens.stop - first * group]
        if core.rotated:
            x = torch.matmul(x, hadamard(x.shape[-1]).to(x.device))
        return x

    def _groups(self, x: Tensor) -> Tensor:
        """x [B, H, S, D] -> [B, H, R, D, g], R groups of g tokens; or [B, 1, S, H * D]."""
        core = self.core
        if not core.per_channel:
            return x.transpose(1, 2).flatten(2).unsqueeze(1)
        missing = -x.shape[2] % core.tokens
        if missing:
            filler = x[:, :, -1:].expand(-1, -1, missing, -1)
            x = torch.cat([x, torch.zeros_like(filler) if core.published else filler], 2)
        groups: Tensor = x.unflatten(2, (-1, core.tokens)).transpose(3, 4)
        return groups
