"""Attention over [sink | spans | tail | current block] that never holds the history in full.

A group of heads and a stretch of keys at a time is decoded into a reused workspace, rotated, and folded into a running softmax
(online softmax, arXiv 1805.02867, the recurrence of FlashAttention). Softmax does not care in which order keys come, so the
result equals one softmax over everything. Arithmetic is float32 whatever q is: logits in 16 bits lose more than SDPA does. Memory
beside the cache is bounded by `workspace_mb`, however long the history is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import ConfigError
from .rope import Rotation, rotate
from .span import Span
from .workspace import Workspace

# decode(span, tokens, heads, out) -> out
Decode = Callable[[Span, slice, slice, Tensor], Tensor]

# A CPU is fastest when a tile stays in its second-level cache; more memory than this makes it slower, not faster.
_CPU_TILE_BYTES = 12 << 20
_SMALLEST_TILE_TOKENS = 16
_SMALL_STRETCH_TOKENS = 256


class Pair(NamedTuple):
    """Keys and values of the same tokens."""

    keys: Span
    values: Span


@dataclass(frozen=True)
class Tiling:
    """How many heads and how many keys are decoded at a time."""

    heads: int
    tokens: int


def plan_tiling(q: Tensor, key_tokens: int, workspace_bytes: int, tokens_per_frame: int = 1) -> Tiling:
    """The largest tile that fits. q [B, H, Sq, D]. Raises ConfigError if not even 16 keys of one head fit."""
    batch, heads, queries, channels = q.shape
    limit = min(workspace_bytes, _CPU_TILE_BYTES) if q.device.type == "cpu" else workspace_bytes
    group = heads
    while True:
        tokens = _tile_tokens(batch * group, queries, channels, limit)
        if tokens >= min(key_tokens, 1024) or group == 1:
            break
        group = -(-group // 2)
    if tokens < _SMALLEST_TILE_TOKENS:
        tokens = _tile_tokens(batch, queries, channels, workspace_bytes)
    if tokens < min(_SMALLEST_TILE_TOKENS, key_tokens):
        raise ConfigError(
            f"a workspace of {workspace_bytes >> 20} MiB does not hold one tile of {_SMALLEST_TILE_TOKENS} keys for "
            f"{queries} queries of one head; raise workspace_mb"
        )
    if tokens > tokens_per_frame:
        tokens -= tokens % tokens_per_frame
    return Tiling(group, max(1, min(tokens, key_tokens)))


def _tile_tokens(heads: int, queries: int, channels: int, limit: int) -> int:
    """Keys whose tile, scores and temporaries (all float32) stay below `limit` bytes for so many (batch x) heads."""
    fixed = heads * queries * (4 * 3 * channels + 32)  # scaled queries, weighted values and one product of them
    per_token = heads * (4 * 6 * channels + 4 * queries) + 4 * 4 * channels  # tile, rotated tile, decoder; scores; rotation
    return max(0, (limit - fixed) // per_token)


def attend(
    q: Tensor,
    current: tuple[Tensor, Tensor],
    history: Sequence[Pair],
    decode: Decode,
    rotation: Callable[[int, int], Rotation] | None,
    workspace: Workspace,
    tokens_per_frame: int = 1,
) -> Tensor:
    """Softmax attention of q over history and the current block.

    q [B, H, Sq, D] and current keys, values [B, H, Sc, D] are already rotated; `rotation(start, stop)` gives the angles of
    history tokens start:stop, None means that keys are used as they are. -> [B, H, Sq, D] in q's dtype.
    """
    total = sum(pair.keys.num_tokens for pair in history) + current[0].shape[2]
    tiling = plan_tiling(q, total, workspace.limit_bytes, tokens_per_frame)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for first in range(0, q.shape[1], tiling.heads):
        heads = slice(first, min(first + tiling.heads, q.shape[1]))
        softmax = _RunningSoftmax(q[:, heads], workspace)
        for start, stop in _tiles(history, tiling.tokens):
            turn = None if rotation is None else rotation(start, stop)
            softmax.add_scores(_tile(history, 0, start, stop, heads, decode, turn, q, workspace))
            softmax.add_values(_tile(history, 1, start, stop, heads, decode, None, q, workspace))
        for keys, values in zip(*(part[:, heads].split(tiling.tokens, 2) for part in current), strict=True):
            softmax.add_scores(keys.float())
            softmax.add_values(values.float())
        softmax.result(out[:, heads])
    return out


def _tiles(history: Sequence[Pair], most: int) -> Iterator[tuple[int, int]]:
    """Cut the history's tokens into tiles of at most `most`. A stretch of some size gets tiles of its own, decoded straight into
    contiguous memory; small neighbours (sink and tail) share one."""
    start = stop = 0
    for pair in history:
        end = stop + pair.keys.num_tokens
        if stop > start and (end - start > most or pair.keys.num_tokens > _SMALL_STRETCH_TOKENS):
            yield start, stop
            start = stop
        while end - start > most:
            yield start, start + most
            start += most
        stop = end
        if stop - start > _SMALL_STRETCH_TOKENS:
            yield start, stop
            start = stop
    if stop > start:
        yield start, stop


def _tile(
    history: Sequence[Pair],
    which: int,
    start: int,
    stop: int,
    heads: slice,
    decode: Decode,
    rotation: Rotation | None,
    q: Tensor,
    workspace: Workspace,
) -> Tensor:
    """Keys (which = 0) or values (1) of history tokens start:stop, decoded and rotated in the workspace."""
    shape = (q.shape[0], heads.stop - heads.start, stop - start, q.shape[3])
    tile = workspace.take("decoded", shape, torch.float32, q.device)
    for span, tokens, at in _overlaps(history, which, start, stop):
        decode(span, tokens, heads, tile[:, :, at : at + tokens.stop - tokens.start])
    if rotation is None:
        return tile
    return rotate(tile, rotation, workspace.take("rotated", shape, torch.float32, q.device))


def _overlaps(history: Sequence[Pair], which: int, start: int, stop: int) -> Iterator[tuple[Span, slice, int]]:
    """Spans that hold tokens start:stop, the span's own tokens to take, and where they go in the tile."""
    base = 0
    for pair in history:
        count = pair.keys.num_tokens
        low, high = max(start, base), min(stop, base + count)
        if low < high:
            yield pair[which], slice(low - base, high - base), low - start
        base += count


class _RunningSoftmax:
    """Attention of fixed queries over keys that come in pieces: the maximum logit so far, and the mass and the weighted sum of
    values relative to it."""

    def __init__(self, q: Tensor, workspace: Workspace):
        self.q = q.float() * q.shape[-1] ** -0.5
        self.workspace = workspace
        rows = q.shape[:3]
        self.maximum = torch.full((*rows, 1), -torch.inf, dtype=torch.float32, device=q.device)
        self.mass = torch.zeros((*rows, 1), dtype=torch.float32, device=q.device)
        self.weighted = torch.zeros((*rows, q.shape[3]), dtype=torch.float32, device=q.device)
        self.weights: Tensor

    def add_scores(self, keys: Tensor) -> None:
        """Weights of the queries on keys [B, h, T, D]; what came before is rescaled to the new maximum."""
        shape = (*self.q.shape[:3], keys.shape[2])
        scores = self.workspace.take("scores", shape, torch.float32, self.q.device)
        scores = torch.matmul(self.q, keys.transpose(2, 3), out=scores)
        maximum = torch.maximum(self.maximum, scores.amax(-1, keepdim=True))
        rescale = torch.exp(self.maximum - maximum)
        self.maximum = maximum
        self.weights = scores.sub_(maximum).exp_()
        self.mass.mul_(rescale).add_(self.weights.sum(-1, keepdim=True))
        self.weighted.mul_(rescale)

    def add_values(self, values: Tensor) -> None:
        """Fold in the values of the keys that `add_scores` has just seen."""
        self.weighted += torch.matmul(self.weights, values)

    def result(self, out: Tensor) -> None:
        """Normalised output, written into `out`."""
        out.copy_(self.weighted.div_(self.mass))
