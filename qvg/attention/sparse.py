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

from ...kernels.attention import Attended, attention_to_listed, merge_attention, nothing_seen
from ...kernels.launch import on_gpu
from ...kernels.means import rank_means, working_bytes
from ...kernels.rotary import Angles, angles_of_tokens
from ...kernels.rows8 import Rows8
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


def tiles_read(share: float, tiles: int) -> int:
    """Of so many tiles."""
    # Not one more for a share that rounding has put above a whole number: .15 of 100 tiles are 15.
    return math.ceil(share * tiles - 1e-9)


class SparsePlan:
    """What one layer remembers, for reading a share of it: made once for a block.

    near    sink and recent frames, and what a window has left of its oldest span, whose means also stand for what has left;
            `whole`: the other spans; `edge`: the tokens of near in front of them
    first   where each span begins among the tokens of all spans; the last number is how many there are
    starts  where each tile begins in the joined orders of all spans, `sizes`, how many tokens it has, and `bases`, where its span
            begins: each [N]
    """

    def __init__(
        self,
        sink: Sequence[Pair],
        spans: Sequence[Pair],
        unpacked: Sequence[Pair],
        tiles: Sequence[SpanTiles],
        hidden_tokens: int = 0,
    ):
        self._held, self.hidden_tokens = (*sink, *spans, *unpacked), hidden_tokens
        cut = int(hidden_tokens > 0)
        front = [*sink, *spans[:cut]]
        self.near = DecodePlan([*front, *unpacked], (len(sink), hidden_tokens))
        self.edge = sum(self.near.counts[: len(front)])
        spans, tiles = spans[cut:], tiles[cut:]
        self.spans, self.tiles = tuple(spans), tuple(tiles)
        self.first = [0, *itertools.accumulate(pair.keys.num_tokens for pair in spans)]
        self.first_tile = [0, *itertools.accumulate(one.num_tiles for one in tiles)]
        device = tiles[0].order.device
        counts = [pair.keys.num_tokens for pair in spans]
        self.starts = torch.cat(
            [first + TILE_TOKENS * torch.arange(one.num_tiles) for first, one in zip(self.first, tiles, strict=False)]
        ).to(device)
        self.sizes = torch.cat([tile_sizes(count, device) for count in counts])
        self.log_sizes = self.sizes.log()
        self.whole = DecodePlan(spans)
        self.is_even = all(count % TILE_TOKENS == 0 for count in counts)
        # Of every tile, where its span begins.
        self.bases = torch.cat([torch.full((one.num_tiles,), first) for first, one in zip(self.first, tiles, strict=False)]).to(
            device
        )
        # Of exact keys, whose norms are those of all; the block in work's are others as long as it is noise.
        exact = [_squares(pair.keys.values) for pair in (*sink, *unpacked) if isinstance(pair.keys, ExactSpan)]
        self.norms = torch.cat(exact, 2).mean(2) if exact else None
        self._known: dict[tuple[int, int], Known] = {}

    @property
    def num_tiles(self) -> int:
        """Of all spans."""
        return self.first_tile[-1]

    def fits(self, pairs: Sequence[Pair], hidden_tokens: int) -> bool:
        """Whether it was made for these very stretches."""
        same = len(pairs) == len(self._held) and hidden_tokens == self.hidden_tokens
        return same and all(one is other for one, other in zip(pairs, self._held, strict=True))

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
        object.__setattr__(self, "tiles_read", tiles_read(self.share, self.plan.num_tiles))

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

    @property
    def all_spans(self) -> History:
        """Everything that tiles are made of."""
        empty = [x[:, :, :0] for x in self.current]
        edge, encodings = self.plan.edge, self.position_encodings

        def shifted(which: int, start: int, stop: int) -> Angles | None:
            return self._angles(which, start + edge, stop + edge)

        turned = None if encodings is None else shifted
        per_frame = self.tokens_per_frame
        return History(self.plan.whole, (empty[0], empty[1]), self.decode, turned, False, per_frame, self.backend)

    @property
    def norms(self) -> Tensor:
        """The mean of the squares of every head's keys, float32 [B, H]."""
        found = self.plan.norms
        return _squares(self.current[0]).mean(-1) if found is None else found

    def means(self, heads: slice, batch: slice = slice(None)) -> tuple[Rows8, Rows8]:
        """Keys and values of all tiles of some heads."""
        tiles, row = self.plan.tiles, (batch, heads)
        keys, values = ([one.keys for one in tiles], [one.values for one in tiles])
        return _joined(keys, row), _joined(values, row)

    def listed(self, heads: slice, tiles: Tensor) -> Tensor:
        """Which of all spans' tokens are in some tiles of some heads: int64 [B, h, blocks, k] -> int32 [B, h, blocks, 16 k], -1
        where a tile has no more."""
        plan = self.plan
        inside = torch.arange(TILE_TOKENS, device=tiles.device)
        at = (plan.starts[tiles][..., None] + inside).clamp(max=plan.first[-1] - 1)
        orders = torch.cat([one.order[:, heads] for one in plan.tiles], 2)
        tokens = orders.gather(2, at.flatten(2)).view(at.shape).int() + plan.bases[tiles][..., None].int()
        return torch.where(inside < plan.sizes[tiles][..., None], tokens, -1).flatten(-2)

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
    # So many blocks decode less tile by tile than all once.
    few = -(-q.shape[2] // BLOCK_QUERIES) * history.tiles_read <= plan.num_tiles
    if on_gpu(q.device) and not few and _decoded_bytes(history, work) <= workspace.limit_bytes // 2:
        return _attend_many(work, history, near, workspace, backend).to(q.dtype)
    out, norms = torch.empty_like(q, memory_format=torch.contiguous_format), history.norms
    for batch, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        row = (slice(batch, batch + 1), slice(head, head + 1))
        means = history.means(row[1], row[0])
        reserved = 2 * 4 * plan.num_tiles * q.shape[3]
        for first in range(0, q.shape[2], BLOCK_QUERIES):
            some = (*row, slice(first, first + BLOCK_QUERIES))
            total = Attended(near.out[some].contiguous(), near.lse[some].contiguous())
            ranked = rank_means(
                work[some], *means, plan.log_sizes, norms[row], total.lse, history.tiles_read, BLOCK_QUERIES, backend
            )
            chosen = history.chosen((batch, head), ranked.tiles[0, 0, 0])
            for part in (ranked.rest, attend_seen(work[some], chosen, workspace, backend, reserved)[0]):
                merge_attention(part.out[None], part.lse[None], total, backend)
            out[some] = total.out
    return out


def _decoded_bytes(history: SparseHistory, q: Tensor) -> int:
    """Of the keys and values of one head's spans."""
    return 2 * q.shape[0] * history.plan.first[-1] * q.shape[3] * q.element_size()


def _attend_many(q: Tensor, history: SparseHistory, near: Attended, workspace: Workspace, backend: str) -> Tensor:
    """The same for so many blocks of queries that together they read everything: spans are decoded once, some heads at a time,
    and a kernel reads of them what each block has chosen."""
    plan, channels, spans, norms = history.plan, q.shape[3], history.all_spans, history.norms
    group = max(1, min(q.shape[1], workspace.limit_bytes // 2 // _decoded_bytes(history, q)))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for first in range(0, q.shape[1], group):
        heads = slice(first, min(first + group, q.shape[1]))
        shape = (q.shape[0], heads.stop - heads.start, plan.first[-1], channels)
        keys, values = (workspace.take(name, shape, q.dtype, q.device) for name in ("keys 0", "values 0"))
        spans.fill_both(0, plan.first[-1], heads, keys, values)
        means, total, lists = history.means(heads), nothing_seen(q[:, heads]), []
        # As many blocks at a time as the rest of the workspace has room to rank for.
        each = shape[0] * shape[1] * working_bytes(q, plan.num_tiles, BLOCK_QUERIES, backend)
        rows = max(1, workspace.limit_bytes // 4 // each) * BLOCK_QUERIES
        for start in range(0, q.shape[2], rows):
            some = (slice(None), heads, slice(start, start + rows))
            ranked = rank_means(
                q[some], *means, plan.log_sizes, norms[:, heads], near.lse[some], history.tiles_read, BLOCK_QUERIES, backend
            )
            lists.append(history.listed(heads, ranked.tiles))
            part = slice(start, start + rows)
            total.out[:, :, part], total.lse[:, :, part] = ranked.rest
        listed = lists[0] if len(lists) == 1 else torch.cat(lists, 2)
        read = attention_to_listed(q[:, heads], keys, values, listed, BLOCK_QUERIES, backend)
        for part_seen in (read, Attended(near.out[:, heads], near.lse[:, heads])):
            merge_attention(part_seen.out[None], part_seen.lse[None], total, backend)
        out[:, heads] = total.out
    return out


def _squares(keys: Tensor) -> Tensor:
    """Of every key [B, H, S, D]: float32 [B, H, S]."""
    return torch.stack([keys[:, head].float().square().sum(-1) for head in range(keys.shape[1])], 1)


def _joined(parts: Sequence[Rows8], row: tuple[slice, slice]) -> Rows8:
    """All spans' means of some heads."""
    return Rows8(*(torch.cat([part[row] for part in each], 2) for each in zip(*parts, strict=True)))
