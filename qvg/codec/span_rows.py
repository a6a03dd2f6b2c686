"""Some tokens of a span, gathered into a small one."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from .span import ExactSpan, PartsSpan, QuantizedSpan, Span, TransformSpan


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
