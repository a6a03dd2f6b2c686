"""How much tokens look like the rows kept at their places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attention.plan import Pair
from ..codec.base import Codec
from ..codec.span import ExactSpan, Known, Span, put_span
from ..codec.span_rows import some_rows


def worst_cosine(kept: Tensor, x: Tensor) -> Tensor:
    """The smallest cosine of any head, in float32. kept, x [B, H, n, D] -> [n]. Zero vectors are like nothing."""
    return torch.nn.functional.cosine_similarity(kept.float(), x.float(), dim=-1).amin((0, 1))


def kept_keys(spans: Sequence[Pair], waiting: Pair | None, rows: Tensor, codec: Codec, like: Tensor, span_tokens: int) -> Tensor:
    """Keys of some rows, as attention would read them: float32 [B, H, n, D] on the device of `like` [B, H, S, D].

    Only these rows are decoded: of a span's codes those are gathered, where they are (at home with offload), and come to the
    device with the codebook. `rows` int64 [n] on the CPU; every span holds `span_tokens` of them.
    """
    out = like.new_empty((*like.shape[:2], len(rows), like.shape[3]), dtype=torch.float32)
    numbers = rows // span_tokens
    for number in numbers.clamp(max=len(spans)).unique().tolist():
        at = (numbers.clamp(max=len(spans)) == number).nonzero()[:, 0]
        held = waiting if number == len(spans) else spans[number]
        assert held is not None
        out[:, :, at.to(like.device)] = _decoded(held.keys, rows[at] - number * span_tokens, codec, like)
    return out


def _decoded(span: Span, rows: Tensor, codec: Codec, like: Tensor) -> Tensor:
    if isinstance(span, ExactSpan):
        return span.values[:, :, rows.to(span.values.device)].float()
    there: Known = {}
    few, own = some_rows(span, rows)
    few = put_span(few, lambda tensor: tensor.to(like.device), there)
    out = like.new_empty((*like.shape[:2], few.num_tokens, like.shape[3]), dtype=torch.float32)
    codec.decode(few, slice(0, few.num_tokens), slice(0, like.shape[1]), out)
    return out if own is None else out[:, :, own.to(like.device)]
