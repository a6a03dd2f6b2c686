"""Ranking tiles by their means, and attention to the means of the others, in torch: the truth that others are tested against."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..rows8 import Rows8

# Natural logarithms that a tile's spread adds at most: more is no longer a guess about normally distributed keys.
MOST_SPREAD = 6.0


def rank_means(
    q: Tensor, keys: Rows8, values: Rows8, log_sizes: Tensor, norms: Tensor, near: Tensor, most: int, queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.means.rank_means`. One (b, h) at a time, so that its logits are all that there is of them."""
    blocks = -(-q.shape[2] // queries)
    tiles = torch.empty(*q.shape[:2], blocks, most, dtype=torch.int64, device=q.device)
    out = torch.empty(q.shape, device=q.device)
    lse = torch.empty(q.shape[:3], device=q.device)
    for row in itertools.product(range(q.shape[0]), range(q.shape[1])):
        # In place: a float32 mean key is four times the bytes of what is kept.
        means = [one.values[row].float().mul_(one.scales[row].float()[:, None]) for one in (keys, values)]
        scaled = q[row].float() * q.shape[-1] ** -0.5
        logits = torch.matmul(scaled, means[0].T).add_(log_sizes)
        spreads = (norms[row] - means[0].square().sum(-1)).clamp_(min=0) / q.shape[-1]
        spread = torch.outer(scaled.square().sum(-1) / 2, spreads).clamp_(max=MOST_SPREAD)
        tiles[row] = _largest(spread.add_(logits), near[row], most, queries)
        logits.scatter_(1, tiles[row].repeat_interleave(queries, 0)[: q.shape[2]], -torch.inf)
        lse[row] = logits.logsumexp(-1)
        # Where all are read nothing is left, and exp(-inf + inf) would be NaN.
        weights = logits.sub_(torch.where(lse[row] == -torch.inf, 0, lse[row])[:, None]).exp_()
        torch.matmul(weights, means[1], out=out[row])
    return tiles, out, lse


def _largest(logits: Tensor, near: Tensor, most: int, queries: int) -> Tensor:
    """Logits [Sq, N], which are written over -> the tiles of every block with the largest share of any query: int64
    [blocks, most]."""
    mass = torch.logaddexp(near, logits.logsumexp(-1))
    shares = torch.nn.functional.pad(logits.sub_(mass[:, None]), (0, 0, 0, -len(logits) % queries), value=-torch.inf)
    tiles: Tensor = shares.unflatten(0, (-1, queries)).amax(1).topk(most).indices.sort().values
    return tiles
