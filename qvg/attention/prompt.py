"""Cross-attention that reads a prompt's padding once.

Wan pads its text to 512 tokens with zeros and gives cross-attention neither mask nor positions, so the keys and values of all
padding are the same row. Softmax cannot tell m equal keys from one whose logit is log m higher (FAST-AR, arXiv 2602.01801, lemma
5.1): a prompt of n tokens takes n + 1 rows instead of 512, and nothing is approximated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


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
