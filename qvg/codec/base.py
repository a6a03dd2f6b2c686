"""What a cache asks of a compression method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..span import Codebook, Span


@dataclass(frozen=True)
class EncodeHint:
    """Where a span stands in its cache.

    seed      of every random choice in this span
    reuse     codebook to encode with, as it is, because an earlier span of the same group trained it
    warm      codebook to start training from
    """

    seed: int = 0
    reuse: Codebook | None = None
    warm: Codebook | None = None


class Codec(Protocol):
    """Keys and values in, spans out, and back. Stateless: everything that was learned is in the span."""

    name: str

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """x [B, H, S, D] -> a span that shares no memory with x."""

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor) -> Tensor:
        """Tokens and heads of a span into `out` [B, heads, tokens, D], which is returned."""

    def predicted_bytes(self, shape: tuple[int, int, int, int], owns_codebook: bool) -> dict[str, int]:
        """Bytes by component of a span of this shape, before anything is allocated. Must equal what is then counted."""
