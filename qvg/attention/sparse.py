"""Attention that reads only the tiles that matter, and sees the others by their means.

Sink, recent frames and the block in work are read whole. They say how much mass is near, a tile's mean key how much mass it adds
at least; the tiles with the largest share of any query of a block are decoded, a fixed number of them for every head and block.
Every other tile is one key more, its mean, that stands for all its tokens (+log n), with the mean of their values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels.attention import Attended, merge_attention
from ...kernels.rotary import Angles, angles_of_tokens
from ..codec.span import ExactSpan, Known, Span
from ..codec.span_rows import head_rows
from .choice import Reading
from .exact import as_computed, attend_seen
from .history import Decode, History, PositionEncodings
from .plan import DecodePlan, Pair
from .tiles import TILE_TOKENS, SpanTiles, tile_sizes
from .workspace import Workspace

# Queries that read the same tiles.
BLOCK_QUERIES = 64
# Fewer encoded tokens are read whole: ranking them costs what skipping them saves.
LEAST_TOKENS = 4096


class SparsePlan:
    """What one layer remembers, for reading a share of it: made once for a block.

    near    sink and recent frames; `edge`: the tokens of the sink, behind which the spans stand
    first   where each span begins among the tokens of all spans; the last number is how many there are
    starts  where each tile begins in the joined orders of all spans, and `sizes`, how many tokens it has: [N]
    """

    def __init__(self, sink: Sequence[Pair], spans: Sequence[Pair], unpacked: Sequence[Pair], tiles: Sequence[SpanTiles]):
        self.near, self.spans, self.tiles = DecodePlan([*sink, *unpacked]), tuple(spans), tuple(tiles)
        self.edge = sum(pair.keys.num_tokens for pair in sink)
        self.first = [0, *itertools.accumulate(pair.keys.num_tokens for pair in spans)]
        self.first_tile = [0, *itertools.accumulate(one.num_tiles for one in tiles)]
        device = tiles[0].order.device
        counts = [pair.keys.num_tokens for pair in spans]
        self.starts = torch.cat(
            [first + TILE_TOKENS * torch.arange(one.num_tiles) for first, one in zip(self.first, tiles, strict=False)]
        ).to(device)
        self.sizes = torch.cat([tile_sizes(count, device) for count in counts])
        self.is_even = all(count % TILE_TOKENS == 0 for count in counts)
        self._held, self._known = (*sink, *spans, *unpacked), {}  # type: tuple[Pair, ...], dict[tuple[int, int], Known]

    @property
    def num_tiles(self) -> int:
        """Of all spans."""
        return self.first_tile[-1]

    def fits(self, pairs: Sequence[Pair]) -> bool:
        """Whether it was made for these very stretches."""
        return len(pairs) == len(self._held) and all(one is other for one, other in zip(pairs, self._held, strict=True))

    def known(self, row: tuple[int, int]) -> Known:
        """Views of one head of the codebooks."""
        return self._known.setdefault(row, {})


@dataclass(frozen=True)
class SparseHistory:
    """A plan, and what its tokens go through on their way; see `History`. `share`: of the tiles that are read."""

    plan: SparsePlan
    current: tuple[Tensor, Tensor]
    decode: Decode
    share: float
    position_encodings: PositionEncodings | None = None
    tokens_per_frame: int = 1
    backend: str = "auto"
    tiles_read: int = field(init=False)

    def __post_init__(self) -> None:
        # One more for a share that rounding has put above a whole number: .15 of 100 tiles are 15.
        object.__setattr__(self, "tiles_read", math.ceil(self.share * self.plan.num_tiles - 1e-9))

    @property
    def near(self) -> History:
        """What is read whole."""
        encodings = None if self.position_encodings is None else self._near_encodings
        return History(self.plan.near, self.current, self.decode, encodings, False, self.tokens_per_frame, self.backend)

    def _near_encodings(self, which: int, start: int, stop: int) -> Angles | None:
        edge, spans = self.plan.edge, self.plan.first[-1]
        parts = []
        if start < edge:
            parts.append(self._angles(which, start, min(stop, edge)))
        if stop > edge:
            parts.append(self._angles(which, max(start, edge) + spans, stop + spans))
        if any(part is None for part in parts):
            return None
        first, *others = [part for part in parts if part is not None]
        return first.followed_by(*others) if others else first

    def _angles(self, which: int, start: int, stop: int) -> Angles | None:
        assert self.position_encodings is not None
        found = self.position_encodings(which, start, stop)
        assert found is None or isinstance(found, Angles)
        return found

    def chosen(self, row: tuple[int, int], tiles: Tensor) -> History:
        """The tokens of some tiles (int64 [k], in their order) of one batch row and head: [1, 1, n]."""
        plan, (batch, head) = self.plan, row
        at = plan.starts[tiles][:, None] + torch.arange(TILE_TOKENS, device=tiles.device)
        there = torch.arange(TILE_TOKENS, device=tiles.device) < plan.sizes[tiles][:, None]
        at = at.flatten() if plan.is_even else at[there]
        within = torch.cat([one.order[batch, head] for one in plan.tiles])[at].long()
        # Where the tokens of each span begin among those that were chosen: one answer for all of them comes from the device.
        cuts = torch.searchsorted(at, torch.tensor(plan.first, device=at.device)).tolist()
        pairs, bases = [], []
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            if start < stop:
                pairs.append(Pair(*(self._rows(span, row, within[start:stop]) for span in plan.spans[number])))
                bases.append((plan.first[number], stop - start))
        empty = [x[:1, :1, :0] for x in self.current]
        encodings = None if self.position_encodings is None else self._turns(within, bases)
        return History(DecodePlan(pairs), (empty[0], empty[1]), self.decode, encodings, backend=self.backend)

    def _rows(self, span: Span, row: tuple[int, int], at: Tensor) -> Span:
        found = head_rows(span, row, at, self.plan.known(row))
        if found is not None:
            return found
        like, (batch, head) = self.current[0], row
        whole = torch.empty(like.shape[0], 1, span.num_tokens, like.shape[3], device=like.device)
        self.decode(span, slice(0, span.num_tokens), slice(head, head + 1), whole, None)
        return ExactSpan(whole[batch : batch + 1].index_select(2, at))

    def _turns(self, within: Tensor, bases: Sequence[tuple[int, int]]) -> PositionEncodings:
        """Of the chosen tokens, whose numbers in their spans are `within`; `bases`: where a span begins, and how many are its."""
        plan, device = self.plan, within.device
        sizes = torch.tensor([count for _, count in bases], device=device)
        base = torch.tensor([first for first, _ in bases], device=device).repeat_interleave(sizes)
        whole = self._angles(0, plan.edge, plan.edge + plan.first[-1])
        turns = None if whole is None else angles_of_tokens(whole.at(within + base))

        def of_keys(which: int, start: int, stop: int) -> Angles | None:
            return None if which or turns is None else turns.tokens(start, stop)

        return of_keys


def attend_sparse(q: Tensor, history: SparseHistory, workspace: Workspace, reading: Reading, backend: str) -> Tensor:
    """See the module docstring. q [B, H, Sq, D], already encoded by position -> the same shape, in q's dtype."""
    work, plan = as_computed(q), history.plan
    near, kernel = attend_seen(work, history.near, workspace, backend)
    reading.note(
        kernel,
        f"{history.tiles_read} of {plan.num_tiles} tiles of {TILE_TOKENS} tokens read for every {min(BLOCK_QUERIES, q.shape[2])} "
        "queries, the others by their means",
    )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for batch, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        row = (slice(batch, batch + 1), slice(head, head + 1))
        means = [_means([one.keys for one in plan.tiles], row), _means([one.values for one in plan.tiles], row)]
        for first in range(0, q.shape[2], BLOCK_QUERIES):
            some = (*row, slice(first, first + BLOCK_QUERIES))
            total = Attended(near.out[some].contiguous(), near.lse[some].contiguous())
            tiles, rest = _rank(work[some], means, total.lse, plan.sizes, history.tiles_read)
            reserved = sum(x.nbytes for x in means)
            for part in (rest, attend_seen(work[some], history.chosen((batch, head), tiles), workspace, backend, reserved)[0]):
                merge_attention(part.out[None], part.lse[None], total, backend)
            out[some] = total.out
    return out


def _means(parts: Sequence[object], row: tuple[slice, slice]) -> Tensor:
    """Of all spans' tiles of one head: float32 [N, D]."""
    values = torch.cat([part.values[row] for part in parts], 2)[0, 0]  # type: ignore[attr-defined]
    scales = torch.cat([part.scales[row] for part in parts], 2)[0, 0]  # type: ignore[attr-defined]
    return values.float().mul_(scales.float()[:, None])


def _rank(q: Tensor, means: Sequence[Tensor], near: Tensor, sizes: Tensor, most: int) -> tuple[Tensor, Attended]:
    """The tiles to read, in their order, and attention of q [1, 1, n, D] to the means of the others."""
    keys, values = means
    logits = torch.matmul(q[0, 0].float() * q.shape[-1] ** -0.5, keys.T).add_(sizes.log())
    mass = torch.logaddexp(near[0, 0], logits.logsumexp(-1))
    tiles = (logits - mass[:, None]).amax(0).topk(most).indices.sort().values
    logits[:, tiles] = -torch.inf
    lse = logits.logsumexp(-1)
    weights = logits.sub_(torch.where(lse == -torch.inf, 0, lse)[:, None]).exp_()
    return tiles, Attended(torch.matmul(weights, values)[None, None], lse[None, None])
