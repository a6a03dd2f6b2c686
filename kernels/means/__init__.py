"""Keys that each stand for several: which of them a block of queries reads in full, and attention to the means of the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..attention import Attended
from ..dispatch import implementation, shape_refusal, triton_refusal
from ..rows8 import Rows8


class Ranked(NamedTuple):
    """tiles int64 [B, H, blocks, most]: those to read, in their order; rest: attention of every query to the means of the
    others."""

    tiles: Tensor
    rest: Attended


def rank_means(
    q: Tensor,
    keys: Rows8,
    values: Rows8,
    log_sizes: Tensor,
    norms: Tensor,
    near: Tensor,
    most: int,
    queries: int,
    backend: str = "auto",
) -> Ranked:
    """For every block of `queries` queries the `most` tiles that have the largest share of any of them, and what is seen of the
    others: each one key, its mean, with the mean of its values.

    q          [B, H, Sq, D], any float dtype
    keys       means [B, H, N, D] of the keys of N tiles; values: of their values
    log_sizes  float32 [N]: the natural logarithm of how many keys each stands for
    norms      float32 [B, H]: the mean of the squares of a head's keys
    near       float32 [B, H, Sq]: the logarithm of the mass of what is read anyway; -inf: nothing is

    A tile's share of a query is exp(logit - mass), the mass that of near and all tiles. For the ranking, not for what is seen, a
    logit is that of the mean plus |q|^2 / 2D * (norm - |mean|^2) / D, MOST_SPREAD at most: what normally distributed keys of that
    norm would add, because a mean alone hides the one key in a tile that a query looks for. 1 <= most <= N; `queries` is a
    power of two from 16 to 128 for Triton, which rounds queries, means and weights to q's dtype (float32 to float16) for its
    products.
    """
    _check(q, keys, values, (log_sizes, norms, near))
    tiles = keys.scales.shape[2]
    if not 1 <= most <= tiles:
        raise ValueError(f"{most} of {tiles} tiles cannot be read; give 1 to {tiles}")
    module = implementation("means", q, backend, shape_refusal(q.shape[-1]))
    chosen, out, lse = module.rank_means(q, keys, values, log_sizes, norms, near, most, queries)
    return Ranked(chosen, Attended(out, lse))


def working_bytes(q: Tensor, tiles: int, queries: int, backend: str = "auto") -> int:
    """What `rank_means` takes for one block of queries of one (b, h) beside its results, at most."""
    refusal = triton_refusal("means", q.device) or shape_refusal(q.shape[-1])
    if backend == "torch" or refusal is not None:
        return 3 * 4 * tiles * queries  # logits, shares, what is sorted
    return (4 + 8 + 8 + 1) * tiles  # shares, what is sorted and its numbers, a byte that says what is read


def _check(q: Tensor, keys: Rows8, values: Rows8, numbers: tuple[Tensor, Tensor, Tensor]) -> None:
    rows = (*q.shape[:2], keys.scales.shape[-1], q.shape[-1])
    shapes = [tuple(x.shape) for x in (keys.values, values.values, keys.scales, values.scales, *numbers)]
    if q.ndim != 4 or shapes != [rows, rows, rows[:3], rows[:3], rows[2:3], rows[:2], tuple(q.shape[:3])]:
        raise ValueError(
            f"q {tuple(q.shape)} does not belong to means {shapes[0]} and {shapes[1]}, their scales {shapes[2]} and {shapes[3]}, "
            f"log_sizes {shapes[4]}, norms {shapes[5]} and near {shapes[6]}"
        )
    if any(x.dtype != torch.float32 for x in numbers):
        raise ValueError(f"log_sizes, norms and near are {', '.join(str(x.dtype) for x in numbers)}; give float32")
