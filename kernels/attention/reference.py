"""Attention in torch: the truth that other backends are tested against."""

from __future__ import annotations

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


def merge_attention(outs: Tensor, lses: Tensor, out: Tensor, lse: Tensor) -> None:
    """See `kernels.attention.merge_attention`."""
    for part, mass in zip(outs, lses, strict=True):
        total = torch.logaddexp(lse, mass)
        finite = torch.where(total == -torch.inf, 0, total)
        out.mul_(torch.exp(lse - finite)[..., None]).add_(part.float() * torch.exp(mass - finite)[..., None])
        lse.copy_(total)
