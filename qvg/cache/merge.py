"""A token that looks like the row kept at its place is counted, not stored (TempCache of FAST-AR, arXiv 2602.01801, on rows that
may be encoded).

When a chunk leaves the recent frames, each of its tokens is compared with the row at its row and column of the grid (whatever the
time). Its key before RoPE must be like the row's in every head of every layer; then the row's count grows, and while its key and
value are kept in 16 bits they become those that `merge_key` asks for and the mean. An encoded row is frozen. All other tokens
begin rows of their own, which wait until enough of them are there for a span.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attention.plan import Pair
from ..codec.span import ExactSpan, Span
from ..config import QVGConfig
from ..errors import CacheError
from ..positions.frames import Origin
from ..positions.rope import GridRope
from .layer_cache import LayerCache
from .likeness import kept_keys, worst_cosine
from .log_counts import LogCounts
from .policy import Layout
from .rows import Rows, token_positions

# What float32 sums of a few hundred products may be off by: equal keys have this cosine at least.
_ROUNDING = 1e-6


class Merger:
    """The rows of a cache and what happens to them. One decision per token for all layers and heads."""

    def __init__(self, config: QVGConfig, rope: GridRope, span_tokens: int):
        self.config, self._rope, self.span_tokens = config, rope, span_tokens
        self.clear()

    def clear(self) -> None:
        """As after `__init__`."""
        self.rows = Rows(self._rope, moves=self.config.merge_key != "first")
        self._counts: LogCounts | None = None

    @property
    def spans(self) -> int:
        """Spans that the rows so far make."""
        return len(self.rows) // self.span_tokens

    def settle(self, layout: Layout, origins: Sequence[Origin]) -> Tensor:
        """The positions of everything in memory from now on, float32 [S, 3]: sink, rows, tail. `origins` of all frames."""
        size, sink = self._rope.tokens_per_frame, sum(layout.sink) * self._rope.tokens_per_frame
        self._counts = LogCounts(sink, self.rows.counts)
        tail = torch.arange(sink + layout.merged * size, len(origins) * size)
        return token_positions(self._rope, origins, torch.cat([torch.arange(sink), self.rows.tokens, tail]))

    def log_counts(self, start: int, stop: int, device: torch.device) -> Tensor | None:
        """What is added to the logits of the tokens and rows start:stop in memory; see `LogCounts`."""
        return None if self._counts is None else self._counts.of(start, stop, device)

    @torch.inference_mode()
    def absorb(self, layers: Sequence[LayerCache], layout: Layout, chunks: int, origins: Sequence[Origin]) -> None:
        """The oldest `chunks` of every layer's tail become rows. All layers have committed; `layout` as it was before
        the block that they did; `origins` of all frames, the video's first one on."""
        per_frame, first_frame = self._rope.tokens_per_frame, sum(layout.sink) + layout.merged
        for _ in range(chunks):
            frames = layers[0].state.tail[0].keys.num_tokens // per_frame
            for number in range(frames):
                origin, tokens = origins[first_frame + number], slice(number * per_frame, (number + 1) * per_frame)
                rows = self._matched(layers, tokens, self.rows.candidates(origin))
                for layer in layers:
                    self._store(layer, tokens, rows)
                self.rows.take(first_frame + number, origin, rows)
            first_frame += frames
            for layer in layers:
                del layer.state.tail[0]

    def _matched(self, layers: Sequence[LayerCache], tokens: slice, rows: Tensor) -> Tensor:
        """Candidates that look like the tokens of a frame; -1 for those that do not."""
        tried = (rows >= 0).nonzero()[:, 0]
        if not len(tried):
            return rows
        worst = torch.full((len(tried),), 1.0)
        for layer in layers:
            state, keys = layer.state, _exact(layer.state.tail[0].keys)[:, :, tokens]
            x = keys[:, :, tried.to(keys.device)]
            kept = kept_keys(state.spans, state.waiting, rows[tried], layer.codecs.keys, keys, self.span_tokens)
            # Summed up where the keys are; one answer a layer comes back.
            worst = torch.minimum(worst.to(keys.device), worst_cosine(kept, x))
        like = (worst >= self.config.merge - _ROUNDING).cpu()
        matched = torch.full_like(rows, -1)
        matched[tried[like]] = rows[tried[like]]
        return matched

    def _store(self, layer: LayerCache, tokens: slice, rows: Tensor) -> None:
        """One layer's keys and values of a frame, averaged into their rows or behind all others."""
        state, pair = layer.state, layer.state.tail[0]
        hit, begun = (rows >= 0).nonzero()[:, 0], (rows < 0).nonzero()[:, 0]
        numbers = (rows[hit] // self.span_tokens).clamp(max=len(state.spans))
        for number in numbers.unique().tolist():
            held = state.waiting if number == len(state.spans) else state.spans[number]
            assert held is not None
            if isinstance(held.keys, ExactSpan):
                some = hit[numbers == number]
                at, counts = rows[some] - number * self.span_tokens, self.rows.counts[rows[some]]
                for which, kept in enumerate(held):
                    x = _exact(pair[which])[:, :, tokens]
                    self._average(_exact(kept), at, x[:, :, some.to(x.device)], counts, which)
        if len(begun):
            fresh = [_exact(x)[:, :, tokens] for x in pair]
            new = [x[:, :, begun.to(x.device)] for x in fresh]
            waiting = (
                new
                if state.waiting is None
                else [torch.cat([_exact(old), x], 2) for old, x in zip(state.waiting, new, strict=True)]
            )
            state.waiting = Pair(ExactSpan(waiting[0]), ExactSpan(waiting[1]))

    def _average(self, kept: Tensor, at: Tensor, x: Tensor, counts: Tensor, which: int) -> None:
        """Tokens x [B, H, n, D] counted in the rows `at` of keys (which = 0) or values, in place; `counts` without them."""
        at, rule = at.to(kept.device), "mean" if which else self.config.merge_key
        if rule == "mean":
            old, share = kept[:, :, at].float(), (counts.to(torch.float32) + 1).to(kept.device)[:, None]
            kept[:, :, at] = (old + (x.float() - old) / share).to(kept.dtype)
        elif rule == "last":
            kept[:, :, at] = x


def _exact(span: Span) -> Tensor:
    if not isinstance(span, ExactSpan):
        raise CacheError("a span that is already encoded came up for merging again; this is a bug, please report it")
    return span.values
