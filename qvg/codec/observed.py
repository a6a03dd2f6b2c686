"""A codec that tells an observer of every span that it makes, at once: before anybody else has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..positions.rope import Rotation
from .base import Codec, EncodeHint, TurningCodec
from .span import Span

# Called with a span, and with what it was made of.
Observer = Callable[[Span, Tensor], None]


class ObservedCodec:
    """As `codec` does, see `base.Codec`."""

    def __init__(self, codec: Codec, observer: Observer):
        self.codec, self._observer, self.name = codec, observer, codec.name

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """See `base.Codec`."""
        span = self.codec.encode(x, hint)
        self._observer(span, x)
        return span

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor) -> Tensor:
        """See `base.Codec`."""
        return self.codec.decode(span, tokens, heads, out)

    def predicted_bytes(self, shape: tuple[int, int, int, int]) -> dict[str, int]:
        """See `base.Codec`."""
        return self.codec.predicted_bytes(shape)

    def predicted_codebook_bytes(self, rows: tuple[int, int, int], tokens: Sequence[int]) -> dict[str, int]:
        """See `base.Codec`."""
        return self.codec.predicted_codebook_bytes(rows, tokens)


class ObservedTurningCodec(ObservedCodec):
    """The same of a codec whose kernels turn keys."""

    def __init__(self, codec: Codec, observer: Observer):
        super().__init__(codec, observer)
        assert isinstance(codec, TurningCodec)
        self._turning, self.turns = codec, codec.turns

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor, rotation: Rotation | None = None) -> Tensor:
        """See `base.TurningCodec`."""
        return self._turning.decode(span, tokens, heads, out, rotation)


def observed(codec: Codec, observer: Observer) -> Codec:
    """`codec`, observed."""
    return (ObservedTurningCodec if isinstance(codec, TurningCodec) else ObservedCodec)(codec, observer)
