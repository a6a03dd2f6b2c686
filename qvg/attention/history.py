"""What attention reads: stretches of keys and values one behind another, the current block last."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...kernels.code_spans import decode_code_spans
from ...kernels.direct import Stored
from ...kernels.projective import Projection
from ...kernels.rotary import Angles
from ...kernels.spans import Tiles, copy_stretches, decode_spans
from ...kernels.turn import Turns
from ..codec.span import ExactSpan, QuantizedSpan, Span
from ..positions.rope import Rotation
from .plan import DecodePlan, codes_of

# What tokens go through on their way into attention.
PositionEncoding = Rotation | Projection
# position_encodings(which, start, stop): what rotates or projects some keys (0) or values (1)
PositionEncodings = Callable[[int, int, int], Angles | PositionEncoding | None]
# log_counts(start, stop, device): what is added to the logits of some keys, float32 [stop - start]; None: nothing
LogCounts = Callable[[int, int, torch.device], Tensor | None]
# decode(span, tokens, heads, out, encoding): what comes out is encoded by position, if there is an encoding
Decode = Callable[[Span, slice, slice, Tensor, PositionEncoding | None], None]

_SMALL_STRETCH_TOKENS = 256


@dataclass(frozen=True)
class History:
    """Everything that the current block's queries see, oldest first.

    `current` keys and values [B, H, Sc, D] are already encoded by position and count as the last stretch.
    `position_encodings(which, start, stop)` gives what encodes the keys (which = 0) or values (1) of the committed tokens
    start:stop; None means that they are used as they are. `projected` says that cameras' matrices do, and that values go through
    them too. `log_counts(start, stop, device)`: the logarithms of how many tokens each key stands for. `plan` holds all that is
    committed.
    """

    plan: DecodePlan
    current: tuple[Tensor, Tensor]
    decode: Decode
    position_encodings: PositionEncodings | None = None
    projected: bool = False
    tokens_per_frame: int = 1
    backend: str = "auto"
    log_counts: LogCounts | None = None

    @cached_property
    def counts(self) -> list[int]:
        """Visible tokens of each stretch, oldest first; the current block's last."""
        return [*self.plan.counts, self.current[0].shape[2]]

    @cached_property
    def ends(self) -> list[int]:
        """Where each stretch ends."""
        return [*self.plan.ends, self.num_tokens]

    @property
    def committed_tokens(self) -> int:
        """Tokens before the current block."""
        return self.plan.num_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return self.plan.num_tokens + self.current[0].shape[2]

    @property
    def is_spread(self) -> bool:
        """Whether angles of every token are made, for what is decoded one by one."""
        return bool(self.plan.others) or self.log_counts is not None

    def tiles(self, most: int) -> Iterator[tuple[int, int]]:
        """Cut all tokens into tiles of at most `most`. What is decoded stretch by stretch gets tiles of its own where it is of
        some size, straight into contiguous memory; all else is cut into equal parts."""
        if self.num_tokens <= most:
            yield 0, self.num_tokens
            return
        start = 0
        for number in self.plan.others:
            count, end = self.plan.counts[number], self.plan.ends[number]
            if count > _SMALL_STRETCH_TOKENS:
                yield from self._equal_parts(start, end - count, most)
                yield from self._equal_parts(end - count, end, most)
                start = end
        yield from self._equal_parts(start, self.num_tokens, most)

    def _equal_parts(self, start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
        parts = -(-(stop - start) // most)
        while parts:
            size = -(-(stop - start) // parts)
            whole = -(-size // self.tokens_per_frame) * self.tokens_per_frame
            end = min(stop, start + (whole if whole <= most else size))
            yield start, end
            start, parts = end, -(-(stop - end) // most)

    def overlaps(self, which: int, first: int, stop: int) -> Iterator[tuple[Span | Tensor, slice, int]]:
        """What holds keys (which = 0) or values (1) of tokens first:stop: a span or the current block, its own tokens to take,
        and where they go in the tile."""
        start, number = first, bisect_right(self.plan.ends, first)
        while start < stop and number < len(self.plan.pairs):
            base, end = self.plan.place(number).first, min(stop, self.plan.ends[number])
            if start < end:
                yield self.plan.pairs[number][which], slice(start - base, end - base), start - first
            start, number = end, number + 1
        if start < stop:
            base = self.plan.num_tokens
            yield self.current[which], slice(start - base, min(stop, self.num_tokens) - base), start - first

    def position_encoding(self, which: int, start: int, stop: int) -> PositionEncoding | None:
        """What encodes the committed tokens among start:stop; None if there are none, or nothing does."""
        encoding = self._encoding(which, start, stop)
        return Rotation(*encoding.spread()) if isinstance(encoding, Angles) else encoding

    def _encoding(self, which: int, start: int, stop: int) -> Angles | PositionEncoding | None:
        stop = min(stop, self.committed_tokens)
        return None if self.position_encodings is None or stop <= start else self.position_encodings(which, start, stop)

    def turns(self, start: int, stop: int) -> Turns | Rotation | None:
        """What the committed keys among start:stop go through, as kernels that read tables take it (or angles of every token)."""
        return self._encoding(0, start, stop)

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

    def fill(self, which: int, start: int, stop: int, heads: slice, tile: Tensor) -> None:
        """Decode tokens start:stop of some heads into tile [B, h, stop - start, D]; keys come out encoded by position."""
        self.fill_both(start, stop, heads, *((None, tile) if which else (tile, None)))

    def fill_both(self, start: int, stop: int, heads: slice, keys: Tensor | None, values: Tensor | None) -> None:
        """`fill` for keys and values at once, or those that are wanted; their tiles are laid out alike."""
        turns, plan = self.turns(start, stop), self.plan
        if isinstance(turns, Rotation):
            self._fill_stretches(range(len(plan.pairs)), start, stop, heads, (keys, values))
            exact, turns = (0, 0), None
        else:
            tiles = Tiles(keys, values, start, heads.start)
            spans, exact = plan.between(plan.of_spans, start, stop), plan.between(plan.of_exact, start, stop)
            if plan.spans is not None and spans[0] < spans[1]:
                decode_spans(plan.spans, spans, tiles, turns, self.backend)
            codes = plan.between(plan.of_codes, start, stop)
            if plan.codes is not None and codes[0] < codes[1]:
                decode_code_spans(plan.codes, codes, tiles, turns, self.backend)
            self._fill_stretches(plan.others, start, stop, heads, (keys, values))
        current = None if stop <= plan.num_tokens else (*self.current, plan.num_tokens)
        if exact[0] < exact[1] or current is not None:
            copy_stretches(plan.exact, exact, Tiles(keys, values, start, heads.start), turns, self.backend, current)

    def _fill_stretches(
        self, numbers: Sequence[int], start: int, stop: int, heads: slice, tiles: tuple[Tensor | None, Tensor | None]
    ) -> None:
        """Some stretches, one by one, as their codec decodes them."""
        first, last = self.plan.between(numbers, start, stop)
        for which, tile in enumerate(tiles) if first < last else ():
            if tile is None:
                continue
            encoding = self.position_encoding(which, start, stop)
            for number in numbers[first:last]:
                end, place = self.plan.ends[number], self.plan.place(number)
                low, high = max(start, place.first + place.skip), min(stop, end)
                some = None if encoding is None else encoding.tokens(low - start, high - start)
                out, tokens = tile[:, :, low - start : high - start], slice(low - place.first, high - place.first)
                self.decode(self.plan.pairs[number][which], tokens, heads, out, some)

    def as_it_is(self, which: int, start: int, stop: int, heads: slice, dtype: torch.dtype) -> Tensor | None:
        """Tokens start:stop where they are kept, if that is one stretch of this dtype that needs no position encoding."""
        parts = list(itertools.islice(self.overlaps(which, start, stop), 2))
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
    return codes_of(source)._replace(codes=codes, scales=scales, zero_points=zero_points, ids=ids)
