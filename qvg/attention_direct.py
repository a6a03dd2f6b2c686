"""Attention on the codes themselves: no workspace. What is taken beside the cache is partial results, angles of one stretch, and
for a codec without such a kernel one decoded tile of one head."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.attention import Attended, attention, merge_attention, nothing_seen
from ..kernels.direct import attend_codes
from ..kernels.direct_coefficients import attend_coefficients
from ..kernels.dispatch import shape_refusal, triton_refusal
from ..kernels.errors import BackendError
from .history import History, coefficients, stored
from .read import Reading
from .rope import Rotation
from .span import Span

# Keys whose angles are made at a time: 8 MiB at 128 channels.
_STRETCH_TOKENS = 16_384
# Keys of one head that are decoded at a time where codes cannot be read.
_TILE_TOKENS = 1024


def attend_direct(q: Tensor, history: History, reading: Reading, backend: str) -> Tensor:
    """See `attention.attend`."""
    refusal = "backend 'torch' was asked for" if backend == "torch" else triton_refusal("direct", q.device)
    refusal = refusal or shape_refusal(q.shape[3])
    reading.note("the pack's Triton kernel on codes" if refusal is None else f"torch, a small tile at a time ({refusal})")
    total = nothing_seen(q)
    for start, stop in _stretches(history):
        turn = history.turn(start, stop)
        (keys, tokens, _), (values, _, _) = (next(history.overlaps(which, start, stop)) for which in (0, 1))
        if not _attend_in_place(q, (keys, values), tokens, turn, total, backend):
            reason = f"codec {getattr(keys, 'codec', '')!r} has no kernel that reads its codes"
            if backend == "triton":
                raise BackendError("direct", backend, reason)
            reading.note(f"torch, a small tile at a time ({reason})")
            _attend_decoded(q, history, start, stop, total)
    return total.out.to(q.dtype)


def _attend_in_place(
    q: Tensor, pair: tuple[Span | Tensor, Span | Tensor], tokens: slice, turn: Rotation | None, total: Attended, backend: str
) -> bool:
    """Some tokens of one stretch folded into `total`; False of a codec whose codes no kernel reads."""
    keys, values = (coefficients(part, tokens) for part in pair)
    if keys is not None and values is not None:
        attend_coefficients(q, keys, values, turn, backend, total)
        return True
    kept_keys, kept_values = (stored(part, tokens) for part in pair)
    if kept_keys is not None and kept_values is not None:
        attend_codes(q, kept_keys, kept_values, turn, backend, total)
        return True
    return False


def _stretches(history: History) -> list[tuple[int, int]]:
    """Tokens of one span each, not too many."""
    cuts, base = [], 0
    for count in (*(pair.keys.num_tokens for pair in history.pairs), history.current[0].shape[2]):
        cuts += [(base + at, base + min(at + _STRETCH_TOKENS, count)) for at in range(0, count, _STRETCH_TOKENS)]
        base += count
    return cuts


def _attend_decoded(q: Tensor, history: History, start: int, stop: int, total: Attended) -> None:
    """Tokens start:stop of a codec that only decodes, a tile of one head at a time, folded into `total`."""
    for head in range(q.shape[1]):
        one = slice(head, head + 1)
        into = Attended(total.out[:, one].contiguous(), total.lse[:, one].contiguous())
        for first in range(start, stop, _TILE_TOKENS):
            last = min(first + _TILE_TOKENS, stop)
            tiles = torch.empty(2, q.shape[0], 1, last - first, q.shape[3], device=q.device)
            for which in (0, 1):
                history.fill(which, first, last, one, tiles[which])
            part = attention(q[:, one].float(), tiles[0], tiles[1], "torch")
            merge_attention(part.out[None], part.lse[None], into, "torch")
        total.out[:, one], total.lse[:, one] = into.out, into.lse
