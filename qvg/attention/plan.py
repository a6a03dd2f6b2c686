"""Where everything that attention reads lies, worked out once for a list of stretches and not at every call."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.code_spans import CodeTable, code_kind, code_table
from ...kernels.direct import Codes, Stored
from ...kernels.launch import on_gpu
from ...kernels.spans import Place, SpanTable, StretchTable
from ...kernels.transcode import span_value_bounds, value_bounds
from ..codec.span import ExactSpan, QuantizedSpan, Span, TransformSpan


class Pair(NamedTuple):
    """Keys and values of the same tokens."""

    keys: Span
    values: Span


class DecodePlan:
    """Stretches of a history, oldest first, and which of them kernels read many at a time.

    hidden   the number of a stretch, and how many of its first tokens nobody sees any more; they do not count
    counts   visible tokens of each stretch
    ends     where each ends among the visible tokens
    spans    those kept as transform coefficients; exact: those kept as they are; codes: those kept as codes, on a GPU, where
             launches count and all are of one kind. Others are decoded one by one.
    """

    # A bound of every channel's largest value in `others` [B, H, D], once somebody has decoded them for it.
    other_bounds: Tensor | None = None

    def __init__(self, pairs: Sequence[Pair], hidden: tuple[int, int] = (0, 0)):
        self.pairs, self.hidden = tuple(pairs), hidden
        self.counts = [pair.keys.num_tokens for pair in self.pairs]
        if hidden[1]:
            self.counts[hidden[0]] -= hidden[1]
        self.ends = list(itertools.accumulate(self.counts))
        kinds = [_kind(pair) for pair in self.pairs]
        numbers = [[n for n, kind in enumerate(kinds) if kind == one] for one in range(4)]
        if len({code_kind(codes_of(span)) for n in numbers[2] for span in self.pairs[n] if isinstance(span, QuantizedSpan)}) > 1:
            numbers[2:] = [], sorted(numbers[2] + numbers[3])
        self.of_spans, self.of_exact, self.of_codes, self.others = numbers
        self.spans, self.exact, self.codes = self._spans(), self._exact(), self._codes()

    @cached_property
    def value_bounds(self) -> Tensor | None:
        """A bound of every channel's largest value in all but `others`: float32 [B, H, D]; None if there are none."""
        kept: list[Stored] = [*self.exact.values, *(() if self.codes is None else self.codes.values)]
        bounds = [value_bounds(values) for values in kept]
        bounds += [] if self.spans is None else [span_value_bounds(self.spans.values)]
        return torch.stack(bounds).amax(0) if bounds else None

    @property
    def num_tokens(self) -> int:
        """Visible tokens of all stretches."""
        return self.ends[-1] if self.ends else 0

    def fits(self, pairs: Sequence[Pair], hidden: tuple[int, int]) -> bool:
        """Whether it was made for these very stretches."""
        same = len(pairs) == len(self.pairs) and hidden == self.hidden
        return same and all(map(_is, pairs, self.pairs))

    def between(self, numbers: Sequence[int], start: int, stop: int) -> tuple[int, int]:
        """Which of some stretches (`of_spans`, `of_exact`, ...) hold tokens of start:stop: (first, stop) among them."""
        first, last = bisect_right(self.ends, start), bisect_left(self.ends, stop)
        return bisect_left(numbers, first), bisect_right(numbers, last)

    def place(self, number: int) -> Place:
        """Where a stretch stands."""
        skip = self.hidden[1] if number == self.hidden[0] else 0
        return Place(self.ends[number] - self.counts[number] - skip, skip)

    def _spans(self) -> SpanTable | None:
        if not self.of_spans:
            return None
        kept = [self.pairs[number] for number in self.of_spans]
        keys, values = (tuple(span.kept() for pair in kept if isinstance(span := pair[which], TransformSpan)) for which in (0, 1))
        return SpanTable(keys, values, tuple(map(self.place, self.of_spans)))

    def _exact(self) -> StretchTable:
        kept = [self.pairs[number] for number in self.of_exact]
        keys, values = (tuple(span.values for pair in kept if isinstance(span := pair[which], ExactSpan)) for which in (0, 1))
        return StretchTable(keys, values, tuple(map(self.place, self.of_exact)))

    def _codes(self) -> CodeTable | None:
        if not self.of_codes:
            return None
        kept = [self.pairs[number] for number in self.of_codes]
        keys, values = ([codes_of(span) for pair in kept if isinstance(span := pair[which], QuantizedSpan)] for which in (0, 1))
        return code_table(keys, values, [self.place(number) for number in self.of_codes])


def codes_of(span: QuantizedSpan) -> Codes:
    """As kernels read them in place."""
    return Codes(span.codes, span.scales, span.zero_points, span.ids, span.codebook.centroids, span.bits, span.group_size)


def _is(one: Pair, other: Pair) -> bool:
    return one is other


def _kind(pair: Pair) -> int:
    """0: transform coefficients, 1: as they are, 2: codes, 3: something else."""
    if all(isinstance(span, TransformSpan) for span in pair):
        return 0
    if all(isinstance(span, ExactSpan) for span in pair):
        return 1
    # A CPU decodes a span at a time, straight into contiguous memory.
    return 2 if all(isinstance(span, QuantizedSpan) and on_gpu(span.codes.device) for span in pair) else 3
