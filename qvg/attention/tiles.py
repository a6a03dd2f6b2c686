"""Tiles: tokens of a span whose keys are alike where attention sees them, and the mean key and value of each in eight bits.

A tile's mean key says how much of a query's attention its tokens get (the first-order term of the logarithm of their mass), so
whoever reads only a share of a history reads the tiles that weigh most. What is left out is seen by the means: as one key that
stands for all tokens of its tile (FAST-AR, arXiv 2602.01801, calls this AnnSA; it drops what is left out).

Keys are compared as they are rotated: a cluster of keys before RoPE lies all over the picture, and its mean says nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.rows8 import Rows8, quantize_rows

TILE_TOKENS = 16
# Steps towards the direction in which a stretch of tokens differs most, and then of two-means between its halves.
_POWER_STEPS = 3
_MEANS_STEPS = 4


@dataclass(frozen=True, eq=False)
class SpanTiles:
    """The tiles of one span of S tokens: N = S / 16, rounded up; the last one may be short.

    order   int16 [B, H, S] (int32 beyond 32,768 tokens): which token comes where; tile n is order[16 n : 16 n + 16]
    keys    means of the keys as attention sees them, int8 [B, H, N, D] with float16 scales [B, H, N]
    values  means of the values, the same way
    """

    order: Tensor
    keys: Rows8
    values: Rows8

    @property
    def num_tiles(self) -> int:
        """How many."""
        return self.keys.scales.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(part.nbytes for part in self.tensors().values())

    def on(self, device: torch.device) -> SpanTiles:
        """The same on a device."""
        keys, values = (Rows8(*(part.to(device) for part in rows)) for rows in (self.keys, self.values))
        return SpanTiles(self.order.to(device), keys, values)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {
            "order": self.order,
            "keys": self.keys.values,
            "key_scales": self.keys.scales,
            "values": self.values.values,
            "value_scales": self.values.scales,
        }


def order_dtype(tokens: int) -> torch.dtype:
    """Of the numbers of so many tokens."""
    return torch.int16 if tokens <= 1 << 15 else torch.int32


def tile_bytes(rows: int, tokens: int, channels: int) -> int:
    """Bytes of the tiles of a span: `rows` are batch times heads."""
    return rows * (tokens * order_dtype(tokens).itemsize + 2 * tile_count(tokens) * (channels + 2))


def tile_count(tokens: int) -> int:
    """Tiles of so many tokens."""
    return -(-tokens // TILE_TOKENS)


def make_order(keys: Tensor) -> Tensor:
    """Keys [B, H, S, D] as attention sees them -> order [B, H, S]."""
    order = _halved(keys.float().flatten(0, 1))
    return order.view(*keys.shape[:2], -1).to(order_dtype(keys.shape[2]))


def tile_means(x: Tensor, order: Tensor) -> Rows8:
    """The mean of every tile of x [B, H, S, D]."""
    index = order.long()[..., None].expand(-1, -1, -1, x.shape[3])
    sorted_x = x.gather(2, index).float()
    tokens = x.shape[2]
    missing = -tokens % TILE_TOKENS
    sums = torch.nn.functional.pad(sorted_x, (0, 0, 0, missing)).unflatten(2, (-1, TILE_TOKENS)).sum(3)
    return quantize_rows(sums / tile_sizes(tokens, x.device)[:, None])


def tile_sizes(tokens: int, device: torch.device) -> Tensor:
    """Tokens of every tile of a span: float32 [N]."""
    sizes = torch.full((tile_count(tokens),), float(TILE_TOKENS), device=device)
    sizes[-1] -= -tokens % TILE_TOKENS
    return sizes


def _halved(x: Tensor) -> Tensor:
    """Two-means with clusters of equal size, again and again until a cluster is a tile: x [R, S, D] -> order [R, S].

    Every stretch of tiles is sorted along the direction in which its tokens differ most and cut at a tile's edge in the middle;
    then, some times, along the line between the means of its halves, which is what puts tokens nearer to one of them there.
    """
    rows, tokens, _ = x.shape
    order = torch.arange(tokens, device=x.device).expand(rows, -1)
    cuts = [0, tile_count(tokens)]
    while any(stop - start > 1 for start, stop in itertools.pairwise(cuts)):
        finer = sorted({*cuts, *((start + stop) // 2 for start, stop in itertools.pairwise(cuts))})
        edges, halves = ([min(tokens, cut * TILE_TOKENS) for cut in some] for some in (cuts, finer))
        order, cuts = _sorted_within(x, order, edges, halves), finer
    return order


def _sorted_within(x: Tensor, order: Tensor, edges: list[int], halves: list[int]) -> Tensor:
    """Each stretch between two edges sorted so that its halves (the stretches of the edges `halves`) are alike."""
    rows, _, channels = x.shape
    device = x.device
    sizes = torch.tensor([stop - start for start, stop in itertools.pairwise(edges)], device=device)
    of = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
    begun = set(edges)
    # 1 in the second half of a stretch, -1 in its first; 0 in a tile.
    ends = itertools.pairwise(halves)
    side = torch.tensor([0 if one in begun and two in begun else -1 if one in begun else 1 for one, two in ends])
    half_sizes = torch.tensor([stop - start for start, stop in itertools.pairwise(halves)])
    weights = (side / half_sizes).to(device).repeat_interleave(half_sizes.to(device))

    def summed(parts: Tensor) -> Tensor:
        return torch.zeros(rows, len(sizes), channels, device=device).index_add_(1, of, parts)

    def sorted_along(here: Tensor, along: Tensor) -> Tensor:
        by_place = (here * along[:, of]).sum(-1).argsort(dim=1, stable=True)
        # A stable sort by stretch leaves each in the order of its places.
        return by_place.gather(1, of[by_place].argsort(dim=1, stable=True))

    def gathered(y: Tensor, at: Tensor) -> Tensor:
        return y.gather(1, at[..., None].expand(-1, -1, channels))

    here = gathered(x, order)
    here = here - (summed(here) / sizes[:, None])[:, of]
    # Whatever it begins with, power iteration finds the direction; of a stretch's own tokens it begins within their span.
    first = torch.tensor(edges[:-1], device=device)
    along = here[:, first] + here[:, first + sizes // 2] / 2
    for _ in range(_POWER_STEPS):
        share = (here * torch.nn.functional.normalize(along, dim=-1)[:, of]).sum(-1, keepdim=True)
        along = summed(here * share)
    for step in range(_MEANS_STEPS + 1):
        within = sorted_along(here, torch.nn.functional.normalize(along, dim=-1))
        here, order = gathered(here, within), order.gather(1, within)
        if step < _MEANS_STEPS:
            along = summed(here * weights[:, None])
    return order
