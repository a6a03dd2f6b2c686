"""Counts, in a real run, what `peak` predicts: every tensor that a cache holds or hands to a codec, when there is most."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from torch import Tensor

from ..cache import KVCache
from ..codec.span import Span


class CacheWatch:
    """Watches a cache from its making on. `most`: bytes at the worst moment so far; set it back to watch one commit."""

    def __init__(self, cache: KVCache):
        self._cache = cache
        self._made: WeakSet[Any] = WeakSet()  # spans, from the codec's hands on until nobody holds them
        self.most = 0
        cache.observe(self._encoded)

    def _encoded(self, span: Span, x: Tensor) -> None:
        self._made.add(span)
        self.most = max(self.most, self.now(x))

    def now(self, handed_over: Tensor | None = None) -> int:
        """Bytes that are there at this moment, each storage once."""
        layers = self._cache.layers
        spans = [span for layer in layers for pair in layer.state.history for span in pair]
        tensors = [tensor for span in (*spans, *self._made) for tensor in span.tensors().values()]
        tensors += [x for layer in layers for x in layer.state.current or ()]
        tensors += [] if handed_over is None else [handed_over]
        tensors += [x for layer in layers for tiles in layer.state.tiles for x in tiles.tensors().values()]
        if self._cache.merger is not None:
            tensors += [self._cache.merger.rows.tokens, self._cache.merger.rows.counts]
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())
