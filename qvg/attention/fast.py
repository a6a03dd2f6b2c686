"""Attention in eight bits: half the workspace of 16 bits, and matrix units at twice their speed.

Where SageAttention is installed, it gets decoded keys and values; otherwise codes become int8 keys and E4M3 (or float16) values
without a 16-bit stop on the way, and our own kernel reads those.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.attention import merge_attention, nothing_seen
from ...kernels.attention8 import attention8
from ...kernels.direct.reference import TILE_TOKENS
from ...kernels.dispatch import triton_refusal
from ...kernels.launch import has_float8, on_gpu
from ...kernels.transcode import Keys8, Values8, transcode_keys, transcode_values, value_bounds
from ..errors import ConfigError
from .choice import Reading
from .history import History
from .prefetch import prefetched, slots
from .workspace import Workspace

_SMALLEST_TILE_TOKENS = 16
# Keys of all heads of a group decoded at a time where a codec's codes cannot be transcoded.
_DECODE_TOKENS = 256
_E4M3_MAX = 448.0


def attend_fast(q: Tensor, history: History, workspace: Workspace, reading: Reading, backend: str) -> Tensor:
    """See `exact.attend`."""
    refusal = "backend 'torch' was asked for" if backend == "torch" else triton_refusal("attention8", q.device)
    eight = refusal is None and has_float8(q.device)
    most = _tile_tokens(q, history.num_tokens, workspace.limit_bytes, eight)
    tiles = list(history.tiles(most))
    kernel = "the pack's Triton kernel in 8 bits" if refusal is None else f"torch's emulation of 8 bits ({refusal})"
    reading.note(kernel, f"{'E4M3' if eight else 'float16'} values, {most} keys at a time")
    # Any vector will do as long as all keys get the same one; the nearest keys' mean is at hand.
    common = history.current[0].float().mean(2)

    def make(index: int, slot: int) -> tuple[Keys8, Values8]:
        return _transcode(q, history, tiles[index], common, eight, workspace, slot, backend)

    total = nothing_seen(q)
    for keys, values in prefetched(make, len(tiles), q.device):
        part = attention8(q, keys, values, common, backend)
        merge_attention(part.out[None], part.lse[None], total, backend)
    return total.out.to(q.dtype)


def _tile_tokens(q: Tensor, key_tokens: int, limit: int, eight: bool) -> int:
    """Keys of all heads that fit the workspace. Raises ConfigError if not even 16 do."""
    batch, heads, queries, channels = q.shape
    rows = batch * heads
    fixed = rows * queries * (3 * 4 * channels + 64) + rows * _DECODE_TOKENS * 6 * 4 * channels
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
    q: Tensor, history: History, tile: tuple[int, int], common: Tensor, eight: bool, workspace: Workspace, slot: int, backend: str
) -> tuple[Keys8, Values8]:
    """One tile of keys and values in eight bits, in the workspace."""
    start, stop = tile
    batch, heads, _, channels = q.shape
    count = stop - start
    shape = (batch, heads, channels, count) if eight else (batch, heads, count, channels)
    keys = Keys8(
        workspace.take(f"keys8 {slot}", (batch, heads, count, channels), torch.int8, q.device),
        workspace.take(f"key scales {slot}", (batch, heads, count), torch.float32, q.device),
    )
    buffer = workspace.take(f"values8 {slot}", shape, torch.uint8 if eight else torch.float16, q.device)
    values = Values8(buffer, _value_scales(q, history, start, stop) if eight else None)
    for low, high in _pieces(history, start, stop):
        at = slice(low - start, high - start)
        rotation, kept = history.rotation(low, high), history.kept(0, low, high)
        if kept is None:
            kept, rotation = _decoded(q, history, 0, low, high), None
        transcode_keys(kept, common, rotation, keys.tokens(at.start, at.stop), backend)
        kept = history.kept(1, low, high)
        transcode_values(_decoded(q, history, 1, low, high) if kept is None else kept, values.tokens(at.start, at.stop), backend)
    return keys, values


def _value_scales(q: Tensor, history: History, start: int, stop: int) -> Tensor:
    """One scale per channel that holds all values of a tile: float32 [B, H, D]."""
    bounds = torch.full((*q.shape[:2], q.shape[3]), 1e-6, device=q.device)
    for low, high in _pieces(history, start, stop):
        kept = history.kept(1, low, high)
        bounds = torch.maximum(bounds, value_bounds(_decoded(q, history, 1, low, high) if kept is None else kept))
    return bounds / _E4M3_MAX


def _pieces(history: History, start: int, stop: int) -> list[tuple[int, int]]:
    """Tokens of one stretch each; short ones of a codec that has to be decoded first."""
    pieces = []
    for _, tokens, at in history.overlaps(0, start, stop):
        count = tokens.stop - tokens.start
        step = count if history.kept(0, start + at, start + at + count) is not None else _DECODE_TOKENS
        pieces += [(start + at + first, start + at + min(first + step, count)) for first in range(0, count, step)]
    return pieces


def _decoded(q: Tensor, history: History, which: int, low: int, high: int) -> Tensor:
    """A short stretch in float32, keys rotated: [B, H, high - low, D]."""
    tile = torch.empty(q.shape[0], q.shape[1], high - low, q.shape[3], device=q.device)
    history.fill(which, low, high, slice(0, q.shape[1]), tile)
    return tile
