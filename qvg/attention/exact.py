"""Attention over [sink | spans | tail | current block] that never holds the history in full.

Three ways to read, one result within what each states:

exact   a group of heads and a stretch of keys at a time is decoded into a reused workspace, rotated, and handed to the best
        attention kernel there is; results of several stretches are merged by their logarithmic mass. While one stretch is used,
        the next is decoded on a side stream. Float32 on a CPU, q's own 16 bits on a GPU.
fast    the same with an eight-bit workspace and eight-bit attention (`fast.py`).
direct  the codes themselves are read, for few queries or where no workspace is wanted (`direct.py`).

Softmax does not care in which order keys come, so the result equals one softmax over everything. Memory beside the cache is
bounded by `workspace_mb`, however long the history is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.attention import Attended, merge_attention
from ...kernels.attention.library import AttentionOp, choose_attention, eight_bit_package
from ...kernels.dispatch import triton_refusal
from ...kernels.launch import on_gpu, processors
from ..errors import ConfigError
from .choice import Reading
from .direct import attend_direct
from .fast import attend_fast
from .history import History
from .prefetch import prefetched, slots
from .workspace import Workspace

# Below this a CPU merges too often, above it tiles leave its cache: 151 frames of the demo world, one thread, took 16.1 ms of
# processor time per layer with 6 MiB, 12.6 with 12, 11.1 with 24, 11.4 with 48 (exact cache, 2026-11-20).
_CPU_TILE_BYTES = 24 << 20
_SMALLEST_TILE_TOKENS = 16
# Queries that one program of a flash attention kernel takes.
_BLOCK_QUERIES = 128
# What a GPU computes in the time it moves a byte, about the same on all of them (docs/kernels.md, "The cost model").
_FLOP_PER_BYTE = 200


class _Sizes:
    """What tiles take. `scores`: times that an op holds all logits."""

    def __init__(self, q: Tensor, scores: int, is_spread: bool):
        batch, _, queries, channels = q.shape
        self._batch = batch
        self._fixed = queries * (4 * 4 * channels + 64)  # a part of the result, the sum of parts, one product of them
        # torch decodes into float32 temporaries; rotating takes half a tile of them. Triton decodes into the tile.
        decoder = 0 if triton_refusal("spans", q.device) is None else 4 * 4 * channels
        self._per_token = 2 * q.element_size() * channels * slots(q.device) + decoder + scores * 4 * queries
        self._angles = 4 * 4 * channels if is_spread else 0

    def tokens(self, heads: int, limit: int) -> int:
        """Keys whose tiles and temporaries stay below `limit` bytes for so many heads."""
        rows = self._batch * heads
        return max(0, (limit - rows * self._fixed) // (rows * self._per_token + self._angles or 1))


@dataclass(frozen=True)
class Tiling:
    """How many heads and how many keys are decoded at a time."""

    heads: int
    tokens: int


def attend(q: Tensor, history: History, workspace: Workspace, reading: Reading, backend: str = "auto") -> Tensor:
    """Softmax attention of q [B, H, Sq, D] (already rotated) over everything in `history`. -> [B, H, Sq, D] in q's dtype.

    `reading` says how; what ran is noted in it. Raises ConfigError where the workspace does not hold one tile.
    """
    if reading.mode == "direct":
        return attend_direct(q, history, reading, backend)
    if reading.mode == "fast":
        op = eight_bit_package(q) if backend == "auto" else None
        if op is not None:
            return attend_exact(q, history, workspace, reading, backend, op)
        return attend_fast(q, history, workspace, reading, backend)
    return attend_exact(q, history, workspace, reading, backend)


def attend_exact(
    q: Tensor, history: History, workspace: Workspace, reading: Reading, backend: str, op: AttentionOp | None = None
) -> Tensor:
    """See the module docstring. `op` is used instead of the best one."""
    work = as_computed(q)
    forced, op = op, op or choose_attention(work, True, backend)
    tiling = plan_tiling(work, history.num_tokens, workspace.limit_bytes, history.tokens_per_frame, op, history.is_spread)
    tiles = list(history.tiles(tiling.tokens))
    biases = [history.bias(start, stop) for start, stop in tiles]
    groups = [slice(first, min(first + tiling.heads, q.shape[1])) for first in range(0, q.shape[1], tiling.heads)]
    if len(tiles) == 1 and forced is None:
        op = choose_attention(work, False, backend)
    # Not every library takes a bias per key: stretches with counts above 1 are read by one that does.
    counting = choose_attention(work, len(tiles) > 1, backend, biased=True) if any(bias is not None for bias in biases) else op
    other = f"; where keys count more than once, by {counting.name}" if counting.name != op.name else ""
    reading.note(op.name, f"{tiling.heads} heads x {tiling.tokens} keys at a time{other}")

    def make(index: int, slot: int) -> tuple[Tensor, Tensor]:
        return _tile(history, tiles[index % len(tiles)], groups[index // len(tiles)], work, workspace, slot)

    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    made = prefetched(make, len(groups) * len(tiles), q.device)
    for group in groups:
        if len(tiles) == 1:
            out[:, group] = (counting if biases[0] is not None else op).run(work[:, group], *next(made), biases[0])[0]
            continue
        total: Attended | None = None
        for bias in biases:
            part, lse = (op if bias is None else counting).run(work[:, group], *next(made), bias)
            assert lse is not None
            total = merge_attention(part[None], lse[None], total, backend)
        assert total is not None
        out[:, group] = total.out
    made.close()
    return out


def attend_seen(q: Tensor, history: History, workspace: Workspace, backend: str, reserved_bytes: int = 0) -> tuple[Attended, str]:
    """Attention over `history`, and how much mass it saw, for what is to be put together with other parts: float32; and by what.
    `reserved_bytes` of the workspace are somebody else's."""
    work = as_computed(q)
    op, limit = choose_attention(work, True, backend), workspace.limit_bytes - reserved_bytes
    tiling = plan_tiling(work, history.num_tokens, limit, history.tokens_per_frame, op, history.is_spread)
    tiles = list(history.tiles(tiling.tokens))
    groups = [slice(first, min(first + tiling.heads, q.shape[1])) for first in range(0, q.shape[1], tiling.heads)]

    def make(index: int, slot: int) -> tuple[Tensor, Tensor]:
        return _tile(history, tiles[index % len(tiles)], groups[index // len(tiles)], work, workspace, slot)

    made, totals = prefetched(make, len(groups) * len(tiles), q.device), list[Attended]()
    for group in groups:
        total: Attended | None = None
        for _ in tiles:
            part, lse = op.run(work[:, group], *next(made), None)
            assert lse is not None
            total = merge_attention(part[None], lse[None], total, backend)
        assert total is not None
        totals.append(total)
    made.close()
    return totals[0] if len(totals) == 1 else Attended(*(torch.cat(parts, 1) for parts in zip(*totals, strict=True))), op.name


def as_computed(q: Tensor) -> Tensor:
    """Queries in the type that attention computes in: their own 16 bits on a GPU, else float32."""
    work = q.to(q.dtype if on_gpu(q.device) and q.dtype in (torch.float16, torch.bfloat16) else torch.float32)
    # torch's kernels, called below the checks of the public function, silently read past channels that are not dense.
    return work if work.stride(-1) == 1 else work.contiguous()


def _tile(
    history: History, tokens: tuple[int, int], heads: slice, like: Tensor, workspace: Workspace, slot: int
) -> tuple[Tensor, Tensor]:
    """Keys and values of some tokens and heads, where they are kept or decoded into the workspace."""
    shape = (like.shape[0], heads.stop - heads.start, tokens[1] - tokens[0], like.shape[3])
    made: list[Tensor | None] = []
    kept = [history.as_it_is(which, *tokens, heads, like.dtype) for which in (0, 1)]
    for name, tile in zip(("keys", "values"), kept, strict=True):
        made.append(workspace.take(f"{name} {slot}", shape, like.dtype, like.device) if tile is None else None)
    if any(tile is not None for tile in made):
        history.fill_both(*tokens, heads, *made)
    keys, values = (tile if there is None else there for tile, there in zip(made, kept, strict=True))
    assert keys is not None and values is not None
    return keys, values


def tile_limit(device_type: str, workspace_bytes: int) -> int:
    """Bytes that are taken at most on such a device, as far as one tile fits in them."""
    return min(workspace_bytes, _CPU_TILE_BYTES) if device_type == "cpu" else workspace_bytes


def plan_tiling(
    q: Tensor,
    key_tokens: int,
    workspace_bytes: int,
    tokens_per_frame: int = 1,
    op: AttentionOp | None = None,
    is_spread: bool = True,
) -> Tiling:
    """The tile that serves best within the limit. q [B, H, Sq, D] as it is handed to `op`. `is_spread`: every token's angles are
    made, because something is read that needs them so. Raises ConfigError if not even 16 keys of one head fit."""
    size = _Sizes(q, 0 if op is None else op.score_copies, is_spread or triton_refusal("spans", q.device) is not None)
    if on_gpu(q.device):
        tiling = _fullest_machine(q, key_tokens, workspace_bytes, size)
    else:
        tiling = _largest_tile(q, key_tokens, tile_limit(q.device.type, workspace_bytes), workspace_bytes, size)
    if tiling.tokens < min(_SMALLEST_TILE_TOKENS, key_tokens):
        raise ConfigError(
            f"a workspace of {workspace_bytes >> 20} MiB does not hold one tile of {_SMALLEST_TILE_TOKENS} keys for "
            f"{q.shape[2]} queries of one head; raise workspace_mb"
        )
    tokens = tiling.tokens
    if tokens_per_frame < tokens < key_tokens:
        tokens -= tokens % tokens_per_frame
    return Tiling(tiling.heads, max(1, min(tokens, key_tokens)))


def _largest_tile(q: Tensor, key_tokens: int, limit: int, workspace_bytes: int, size: _Sizes) -> Tiling:
    """As many heads as leave room for a thousand keys."""
    group = q.shape[1]
    while True:
        tokens = size.tokens(group, limit)
        if tokens >= min(key_tokens, 1024) or group == 1:
            break
        group = -(-group // 2)
    if tokens < _SMALLEST_TILE_TOKENS:
        tokens = size.tokens(1, workspace_bytes)
    return Tiling(group, tokens)


def _fullest_machine(q: Tensor, key_tokens: int, limit: int, size: _Sizes) -> Tiling:
    """A few heads over all keys, or all heads over a stretch of them, whichever keeps the multiprocessors busier.

    Counted in waves of programs times keys. Several stretches cost a merge each: partial results are read and written.
    """
    batch, heads, queries, channels = q.shape
    sizes, at_once = [size.tokens(group, limit) for group in range(heads + 1)], processors(q.device)
    blocks = batch * -(-queries // _BLOCK_QUERIES)

    def cost(group: int) -> float:
        waves = heads // group * -(-blocks * group // at_once) + -(-blocks * (heads % group) // at_once)
        stretches = -(-key_tokens // max(1, sizes[group]))
        merge_bytes = 0 if stretches == 1 else stretches * batch * heads * queries * channels * 14
        return waves * key_tokens + merge_bytes * _FLOP_PER_BYTE / (4 * _BLOCK_QUERIES * channels * at_once)

    fitting = [group for group in range(1, heads + 1) if sizes[group] >= min(_SMALLEST_TILE_TOKENS, key_tokens)] or [1]
    best = min(fitting, key=lambda group: (cost(group), -group))
    return Tiling(best, sizes[best])
