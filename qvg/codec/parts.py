"""What codecs to compare with have in common: a span is a handful of tensors, and what they are is said once, before they are
made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .base import EncodeHint, refuse_non_finite
from .no_codebook import WithoutCodebook
from .span import PartsSpan, Span, component


class Part(NamedTuple):
    """Shape and type of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.uint8


class PartsCodec(WithoutCodebook):
    """A `Codec` whose spans are made of `parts`. Subclasses say these three."""

    name: str

    def parts(self, shape: tuple[int, int, int, int]) -> dict[str, Part]:
        """What a span of [B, H, S, D] is made of."""
        raise NotImplementedError

    def packed(self, x: Tensor) -> dict[str, Tensor]:
        """x [B, H, S, D] float32 -> its parts, which share no memory with x."""
        raise NotImplementedError

    def unpacked(self, parts: Mapping[str, Tensor], tokens: slice, heads: slice) -> Tensor:
        """See `Maker`. `tokens` and `heads` have no open ends."""
        raise NotImplementedError

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """See `Codec`."""
        refuse_non_finite(x, hint)
        return PartsSpan(self.packed(x.float()), x.shape[2], self)

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor) -> Tensor:
        """See `Codec`."""
        assert isinstance(span, PartsSpan)
        start, stop, _ = tokens.indices(span.num_tokens)
        first = heads.start or 0
        return out.copy_(span.maker.unpacked(span.parts, slice(start, stop), slice(first, first + out.shape[1])))

    def predicted_bytes(self, shape: tuple[int, int, int, int]) -> dict[str, int]:
        """See `Codec`."""
        sizes: dict[str, int] = {}
        for name, part in self.parts(shape).items():
            size = math.prod(part.shape) * part.dtype.itemsize
            if size:
                sizes[component(name)] = sizes.get(component(name), 0) + size
        return sizes
