"""Attention on the codes themselves: no workspace. What is taken beside the cache is partial results, angles of one stretch, and
for a codec without such a kernel one decoded tile of one head."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.attention import Attended, attention, merge_attention, nothing_seen
from ...kernels.direct import attend_codes
from ...kernels.direct_coefficients import attend_spans
from ...kernels.dispatch import shape_refusal, triton_refusal
from ...kernels.errors import BackendError
from ...kernels.projective import Projection
from ...kernels.rotary import angles_of_tokens
from ..positions.rope import Rotation
from .choice import Reading
from .history import History

# Keys whose angles are made at a time: 8 MiB at 128 channels.
_STRETCH_TOKENS = 16_384
# Keys of one head that are decoded at a time where codes cannot be read.
_TILE_TOKENS = 1024


def attend_direct(q: Tensor, history: History, reading: Reading, backend: str) -> Tensor:
    """See `exact.attend`."""
    refusal = "backend 'torch' was asked for" if backend == "torch" else triton_refusal("direct", q.device)
    refusal = refusal or shape_refusal(q.shape[3])
    reading.note("the pack's Triton kernel on codes" if refusal is None else f"torch, a small tile at a time ({refusal})")
    total, read = _attend_spans(q, history, backend)
    for start, stop in _stretches(history, read):
        seen = _attend_in_place(q, history, start, stop, total, backend)
        if seen is None:
            reason = _why_decoded(history, start, stop)
            if backend == "triton":
                raise BackendError("direct", backend, reason)
            reading.note(f"torch, a small tile at a time ({reason})")
            seen = nothing_seen(q) if total is None else total
            _attend_decoded(q, history, start, stop, seen)
        total = seen
    assert total is not None
    return total.out.to(q.dtype)


def _attend_spans(q: Tensor, history: History, backend: str) -> tuple[Attended | None, set[int]]:
    """All spans of transform coefficients, those of a codebook at once. -> their result, and the numbers of these stretches"""
    plan, total = history.plan, None
    if history.projected or plan.spans is None:
        return None, set()
    for first, last in plan.spans.runs:
        numbers = plan.of_spans[first:last]
        start, stop = plan.ends[numbers[0]] - plan.counts[numbers[0]], plan.ends[numbers[-1]]
        turns = history.turns(start, stop)
        if isinstance(turns, Rotation):
            turns = angles_of_tokens(turns)
        assert not isinstance(turns, Projection)
        total = attend_spans(q, plan.spans, (first, last), start, turns, backend, total, history.bias(start, stop))
    return total, set(plan.of_spans)


def _attend_in_place(q: Tensor, history: History, start: int, stop: int, total: Attended | None, backend: str) -> Attended | None:
    """Tokens start:stop of one stretch folded into `total`; None where no kernel reads them as they are kept."""
    kept_keys, kept_values = (history.kept(which, start, stop) for which in (0, 1))
    if kept_keys is None or kept_values is None:
        return None
    return attend_codes(q, kept_keys, kept_values, history.rotation(start, stop), backend, total, history.bias(start, stop))


def _stretches(history: History, read: set[int]) -> list[tuple[int, int]]:
    """Tokens of one stretch each, not too many, of those that are not `read` yet."""
    cuts, base = [], 0
    for number, count in enumerate(history.counts):
        if number not in read:
            cuts += [(base + at, base + min(at + _STRETCH_TOKENS, count)) for at in range(0, count, _STRETCH_TOKENS)]
        base += count
    return cuts


def _why_decoded(history: History, start: int, stop: int) -> str:
    span = next(history.overlaps(0, start, stop))[0]
    if history.projected:
        return "no kernel projects what it reads"
    return f"codec {getattr(span, 'codec', '')!r} has no kernel that reads its codes"


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
            part = attention(q[:, one].float(), tiles[0], tiles[1], "torch", history.bias(first, last))
            merge_attention(part.out[None], part.lse[None], into, "torch")
        total.out[:, one], total.lse[:, one] = into.out, into.lse
