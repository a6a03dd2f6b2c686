"""Attention that reads transform coefficients themselves: nothing is decoded into memory."""

from __future__ import annotations

from torch import Tensor

from ..attention import Attended, check_bias, merge_attention
from ..direct import CosSin
from ..dispatch import implementation, shape_refusal
from ..rotary import Angles, angles_of_tokens
from ..spans import Place, SpanTable
from ..transform_codes import TransformCodes

__all__ = ["TransformCodes", "attend_coefficients", "attend_spans", "table_of_one"]


def attend_spans(
    q: Tensor,
    table: SpanTable,
    run: tuple[int, int],
    start: int = 0,
    angles: Angles | None = None,
    backend: str = "auto",
    into: Attended | None = None,
    bias: Tensor | None = None,
) -> Attended:
    """softmax(q k^T / sqrt(D) + bias) v over spans first:stop of a codebook (`SpanTable.runs`), decoded on the way.

    q [B, H, Sq, D] already rotated. -> float32 out and lse. `angles` rotate the keys, `bias` as in `attention`; both begin with
    visible token `start`. `into` (float32) is folded into, in place. Triton multiplies in float16 (keys beyond 65504 saturate),
    and sums in float32: 1e-3 of torch's result, relative, which decodes a tile of one head at a time in float32.
    """
    module = implementation("direct_coefficients", q, backend, shape_refusal(q.shape[-1]))
    outs, lses = module.attend_spans(q, table, run, start, angles, bias)
    return merge_attention(outs, lses, into, backend)


def attend_coefficients(
    q: Tensor,
    keys: TransformCodes,
    values: TransformCodes,
    rotation: CosSin | None = None,
    backend: str = "auto",
    into: Attended | None = None,
    bias: Tensor | None = None,
) -> Attended:
    """`attend_spans` for one span whose keys are rotated by angles of their own."""
    tokens, channels = keys.num_tokens, q.shape[-1]
    for kept in (keys, values):
        kept.check(tokens, (q.shape[0], q.shape[1]), channels)
    if rotation is not None and any(tuple(part.shape) != (tokens, channels // 2) for part in rotation):
        raise ValueError(
            f"a rotation of {[tuple(part.shape) for part in rotation]} does not belong to {tokens} keys of {channels}"
        )
    check_bias(tokens, bias)
    return attend_spans(q, *table_of_one(keys, values, rotation), backend, into, bias)


def table_of_one(
    keys: TransformCodes, values: TransformCodes, rotation: CosSin | None = None
) -> tuple[SpanTable, tuple[int, int], int, Angles | None]:
    """What `attend_spans` takes for one span: every token counts as a frame with angles of its own."""
    table = SpanTable((keys,), (values,), (Place(0),))
    return table, (0, 1), 0, None if rotation is None else angles_of_tokens(rotation)
