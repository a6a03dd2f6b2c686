"""KIVI: keys per channel over a run of tokens, values per token over channels (arXiv 2402.02750, section 3).

Asymmetric, zero points not clamped (a widespread slip that halves its quality), keys before RoPE. Bits per value: b + 16/g.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import quantize_groups
from ...kernels.packing import packed_width
from ..config import QVGConfig
from .base import EncodeHint, refuse_non_finite
from .no_codebook import WithoutCodebook
from .rtn import decode_groups, no_centroids
from .span import GroupSpan, Span


class KIVICodec(WithoutCodebook):
    """`per_channel`: the way keys are kept; otherwise the way values are."""

    name = "kivi"

    def __init__(self, config: QVGConfig, per_channel: bool):
        self.config, self.per_channel = config, per_channel
        self.bits = config.whole_bits

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """See `Codec`."""
        refuse_non_finite(x, hint)
        config, group, tokens = self.config, self.config.group_size, x.shape[2]
        if self.per_channel:
            # The last run of tokens is filled up with copies of the last token: they do not widen any group.
            missing = -tokens % group
            x = torch.cat([x, x[:, :, -1:].expand(-1, -1, missing, -1)], 2) if missing else x
            x = x.unflatten(2, (-1, group)).transpose(3, 4).flatten(2, 3)
        parts = quantize_groups(x, *no_centroids(x), self.bits, group, False, config.backend)
        return GroupSpan(*parts, self.bits, group, tokens, self.per_channel, self.name)

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor) -> Tensor:
        """See `Codec`."""
        assert isinstance(span, GroupSpan)
        if not span.per_channel:
            return decode_groups(span, tokens, heads, out, self.config.backend)
        start, stop, _ = tokens.indices(span.num_tokens)
        group, channels = span.group_size, out.shape[3]
        first, last = start // group, -(-stop // group)
        runs = torch.empty((*out.shape[:2], (last - first) * channels, group), device=out.device)
        decode_groups(span, slice(first * channels, last * channels), heads, runs, self.config.backend)
        values = runs.unflatten(2, (-1, channels)).transpose(3, 4).flatten(2, 3)
        return out.copy_(values[:, :, start - first * group : stop - first * group])

    def predicted_bytes(self, shape: tuple[int, int, int, int]) -> dict[str, int]:
        """See `Codec`."""
        batch, heads, tokens, channels = shape
        group = self.config.group_size
        groups = batch * heads * (-(-tokens // group) * channels if self.per_channel else tokens * (channels // group))
        return {"codes": groups * packed_width(group, self.bits), "scales": groups, "zero_points": groups}
