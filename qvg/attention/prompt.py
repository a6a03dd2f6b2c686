"""Cross-attention that reads a prompt's padding once, and, where that is asked for, only rows that matter.

Wan pads its text to 512 tokens with zeros and gives cross-attention neither mask nor positions, so the keys and values of all
padding are the same row. Softmax cannot tell m equal keys from one whose logit is log m higher (FAST-AR, arXiv 2602.01801, lemma
5.1): a prompt of n tokens takes n + 1 rows instead of 512, and nothing is approximated. That is the exact part of what the paper
calls AnnCA. Its other part, leaving out rows that no query of a block asks for, is here to be measured (`RULES`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Which rows are read: all; those that have some share of any query's attention, the others as one (their mean); those that share
# a bucket of random hyperplanes with any query, the others not at all (as published).
RULES = ("all", "mass", "buckets")
LEAST_SHARE = 0.01
# The paper does not say how many; a prompt of sixty rows and thousands of queries find each other seldom enough with these.
_HASH_BITS, _HASH_TABLES, _HASH_SEED = 8, 2, 2602


@dataclass(frozen=True)
class MergedPrompt:
    """Keys and values [B, H, S', D] of a prompt, and what is added to the logits, [1, 1, 1, S'] in the keys' dtype.
    `merged_rows`: how many equal rows at the end became the last one (in 16 bits: the last two)."""

    keys: Tensor
    values: Tensor
    bias: Tensor
    merged_rows: int


def merge_equal_rows(k: Tensor, v: Tensor) -> MergedPrompt | None:
    """Merge the rows at the end of k and v, both [B, H, S, D], that are the same in every batch item and head.

    None where there are too few of them to gain anything. Reads the answer back from the device: once per prompt and layer.
    Costs [B, H, S, D] of bytes for a moment.
    """
    count = _equal_rows_at_the_end(k, v)
    biases = _biases(count, k.dtype)
    if count <= len(biases):
        return None
    kept = k.shape[2] - count + len(biases)
    bias = k.new_zeros(1, 1, 1, kept)
    bias[..., -len(biases) :] = torch.tensor(biases, dtype=k.dtype, device=k.device)
    # Copies: the whole prompt's memory can go.
    return MergedPrompt(k[:, :, :kept].clone(), v[:, :, :kept].clone(), bias, count)


def attend_part(q: Tensor, merged: MergedPrompt, rule: str) -> tuple[Tensor, int]:
    """`attend` to the rows that `rule` keeps (see RULES), the same for all heads, and how many were read. Finding them reads the
    answer back from the device, and costs what it saves, or more: it is there to be measured."""
    kept = None if rule == "all" else kept_rows(q, merged, rule)
    rows = merged.keys.shape[2]
    if kept is None or bool(kept.all()) or not bool(kept.any()):
        return attend(q, merged), rows
    keys, values, bias = merged.keys[:, :, kept], merged.values[:, :, kept], merged.bias[..., kept]
    if rule == "mass":
        counts = merged.bias[0, 0, 0, ~kept].float().exp()
        keys = torch.cat([keys, _weighted(merged.keys[:, :, ~kept], counts)], 2)
        values = torch.cat([values, _weighted(merged.values[:, :, ~kept], counts)], 2)
        bias = torch.cat([bias, counts.sum().log().to(bias.dtype).view(1, 1, 1, 1)], 3)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias), keys.shape[2]


def kept_rows(q: Tensor, merged: MergedPrompt, rule: str) -> Tensor:
    """Which rows of a prompt queries [B, H, Sq, D] want, by "mass" or "buckets": bool [S']."""
    if rule == "mass":
        logits = torch.matmul(q.float() * q.shape[-1] ** -0.5, merged.keys.float().transpose(2, 3)) + merged.bias.float()
        wanted: Tensor = logits.softmax(-1).amax((0, 1, 2)) >= LEAST_SHARE
        return wanted
    generator = torch.Generator().manual_seed(_HASH_SEED)
    planes = torch.randn(q.shape[-1], _HASH_TABLES * _HASH_BITS, generator=generator).to(q.device)
    asked, there = _buckets(q, planes), _buckets(merged.keys, planes)
    hit = torch.zeros(*asked.shape[:2], _HASH_TABLES, 1 << _HASH_BITS, dtype=torch.bool, device=q.device)
    hit.scatter_(3, asked.transpose(2, 3), True)
    found: Tensor = hit.gather(3, there.transpose(2, 3)).any(2).any(0).any(0)
    return found


def _buckets(x: Tensor, planes: Tensor) -> Tensor:
    """The bucket of every row in every table: int64 [B, H, S, tables]."""
    bits = (torch.matmul(x.float(), planes) > 0).unflatten(-1, (_HASH_TABLES, _HASH_BITS))
    numbers: Tensor = (bits.long() << torch.arange(_HASH_BITS, device=x.device)).sum(-1)
    return numbers


def _weighted(x: Tensor, counts: Tensor) -> Tensor:
    """The mean of rows [B, H, n, D] that stand for so many each: [B, H, 1, D]."""
    share = (counts / counts.sum())[:, None]
    return (x.float() * share).sum(2, keepdim=True).to(x.dtype)


def attend(q: Tensor, merged: MergedPrompt) -> Tensor:
    """Attention over the prompt as it was before merging, to rounding. q [B, H, Sq, D] -> the same shape."""
    return F.scaled_dot_product_attention(q, merged.keys, merged.values, attn_mask=merged.bias)


def _equal_rows_at_the_end(k: Tensor, v: Tensor) -> int:
    same = (k == k[:, :, -1:]).all(-1) & (v == v[:, :, -1:]).all(-1)
    return int(same.all(1).all(0).flip(0).cumprod(0).sum())


def _biases(count: int, dtype: torch.dtype) -> list[float]:
    """Logarithms that stand for `count` rows. Rounded to bfloat16, log(count) would be off by up to 1.6 % of the count, so in 16
    bits it is rounded down, and a second row makes up for the rest."""
    if dtype in (torch.float32, torch.float64) or count < 2:
        return [math.log(max(count, 1))]
    first = torch.tensor(math.log(count)).to(dtype)
    if first.double().exp() >= count:
        first = torch.nextafter(first, first.new_zeros(()))
    return [float(first), math.log(count - math.exp(float(first)))]
