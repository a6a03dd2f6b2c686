"""No compression: 16 bits per value. The yardstick, and what sink and tail are kept in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import EncodeHint
from .no_codebook import WithoutCodebook
from .span import ExactSpan, Span


class ExactCodec(WithoutCodebook):
    """Keeps values in `dtype`, bf16 unless a model needs another."""

    name = "none"

    def __init__(self, dtype: torch.dtype = torch.bfloat16):
        self.dtype = dtype

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """See `Codec`. A copy of its own, so that nothing keeps a model's activations alive."""
        if self.dtype == torch.float16:
            x = x.clamp(-65504.0, 65504.0)  # bf16 and float32 reach further than the largest float16
        return ExactSpan(x.to(self.dtype, copy=True, memory_format=torch.contiguous_format))

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor) -> Tensor:
        """See `Codec`."""
        assert isinstance(span, ExactSpan)
        return out.copy_(span.values[:, heads, tokens])

    def predicted_bytes(self, shape: tuple[int, int, int, int]) -> dict[str, int]:
        """See `Codec`."""
        return {"exact": math.prod(shape) * self.dtype.itemsize}
