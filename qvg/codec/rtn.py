"""Plain rounding: each token's channels in groups, no smoothing. The baseline of the field's tables.

Bits per value: b + 8/g, and + 8/g more with zero points (asymmetric, the default of these baselines elsewhere).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import quantize_groups, reconstruct
from ...kernels.packing import packed_width
from ..config import QVGConfig
from .base import EncodeHint, refuse_non_finite
from .no_codebook import WithoutCodebook
from .span import GroupSpan, Span


class RTNCodec(WithoutCodebook):
    """See the module docstring."""

    name = "rtn"

    def __init__(self, config: QVGConfig):
        self.config = config
        self.bits = config.whole_bits

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """See `Codec`."""
        refuse_non_finite(x, hint)
        config, none = self.config, no_centroids(x)
        parts = quantize_groups(x, *none, self.bits, config.group_size, config.symmetric, config.backend)
        return GroupSpan(*parts, self.bits, config.group_size, x.shape[2], False, self.name)

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor) -> Tensor:
        """See `Codec`."""
        assert isinstance(span, GroupSpan)
        return decode_groups(span, tokens, heads, out, self.config.backend)

    def predicted_bytes(self, shape: tuple[int, int, int, int]) -> dict[str, int]:
        """See `Codec`."""
        batch, heads, tokens, channels = shape
        rows, config = batch * heads * tokens, self.config
        scales = {"scales": rows * (channels // config.group_size)}
        return {
            "codes": rows * packed_width(channels, self.bits),
            **scales,
            **({} if config.symmetric else {"zero_points": scales["scales"]}),
        }


def no_centroids(x: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and centroids of zero stages for x [B, H, S, D]."""
    batch, heads, tokens, channels = x.shape
    return (
        torch.zeros(batch, heads, 0, tokens, dtype=torch.uint8, device=x.device),
        torch.zeros(batch, heads, 0, 1, channels, device=x.device),
    )


def decode_groups(span: GroupSpan, tokens: slice, heads: slice, out: Tensor, backend: str) -> Tensor:
    """Groups of channels of tokens and heads of a span into `out`."""
    zero_points = None if span.zero_points is None else span.zero_points[:, heads, :, tokens]
    codes, scales = span.codes[:, heads, tokens], span.scales[:, heads, :, tokens]
    return reconstruct(codes, scales, zero_points, *no_centroids(out), span.bits, span.group_size, out, backend)
