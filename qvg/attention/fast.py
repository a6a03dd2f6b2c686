"""Attention in eight bits: half the workspace of 16 bits, and matrix units at twice their speed.

Where SageAttention is installed, it gets decoded keys and values; otherwise codes become int8 keys and E4M3 (or float16) values
without a 16-bit stop on the way, and our own kernel reads those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...kernels.attention import Attended, merge_attention
from ...kernels.attention8 import attention8
from ...kernels.code_spans import transcode_code_spans
from ...kernels.direct.reference import TILE_TOKENS
from ...kernels.dispatch import triton_refusal
from ...kernels.launch import has_float8, on_gpu
from ...kernels.projective import Projection
from ...kernels.spans.reference import turns_of_values
from ...kernels.transcode import (
    Keys8,
    Values8,
    projected_bounds,
    transcode_keys,
    transcode_spans,
    transcode_stretches,
    transcode_values,
    value_bounds,
)
from ..errors import ConfigError
from ..positions.rope import Rotation
from .choice import Reading
from .history import History
from .prefetch import prefetched, slots
from .workspace import Workspace

_SMALLEST_TILE_TOKENS = 16
# Tokens of all heads that are decoded at a time where codes cannot be transcoded: what an eighth of the workspace holds.
_LEAST_DECODED, _MOST_DECODED = 256, 4096
_E4M3_MAX = 448.0


def attend_fast(q: Tensor, history: History, workspace: Workspace, reading: Reading, backend: str) -> Tensor:
    """See `exact.attend`."""
    refusal = "backend 'torch' was asked for" if backend == "torch" else triton_refusal("attention8", q.device)
    eight = refusal is None and has_float8(q.device)
    decoded = _decoded_tokens(history, workspace.limit_bytes)
    most = _tile_tokens(q, history.num_tokens, workspace.limit_bytes, eight, decoded)
    tiles = list(history.tiles(most))
    kernel = "the pack's Triton kernel in 8 bits" if refusal is None else f"torch's emulation of 8 bits ({refusal})"
    reading.note(kernel, f"{'E4M3' if eight else 'float16'} values, {most} keys at a time")
    # Any vector will do as long as all keys get the same one; the nearest keys' mean is at hand.
    common = history.current[0].float().mean(2)
    scales = _value_scales(history, decoded) if eight else None

    def make(index: int, slot: int) -> tuple[Keys8, Values8]:
        return _transcode(history, tiles[index], common, scales, workspace, slot, backend, decoded)

    total: Attended | None = None
    for (start, stop), (keys, values) in zip(tiles, prefetched(make, len(tiles), q.device), strict=True):
        # What is common moves all tiles' logits alike, and so no weight.
        part = attention8(q, keys, values, None, backend, history.bias(start, stop))
        total = merge_attention(part.out[None], part.lse[None], total, backend)
    assert total is not None
    return total.out.to(q.dtype)


def _decoded_tokens(history: History, limit: int) -> int:
    """Tokens that are decoded at a time where codes cannot be transcoded."""
    batch, heads, _, channels = history.current[0].shape
    if not history.plan.others:
        return _LEAST_DECODED
    return max(_LEAST_DECODED, min(_MOST_DECODED, limit // 8 // (batch * heads * 6 * 4 * channels)))


def _tile_tokens(q: Tensor, key_tokens: int, limit: int, eight: bool, decoded: int) -> int:
    """Keys of all heads that fit the workspace. Raises ConfigError if not even 16 do."""
    batch, heads, queries, channels = q.shape
    rows = batch * heads
    fixed = rows * queries * (3 * 4 * channels + 64) + rows * decoded * 6 * 4 * channels
    per_token = rows * (channels * (2 if eight else 3) + 4) * slots(q.device) + 4 * 4 * channels
    if not on_gpu(q.device):
        fixed += batch * TILE_TOKENS * 4 * (4 * channels + 4 * queries)  # torch's tiles of one head, and their logits
    tokens = (limit - fixed) // per_token
    if tokens < min(_SMALLEST_TILE_TOKENS, key_tokens):
        raise ConfigError(
            f"a workspace of {limit >> 20} MiB does not hold one tile of {_SMALLEST_TILE_TOKENS} keys for {queries} queries of "
            f"{heads} heads in 8 bits; raise workspace_mb, or use read 'exact', which takes one head at a time"
        )
    return min(tokens, key_tokens)


def _transcode(
    history: History,
    tile: tuple[int, int],
    common: Tensor,
    scales: Tensor | None,
    workspace: Workspace,
    slot: int,
    backend: str,
    decoded: int,
) -> tuple[Keys8, Values8]:
    """One tile of keys and values in eight bits, in the workspace."""
    start, stop = tile
    plan, count = history.plan, stop - start
    batch, heads, channels, device = *common.shape, common.device
    shape = (batch, heads, count, channels) if scales is None else (batch, heads, channels, count)
    keys = Keys8(
        workspace.take(f"keys8 {slot}", (batch, heads, count, channels), torch.int8, device),
        workspace.take(f"key scales {slot}", (batch, heads, count), torch.float32, device),
    )
    kind = torch.float16 if scales is None else torch.uint8
    values = Values8(workspace.take(f"values8 {slot}", shape, kind, device), scales)
    turns, others = history.turns(start, stop), plan.others
    if isinstance(turns, Rotation):
        spans, codes, exact, others, turns = (0, 0), (0, 0), (0, 0), list(range(len(plan.pairs))), None
    else:
        spans, codes, exact = (plan.between(some, start, stop) for some in (plan.of_spans, plan.of_codes, plan.of_exact))
    if plan.spans is not None and spans[0] < spans[1]:
        transcode_spans(plan.spans, spans, start, common, turns, keys, values, backend)
    if plan.codes is not None and codes[0] < codes[1]:
        transcode_code_spans(plan.codes, codes, start, common, turns, keys, values, backend)
    current = None if stop <= plan.num_tokens else (*history.current, plan.num_tokens)
    if exact[0] < exact[1] or current is not None:
        transcode_stretches(plan.exact, exact, start, common, turns, keys, values, backend, current)
    for low, high in _pieces(history, others, start, stop, decoded):
        _transcode_piece(history, low, high, common, keys.tokens(low - start, high - start), values, start, backend)
    return keys, values


def _transcode_piece(
    history: History, low: int, high: int, common: Tensor, keys: Keys8, values: Values8, start: int, backend: str
) -> None:
    """Tokens low:high of one stretch that no table holds, into keys of theirs and a tile's values."""
    rotation, kept = history.rotation(low, high), history.kept(0, low, high)
    if kept is None:
        kept, rotation = _decoded(history, 0, low, high), None
    transcode_keys(kept, common, rotation, keys, backend)
    kept = history.kept(1, low, high)
    kept = _decoded(history, 1, low, high) if kept is None else kept
    transcode_values(kept, values.tokens(low - start, high - start), backend)


def _value_scales(history: History, decoded: int) -> Tensor:
    """One scale per channel that holds all values: float32 [B, H, D]."""
    plan, own = history.plan, value_bounds(history.current[1])
    bounds = [own.clamp(min=1e-6)]
    turns = history.turns(0, history.num_tokens)
    projection = turns_of_values(turns) if isinstance(turns, Projection) else None
    if plan.others and plan.other_bounds is None:
        plan.other_bounds = _bounds_of_others(history, decoded)
    for one in (plan.value_bounds, plan.other_bounds):
        if one is not None:
            bounds.append(one if projection is None else projected_bounds(one, projection))
    return torch.stack(bounds).amax(0) / _E4M3_MAX


def _bounds_of_others(history: History, decoded: int) -> Tensor:
    """Of all values that are decoded one by one, before anything turns them: once for a plan, not at every call."""
    bounds, like, heads = [], history.current[1], slice(0, history.current[1].shape[1])
    for low, high in _pieces(history, history.plan.others, 0, history.committed_tokens, decoded):
        span, tokens, _ = next(history.overlaps(1, low, high))
        assert not isinstance(span, Tensor)
        tile = torch.empty(*like.shape[:2], high - low, like.shape[3], device=like.device)
        history.decode(span, tokens, heads, tile, None)
        bounds.append(value_bounds(tile))
    return torch.stack(bounds).amax(0)


def _pieces(history: History, others: Sequence[int], start: int, stop: int, decoded: int) -> Iterator[tuple[int, int]]:
    """Tokens of one of these stretches each; short ones of a codec that has to be decoded first."""
    plan = history.plan
    first, last = plan.between(others, start, stop)
    for number in others[first:last]:
        low, high = max(start, plan.ends[number] - plan.counts[number]), min(stop, plan.ends[number])
        step = high - low if history.kept(0, low, high) is not None else decoded
        yield from ((at, min(at + step, high)) for at in range(low, high, step))


def _decoded(history: History, which: int, low: int, high: int) -> Tensor:
    """A short stretch in float32, encoded by position: [B, H, high - low, D]."""
    like = history.current[which]
    tile = torch.empty(*like.shape[:2], high - low, like.shape[3], device=like.device)
    history.fill(which, low, high, slice(0, like.shape[1]), tile)
    return tile
