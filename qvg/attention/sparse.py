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

    near    sink and recent frames; `whole`: the spans; `edge`: the tokens of the sink, behind which the spans stand
    first   where each span begins among the tokens of all spans; the last number is how many there are
    starts  where each tile begins in the joined orders of all spans, `sizes`, how many tokens it has, and `bases`, where its span
            begins: each [N]
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
        self.whole = DecodePlan(spans)
        self.is_even = all(count % TILE_TOKENS == 0 for count in counts)
        # Of every tile, where its span begins.
        self.bases = torch.cat([torch.full((one.num_tiles,), first) for first, one in zip(self.first, tiles, strict=False)]).to(
            device
        )
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

    def listed(self, row: tuple[int, int], tiles: Tensor) -> Tensor:
        """Which of all spans' tokens are in some tiles of one head: int64 [n, k] -> int32 [n, 16 k], -1 where a tile has no
        more."""
        plan, (batch, head) = self.plan, row
        inside = torch.arange(TILE_TOKENS, device=tiles.device)
        at = (plan.starts[tiles][..., None] + inside).clamp(max=plan.first[-1] - 1)
        tokens = torch.cat([one.order[batch, head] for one in plan.tiles])[at].long() + plan.bases[tiles][..., None]
        return torch.where(inside < plan.sizes[tiles][..., None], tokens, -1).flatten(-2).int()

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
    if on_gpu(q.device) and q.shape[2] > BLOCK_QUERIES and _decoded_bytes(history, work) <= workspace.limit_bytes // 2:
        return _attend_many(work, history, near, workspace, backend).to(q.dtype)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for batch, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        row = (slice(batch, batch + 1), slice(head, head + 1))
        means = [_means([one.keys for one in plan.tiles], row), _means([one.values for one in plan.tiles], row)]
        for first in range(0, q.shape[2], BLOCK_QUERIES):
            some = (*row, slice(first, first + BLOCK_QUERIES))
            total = Attended(near.out[some].contiguous(), near.lse[some].contiguous())
            (tiles,), rest = _rank(work[some], means, total.lse, plan.sizes, history.tiles_read)
            reserved = sum(x.nbytes for x in means)
            for part in (rest, attend_seen(work[some], history.chosen((batch, head), tiles), workspace, backend, reserved)[0]):
                merge_attention(part.out[None], part.lse[None], total, backend)
            out[some] = total.out
    return out


def _decoded_bytes(history: SparseHistory, q: Tensor) -> int:
    """Of the keys and values of one head's spans."""
    return 2 * q.shape[0] * history.plan.first[-1] * q.shape[3] * q.element_size()


def _attend_many(q: Tensor, history: SparseHistory, near: Attended, workspace: Workspace, backend: str) -> Tensor:
    """The same for so many blocks of queries that together they read everything: spans are decoded once, some heads at a time,
    and a kernel reads of them what each block has chosen."""
    plan, channels, spans = history.plan, q.shape[3], history.all_spans
    group = max(1, min(q.shape[1], workspace.limit_bytes // 2 // _decoded_bytes(history, q)))
    # Logits, their exponentials and what is sorted, of as many blocks of one head as the rest has room for.
    rows = max(1, workspace.limit_bytes // 4 // (3 * 4 * plan.num_tiles * BLOCK_QUERIES)) * BLOCK_QUERIES
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for first in range(0, q.shape[1], group):
        heads = slice(first, min(first + group, q.shape[1]))
        shape = (q.shape[0], heads.stop - heads.start, plan.first[-1], channels)
        keys, values = (workspace.take(name, shape, q.dtype, q.device) for name in ("keys 0", "values 0"))
        spans.fill_both(0, plan.first[-1], heads, keys, values)
        total, lists = nothing_seen(q[:, heads]), []
        for batch, head in itertools.product(range(shape[0]), range(heads.start, heads.stop)):
            row = (slice(batch, batch + 1), slice(head, head + 1))
            means = [_means([one.keys for one in plan.tiles], row), _means([one.values for one in plan.tiles], row)]
            parts = []
            for start in range(0, q.shape[2], rows):
                some = slice(start, start + rows)
                tiles, rest = _rank(q[(*row, some)], means, near.lse[(*row, some)], plan.sizes, history.tiles_read)
                parts.append(history.listed((batch, head), tiles))
                total.out[batch, head - first, some], total.lse[batch, head - first, some] = rest.out[0, 0], rest.lse[0, 0]
            lists.append(torch.cat(parts))
        listed = torch.stack(lists).unflatten(0, shape[:2])
        read = attention_to_listed(q[:, heads], keys, values, listed, BLOCK_QUERIES, backend)
        for part in (read, Attended(near.out[:, heads], near.lse[:, heads])):
            merge_attention(part.out[None], part.lse[None], total, backend)
        out[:, heads] = total.out
    return out


def _rank(q: Tensor, means: Sequence[Tensor], near: Tensor, sizes: Tensor, most: int) -> tuple[Tensor, Attended]:
    """For every block of queries q [1, 1, n, D] the tiles to read, in their order: int64 [blocks, most]; and attention to the
    means of the others."""
    keys, values = means
    logits = torch.matmul(q[0, 0].float() * q.shape[-1] ** -0.5, keys.T).add_(sizes.log())
    mass = torch.logaddexp(near[0, 0], logits.logsumexp(-1))
    missing = -q.shape[2] % BLOCK_QUERIES
    shares = torch.nn.functional.pad(logits - mass[:, None], (0, 0, 0, missing), value=-torch.inf)
    tiles = shares.unflatten(0, (-1, BLOCK_QUERIES)).amax(1).topk(most).indices.sort().values
    logits.scatter_(1, tiles.repeat_interleave(BLOCK_QUERIES, 0)[: q.shape[2]], -torch.inf)
    return tiles, _seen(logits, values)


def _seen(logits: Tensor, values: Tensor) -> Attended:
    """Attention of logits [n, N] to values [N, D]: [1, 1, n, D]."""
    lse = logits.logsumexp(-1)
    weights = logits.sub_(torch.where(lse == -torch.inf, 0, lse)[:, None]).exp_()
    return Attended(torch.matmul(weights, values)[None, None], lse[None, None])


def _means(parts: Sequence[object], row: tuple[slice, slice]) -> Tensor:
    """Of all spans' tiles of one head: float32 [N, D]."""
    values = torch.cat([part.values[row] for part in parts], 2)[0, 0]  # type: ignore[attr-defined]
    scales = torch.cat([part.scales[row] for part in parts], 2)[0, 0]  # type: ignore[attr-defined]
    return values.float().mul_(scales.float()[:, None])
