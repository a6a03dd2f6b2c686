"""Attention in torch: the truth that other backends are tested against."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `kernels.attention.attention`."""
    scores = torch.matmul(q.float() * q.shape[-1] ** -0.5, k.float().transpose(2, 3))
    scores = scores if bias is None else scores.add_(bias)
    lse = scores.logsumexp(-1)
    # Without keys there is nothing to subtract: exp(-inf + inf) would be NaN.
    weights = scores.sub_(torch.where(lse == -torch.inf, 0, lse)[..., None]).exp_()
    return torch.matmul(weights, v.float()).to(q.dtype), lse


def attention_to_listed(q: Tensor, k: Tensor, v: Tensor, listed: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """See `kernels.attention.attention_to_listed`."""
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), torch.empty(q.shape[:3], device=q.device)
    for batch, head, block in itertools.product(*map(range, listed.shape[:3])):
        at = (slice(batch, batch + 1), slice(head, head + 1))
        tokens = listed[batch, head, block]
        tokens = tokens[tokens >= 0].long()
        some = (*at, slice(block * queries, (block + 1) * queries))
        out[some], lse[some] = attention(q[some], k[at].index_select(2, tokens), v[at].index_select(2, tokens))
    return out, lse


def merge_attention(outs: Tensor, lses: Tensor, out: Tensor, lse: Tensor, fresh: bool = False) -> None:
    """See `kernels.attention.merge_attention`. fresh: `out` and `lse` hold nothing yet, not even zeros."""
    if fresh:
        out.zero_()
        lse.fill_(-torch.inf)
    for part, mass in zip(outs, lses, strict=True):
        total = torch.logaddexp(lse, mass)
        finite = torch.where(total == -torch.inf, 0, total)
        out.mul_(torch.exp(lse - finite)[..., None]).add_(part.float() * torch.exp(mass - finite)[..., None])
        lse.copy_(total)
