"""QuaRot's KV part: a Hadamard rotation of every token, then plain rounding (arXiv 2404.00456, section 4.3)."""

from __future__ import annotations

from torch import Tensor

from ...kernels.hadamard import hadamard
from .base import EncodeHint, refuse_non_finite
from .rtn import RTNCodec
from .span import Span


class QuaRotCodec(RTNCodec):
    """Bits per value as `RTNCodec`. Keys are rotated before RoPE, which is undone on the way out."""

    name = "quarot"

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """See `Codec`."""
        refuse_non_finite(x, hint)  # rotated, one of them would spread over its token
        return super().encode(x.float() @ hadamard(x.shape[-1]).to(x.device), hint)

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor) -> Tensor:
        """See `Codec`."""
        rotated = super().decode(span, tokens, heads, out.new_empty(out.shape).float())
        return out.copy_(rotated @ hadamard(out.shape[-1]).to(out.device))
