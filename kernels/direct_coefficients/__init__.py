"""Attention that reads transform coefficients themselves: nothing is decoded into memory."""

from __future__ import annotations

from torch import Tensor

from ..attention import Attended, check_bias, merge_attention, nothing_seen
from ..direct import CosSin
from ..dispatch import implementation, shape_refusal
from ..transform_codes import TransformCodes

__all__ = ["TransformCodes", "attend_coefficients"]


def attend_coefficients(
    q: Tensor,
    keys: TransformCodes,
    values: TransformCodes,
    rotation: CosSin | None = None,
    backend: str = "auto",
    into: Attended | None = None,
    bias: Tensor | None = None,
) -> Attended:
    """softmax(q k^T / sqrt(D) + bias) v with k and v decoded on the way. q [B, H, Sq, D] already rotated. -> float32 out and lse.

    `rotation` rotates the keys, `bias` as in `attention`. `into` (float32) is folded into, in place. Triton multiplies in float16
    (keys beyond 65504 saturate) and sums in float32: 1e-3 of torch's result, relative, which decodes a tile of one head at a time
    in float32.
    """
    tokens, channels = keys.num_tokens, q.shape[-1]
    for kept in (keys, values):
        kept.check(tokens, (q.shape[0], q.shape[1]), channels)
    if rotation is not None and any(tuple(part.shape) != (tokens, channels // 2) for part in rotation):
        raise ValueError(
            f"a rotation of {[tuple(part.shape) for part in rotation]} does not belong to {tokens} keys of {channels}"
        )
    check_bias(tokens, bias)
    module = implementation("direct_coefficients", q, backend, shape_refusal(channels))
    outs, lses = module.attend_coefficients(q, keys.filled(), values.filled(), rotation, bias)
    return merge_attention(outs, lses, into or nothing_seen(q), backend)
