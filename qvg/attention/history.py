"""What attention reads: stretches of keys and values one behind another, the current block last."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.direct import Codes, Stored
from ...kernels.direct_coefficients import TransformCodes
from ..codec.span import ExactSpan, QuantizedSpan, Span, TransformSpan
from ..positions.projective import Projection
from ..positions.rope import Rotation

# What tokens go through on their way into attention.
PositionEncoding = Rotation | Projection
# position_encodings(which, start, stop): what rotates or projects some tokens' keys (0) or values (1)
PositionEncodings = Callable[[int, int, int], PositionEncoding | None]
# log_counts(start, stop, device): what is added to the logits of some keys, float32 [stop - start]; None: nothing
LogCounts = Callable[[int, int, torch.device], Tensor | None]
# decode(span, tokens, heads, out, encoding): what comes out is encoded by position, if there is an encoding
Decode = Callable[[Span, slice, slice, Tensor, PositionEncoding | None], None]

_SMALL_STRETCH_TOKENS = 256


class Pair(NamedTuple):
    """Keys and values of the same tokens."""

    keys: Span
    values: Span


@dataclass(frozen=True)
class History:
    """Everything that the current block's queries see, oldest first.

    `current` keys and values [B, H, Sc, D] are already encoded by position and count as the last stretch.
    `position_encodings(which, start, stop)` gives what encodes the keys (which = 0) or values (1) of the committed tokens
    start:stop; None means that they are used as they are. `projected` says that cameras' matrices do, and that values go through
    them too. `log_counts(start, stop, device)`: the logarithms of how many tokens each key stands for. `hidden`: the number of a
    stretch, and how many of its first tokens nobody sees any more; they do not count.
    """

    pairs: Sequence[Pair]
    current: tuple[Tensor, Tensor]
    decode: Decode
    position_encodings: PositionEncodings | None = None
    projected: bool = False
    tokens_per_frame: int = 1
    hidden: tuple[int, int] = (0, 0)
    log_counts: LogCounts | None = None

    @cached_property
    def counts(self) -> list[int]:
        """Visible tokens of each stretch, oldest first; the current block's last."""
        counts = [*(pair.keys.num_tokens for pair in self.pairs), self.current[0].shape[2]]
        number, tokens = self.hidden
        counts[number] -= tokens
        return counts

    @cached_property
    def ends(self) -> list[int]:
        """Where each stretch ends. Found once: with many short spans every tile would walk through all of them."""
        return list(itertools.accumulate(self.counts))

    @property
    def committed_tokens(self) -> int:
        """Tokens before the current block."""
        return self.ends[-1] - self.counts[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return self.ends[-1]

    def tiles(self, most: int) -> Iterator[tuple[int, int]]:
        """Cut all tokens into tiles of at most `most`. A stretch of some size gets tiles of its own, decoded straight into
        contiguous memory; small neighbours (sink, tail, the current block) share one."""
        if self.num_tokens <= most:
            yield 0, self.num_tokens
            return
        start = stop = 0
        for count, end in zip(self.counts, self.ends, strict=True):
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

    def overlaps(self, which: int, first: int, stop: int) -> Iterator[tuple[Span | Tensor, slice, int]]:
        """What holds keys (which = 0) or values (1) of tokens first:stop: a span or the current block, its own tokens to take,
        and where they go in the tile."""
        start, number = first, bisect_right(self.ends, first)
        while start < stop and number < len(self.ends):
            base = self.ends[number] - self.counts[number] - (self.hidden[1] if number == self.hidden[0] else 0)
            end = min(stop, self.ends[number])
            source = self.pairs[number][which] if number < len(self.pairs) else self.current[which]
            if start < end:
                yield source, slice(start - base, end - base), start - first
            start, number = end, number + 1

    def position_encoding(self, which: int, start: int, stop: int) -> PositionEncoding | None:
        """What encodes the committed tokens among start:stop; None if there are none, or nothing does."""
        stop = min(stop, self.committed_tokens)
        return None if self.position_encodings is None or stop <= start else self.position_encodings(which, start, stop)

    def rotation(self, start: int, stop: int) -> Rotation | None:
        """Angles of the committed keys among start:stop, for kernels that rotate them as they read them."""
        encoding = self.position_encoding(0, start, stop)
        return encoding if isinstance(encoding, Rotation) else None

    def bias(self, start: int, stop: int) -> Tensor | None:
        """What is added to the logits of keys start:stop, which may stand for several tokens each: float32."""
        return None if self.log_counts is None else self.log_counts(start, stop, self.current[0].device)

    def kept(self, which: int, start: int, stop: int) -> Stored | None:
        """Tokens of one stretch as kernels read them in place, keys to be rotated by them; None where a codec only decodes, or
        where channels are to be projected."""
        source, tokens, _ = next(self.overlaps(which, start, stop))
        if self.projected and not isinstance(source, Tensor):
            return None
        return _stored(source, tokens)

    def coefficients(self, which: int, start: int, stop: int) -> TransformCodes | None:
        """`kept` for tokens that are kept as transform coefficients."""
        source, tokens, _ = next(self.overlaps(which, start, stop))
        return None if self.projected else transform_codes(source, tokens)

    def fill(self, which: int, start: int, stop: int, heads: slice, tile: Tensor) -> None:
        """Decode tokens start:stop of some heads into tile [B, h, stop - start, D]; keys come out encoded by position."""
        encoding = self.position_encoding(which, start, stop)
        for source, tokens, at in self.overlaps(which, start, stop):
            end = at + tokens.stop - tokens.start
            out = tile[:, :, at:end]
            if isinstance(source, Tensor):
                out.copy_(source[:, heads, tokens])
            else:
                self.decode(source, tokens, heads, out, None if encoding is None else encoding.tokens(at, end))

    def as_it_is(self, which: int, start: int, stop: int, heads: slice, dtype: torch.dtype) -> Tensor | None:
        """Tokens start:stop where they are kept, if that is one stretch of this dtype that needs no position encoding."""
        parts = list(self.overlaps(which, start, stop))
        encoded = self.projected or (which == 0 and self.position_encodings is not None)
        if len(parts) != 1 or (encoded and not isinstance(parts[0][0], Tensor)):
            return None
        kept = _stored(parts[0][0], parts[0][1])
        return kept[:, heads] if isinstance(kept, Tensor) and kept.dtype == dtype and kept.stride(-1) == 1 else None


def _stored(source: Span | Tensor, tokens: slice) -> Stored | None:
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


def transform_codes(source: Span | Tensor, tokens: slice) -> TransformCodes | None:
    """Some tokens of a span of transform coefficients as `attend_coefficients` reads them in place; None of any other."""
    if not isinstance(source, TransformSpan):
        return None
    codes, gains, ids = source.codes[:, :, tokens], source.gains[:, :, tokens], source.ids[:, :, tokens]
    basis = source.codebook.basis
    return TransformCodes(codes, gains, ids, source.codebook.codewords, *basis.filled(), basis.planes)
