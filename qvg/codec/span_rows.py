"""Some tokens of a span, gathered into a small one: the same of all heads, or of one head its own."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ...kernels.rows8 import Rows8
from .span import (
    Basis,
    ExactSpan,
    GroupSpan,
    KMeansCodebook,
    Known,
    PartsSpan,
    QuantizedSpan,
    Span,
    TransformCodebook,
    TransformSpan,
)


def some_rows(span: Span, rows: Tensor) -> tuple[Span, Tensor | None]:
    """A span of the tokens `rows` (int64 [n], on the CPU) with the same codebook, and which of its tokens they are: None for all
    of them in their order. It is the whole span where tokens share what they are decoded with (KIVI's keys, codecs to compare
    with)."""
    at = rows.to(next(iter(span.tensors().values())).device)
    if isinstance(span, ExactSpan):
        return ExactSpan(span.values[:, :, at]), None
    if isinstance(span, TransformSpan):
        return TransformSpan(span.codes[:, :, at], span.gains[:, :, at], span.ids[:, :, at], span.codebook), None
    if isinstance(span, PartsSpan):
        return span, rows
    zero_points = None if span.zero_points is None else span.zero_points[..., at]
    if isinstance(span, QuantizedSpan):
        return replace(
            span, codes=span.codes[:, :, at], scales=span.scales[..., at], zero_points=zero_points, ids=span.ids[..., at]
        ), None
    if span.per_channel:
        return span, rows
    return replace(
        span, codes=span.codes[:, :, at], scales=span.scales[..., at], zero_points=zero_points, num_tokens=len(rows)
    ), None


def head_rows(span: Span, row: tuple[int, int], at: Tensor, known: Known) -> Span | None:
    """The tokens `at` (int64 [n]) of one batch row and head: a span [1, 1, n]. None where tokens share what they are decoded
    with. `known`: by the id of a codebook, or of a part of one, that head's view of it; what is new joins."""
    batch, head = row
    if isinstance(span, ExactSpan):
        return ExactSpan(_one(span.values, row).index_select(0, at)[None, None])
    if isinstance(span, TransformSpan):
        codes, gains, ids = (_one(x, row).index_select(0, at)[None, None] for x in (span.codes, span.gains, span.ids))
        return TransformSpan(codes, gains, ids, _head_of_transform(span.codebook, row, known))
    if isinstance(span, PartsSpan) or (isinstance(span, GroupSpan) and span.per_channel):
        return None
    codes, scales = _one(span.codes, row).index_select(0, at)[None, None], _one(span.scales, row).index_select(1, at)[None, None]
    zero_points = None if span.zero_points is None else _one(span.zero_points, row).index_select(1, at)[None, None]
    if isinstance(span, GroupSpan):
        return replace(span, codes=codes, scales=scales, zero_points=zero_points, num_tokens=len(at))
    if id(span.codebook) not in known:
        known[id(span.codebook)] = KMeansCodebook(span.codebook.centroids[batch : batch + 1, head : head + 1])
    ids = _one(span.ids, row).index_select(1, at)[None, None]
    return replace(span, codes=codes, scales=scales, zero_points=zero_points, ids=ids, codebook=known[id(span.codebook)])


def _head_of_transform(codebook: TransformCodebook, row: tuple[int, int], known: Known) -> TransformCodebook:
    """One head's view, the same object for the same parts: spans that share them are decoded together."""
    batch, head = row
    some = (slice(batch, batch + 1), slice(head, head + 1))
    words, basis = codebook.codewords, codebook.basis
    if id(words) not in known:
        known[id(words)] = Rows8(words.values[some], words.scales[some])
    if id(basis) not in known:
        rows = None if basis.rows is None else basis.rows[some]
        known[id(basis)] = Basis(rows, basis.scales[some], basis.planes[batch : batch + 1])
    return TransformCodebook(known[id(words)], known[id(basis)], codebook.group)


def _one(x: Tensor, row: tuple[int, int]) -> Tensor:
    return x[row[0], row[1]]
