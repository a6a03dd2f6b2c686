"""What attention reads: stretches of keys and values one behind another, the current block last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.direct import Codes, Stored
from ..kernels.direct_coefficients import TransformCodes
from .rope import Rotation
from .span import ExactSpan, QuantizedSpan, Span, TransformSpan

# decode(span, tokens, heads, out, rotation): keys come out turned by the angles of these tokens, if there are some
Decode = Callable[[Span, slice, slice, Tensor, Rotation | None], None]

_SMALL_STRETCH_TOKENS = 256


class Pair(NamedTuple):
    """Keys and values of the same tokens."""

    keys: Span
    values: Span


@dataclass(frozen=True)
class History:
    """Everything that the current block's queries see, oldest first.

    `current` keys and values [B, H, Sc, D] are already rotated and count as the last stretch; `rotation(start, stop)` gives the
    angles of the committed tokens start:stop, None means that keys are used as they are.
    """

    pairs: Sequence[Pair]
    current: tuple[Tensor, Tensor]
    decode: Decode
    rotation: Callable[[int, int], Rotation] | None = None
    tokens_per_frame: int = 1

    @property
    def committed_tokens(self) -> int:
        """Tokens before the current block."""
        return sum(pair.keys.num_tokens for pair in self.pairs)

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return self.committed_tokens + self.current[0].shape[2]

    def tiles(self, most: int) -> Iterator[tuple[int, int]]:
        """Cut all tokens into tiles of at most `most`. A stretch of some size gets tiles of its own, decoded straight into
        contiguous memory; small neighbours (sink, tail, the current block) share one."""
        if self.num_tokens <= most:
            yield 0, self.num_tokens
            return
        start = stop = 0
        for count in (*(pair.keys.num_tokens for pair in self.pairs), self.current[0].shape[2]):
            end = stop + count
            if stop > start and (end - start > most or count > _SMALL_STRETCH_TOKENS):
                yield start, stop
                start = stop
            while end - start > most:
                yield start, start + most
                start += most
            stop = end
            if stop - start > _SMALL_STRETCH_TOKENS:
                yield start, stop
                start = stop
        if stop > start:
            yield start, stop

    def overlaps(self, which: int, start: int, stop: int) -> Iterator[tuple[Span | Tensor, slice, int]]:
        """What holds keys (which = 0) or values (1) of tokens start:stop: a span or the current block, its own tokens to take,
        and where they go in the tile."""
        base = 0
        for source in (*(pair[which] for pair in self.pairs), self.current[which]):
            count = source.shape[2] if isinstance(source, Tensor) else source.num_tokens
            low, high = max(start, base), min(stop, base + count)
            if low < high:
                yield source, slice(low - base, high - base), low - start
            base += count

    def turn(self, start: int, stop: int) -> Rotation | None:
        """Angles of the committed tokens among start:stop; None if there are none, or nothing turns."""
        stop = min(stop, self.committed_tokens)
        return None if self.rotation is None or stop <= start else self.rotation(start, stop)

    def fill(self, which: int, start: int, stop: int, heads: slice, tile: Tensor) -> None:
        """Decode tokens start:stop of some heads into tile [B, h, stop - start, D]; keys come out turned."""
        turn = self.turn(start, stop) if which == 0 else None
        for source, tokens, at in self.overlaps(which, start, stop):
            end = at + tokens.stop - tokens.start
            out = tile[:, :, at:end]
            if isinstance(source, Tensor):
                out.copy_(source[:, heads, tokens])
            else:
                self.decode(source, tokens, heads, out, None if turn is None else turn.tokens(at, end))

    def as_it_is(self, which: int, start: int, stop: int, heads: slice, dtype: torch.dtype) -> Tensor | None:
        """Tokens start:stop where they are kept, if that is one stretch, of this dtype, and nothing has to be turned."""
        parts = list(self.overlaps(which, start, stop))
        if len(parts) != 1 or (which == 0 and self.rotation is not None and not isinstance(parts[0][0], Tensor)):
            return None
        kept = stored(parts[0][0], parts[0][1])
        return kept[:, heads] if isinstance(kept, Tensor) and kept.dtype == dtype and kept.stride(-1) == 1 else None


def stored(source: Span | Tensor, tokens: slice) -> Stored | None:
    """Some tokens as kernels read them in place; None of a codec that has to be decoded first."""
    if isinstance(source, Tensor):
        return source[:, :, tokens]
    if isinstance(source, ExactSpan):
        return source.values[:, :, tokens]
    if not isinstance(source, QuantizedSpan):
        return None
    zero_points = None if source.zero_points is None else source.zero_points[..., tokens]
    codes, scales, ids = source.codes[:, :, tokens], source.scales[..., tokens], source.ids[..., tokens]
    return Codes(codes, scales, zero_points, ids, source.codebook.centroids, source.bits, source.group_size)


def coefficients(source: Span | Tensor, tokens: slice) -> TransformCodes | None:
    """Some tokens of a span of transform coefficients as `attend_coefficients` reads them in place; None of any other."""
    if not isinstance(source, TransformSpan):
        return None
    codes, gains, ids = source.codes[:, :, tokens], source.gains[:, :, tokens], source.ids[:, :, tokens]
    basis = source.codebook.basis
    return TransformCodes(codes, gains, ids, source.codebook.words, basis.rows, basis.scales, basis.planes)
