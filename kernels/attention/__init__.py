"""Softmax attention that also says how much mass it saw, so that parts of a long history can be put together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import implementation, shape_refusal


class Attended(NamedTuple):
    """out [B, H, Sq, D] and lse [B, H, Sq] float32: the natural logarithm of the sum of exp(logit), -inf without keys."""

    out: Tensor
    lse: Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto", bias: Tensor | None = None) -> Attended:
    """softmax(q k^T / sqrt(D) + bias) v. q [B, H, Sq, D], k and v [B, H, S, D], any float dtypes and strides. -> out in q's
    dtype.

    `bias` float32 [S] is added to the logits of each key: log m where a key stands for m. S may be 0: then out is 0 and lse -inf,
    which `merge_attention` takes for "nothing seen". Triton rounds k, v and the weights to q's dtype (float32 to float16) for its
    products and sums in float32; torch computes in float32.
    """
    check_attention(q, k, v)
    check_bias(k.shape[2], bias)
    return Attended(*implementation("attention", q, backend, shape_refusal(q.shape[-1])).attention(q, k, v, bias))


def attention_to_listed(q: Tensor, k: Tensor, v: Tensor, listed: Tensor, queries: int, backend: str = "auto") -> Attended:
    """`attention` where every block of `queries` queries reads keys of its own: those whose numbers stand in listed, int32
    [B, H, ceil(Sq / queries), N], -1 for none. Rounding as in `attention`. `queries` is a power of two from 16 to 128."""
    check_attention(q, k, v)
    blocks = (*q.shape[:2], -(-q.shape[2] // queries))
    if listed.shape[:3] != blocks or listed.dtype != torch.int32 or listed.stride(-1) != 1:
        raise ValueError(f"listed {tuple(listed.shape)} of {listed.dtype} are not int32 [B, H, blocks, N] for {blocks}, N dense")
    module = implementation("attention", q, backend, shape_refusal(q.shape[-1]))
    return Attended(*module.attention_to_listed(q, k, v, listed, queries))


def merge_attention(outs: Tensor, lses: Tensor, into: Attended | None, backend: str = "auto") -> Attended:
    """Fold P results over other keys into one, in place. outs [P, B, H, Sq, D], lses [P, B, H, Sq]; `into` is float32.

    Start with None, or with `nothing_seen`, which costs two kernels more for the same bytes. The result does not depend on the
    order, up to rounding.
    """
    fresh = into is None
    if into is None:
        into = Attended(*(torch.empty(x.shape[1:], dtype=torch.float32, device=x.device) for x in (outs, lses)))
    if outs.shape[1:] != into.out.shape or lses.shape != outs.shape[:-1] or into.lse.shape != into.out.shape[:-1]:
        raise ValueError(
            f"outs {tuple(outs.shape)} and lses {tuple(lses.shape)} must be parts of out {tuple(into.out.shape)} "
            f"and lse {tuple(into.lse.shape)}"
        )
    if any(part.dtype != torch.float32 or not part.is_contiguous() for part in into):
        raise ValueError("results are gathered in contiguous float32")
    implementation("attention", outs, backend, shape_refusal(outs.shape[-1])).merge_attention(outs, lses, *into, fresh)
    return into


def nothing_seen(q: Tensor) -> Attended:
    """The start of `merge_attention`: attention of q [B, H, Sq, D] over no keys."""
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    return Attended(out, torch.full(q.shape[:-1], -torch.inf, dtype=torch.float32, device=q.device))


def check_bias(tokens: int, bias: Tensor | None) -> None:
    """ValueError unless there is one number in float32 for every key."""
    if bias is not None and (bias.shape != (tokens,) or bias.dtype != torch.float32):
        raise ValueError(f"a bias {tuple(bias.shape)} of {bias.dtype} does not belong to {tokens} keys; give float32 [S]")


def check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """ValueError unless the shapes belong together."""
    rows = (*q.shape[:2], q.shape[-1])
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or (*k.shape[:2], k.shape[-1]) != rows:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} must be [B, H, Sq, D] and twice [B, H, S, D]"
        )
