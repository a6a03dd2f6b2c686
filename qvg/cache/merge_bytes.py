"""Bytes of a cache that merges, from how many rows it has; and what it takes at most, for that is not known before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..codec import ExactCodec, KLTCodec
from ..codec.base import Codebooks
from ..config import QVGConfig
from .policy import Layout
from .rows import ROW_BYTES
from .spec_like import SpecLike


@dataclass(frozen=True)
class Stretches:
    """What a layer holds: tokens and rows that are exact (sink, waiting rows, tail), whole spans, and how many codebooks of how
    many spans."""

    exact: int
    spans: int
    codebooks: Counter[int]


class MergedBytes:
    """Bytes of all layers by component."""

    def __init__(self, spec: SpecLike, config: QVGConfig):
        self._spec, self._config, self._policy = spec, config, spec.check(config)
        self._codecs, self._exact = spec.codecs(config), ExactCodec(spec.dtype)
        self.span_tokens = self._policy.span_chunks * self._policy.chunk_frames * spec.tokens_per_frame

    def layout(self, chunks: Iterable[int]) -> Layout:
        """After so many chunks."""
        layout = Layout()
        for chunk in chunks:
            layout = self._policy.commit(layout, chunk).layout
        return layout

    def most_rows(self, layout: Layout) -> tuple[int, ...]:
        """Numbers of rows one of which takes the most: each token is one, or one more would make a span of those that wait."""
        most = layout.merged * self._spec.tokens_per_frame
        fullest = most // self.span_tokens * self.span_tokens - 1
        return (most, fullest) if fullest > 0 else (most,)

    def stretches(self, layout: Layout, rows: int) -> Stretches:
        """What a layer holds whose merged frames are so many rows."""
        whole, waiting = divmod(rows, self.span_tokens)
        exact = (sum(layout.sink) + sum(layout.tail)) * self._spec.tokens_per_frame
        groups, last = divmod(whole, self._config.spans_per_codebook)
        books = Counter({self._config.spans_per_codebook: groups})
        books[last] += last > 0
        return Stretches(exact + waiting, whole, +books)

    def sizes(self, layout: Layout, rows: int, codebooks: Codebooks | Literal["most"] | None = None) -> Counter[str]:
        """By component; `codebooks` as in `CacheSpec.predict`."""
        held, layers = self.stretches(layout, rows), self._spec.layers
        sizes = Counter(rows=ROW_BYTES * rows)
        _add(sizes, 2 * layers, self._exact.predicted_bytes(self.shape(held.exact)))
        for which, codec in enumerate(self._codecs):
            _add(sizes, layers * held.spans, codec.predicted_bytes(self.shape(self.span_tokens)))
            if codebooks is None or not isinstance(codec, KLTCodec):
                for spans, many in held.codebooks.items():
                    grown = codec.predicted_codebook_bytes(self._rows, (self.span_tokens,) * spans)
                    _add(sizes, layers * many, grown)
            elif isinstance(codebooks, str):
                for size in codec.most_codebooks([self.span_tokens], self._spec.head_dim, False):
                    _add(sizes, layers * held.spans, codec.codebook_bytes(self._rows, size))
            else:
                for layer in codebooks:
                    for size in layer[which]:
                        _add(sizes, 1, codec.codebook_bytes(self._rows, size))
        return sizes

    def most(self, layout: Layout, codebooks: Codebooks | Literal["most"] | None = None) -> Counter[str]:
        """At most, whatever looks alike."""
        return max((self.sizes(layout, rows, codebooks) for rows in self.most_rows(layout)), key=lambda sizes: sizes.total())

    def exact_bytes(self, tokens: int) -> int:
        """A layer's keys and values in 16 bits."""
        return 2 * sum(self._exact.predicted_bytes(self.shape(tokens)).values())

    def encoded_bytes(self) -> tuple[int, int]:
        """Of a layer: one whole span of keys and values; and a whole group's codebooks, which grow beside those before."""
        group = (self.span_tokens,) * self._config.spans_per_codebook
        spans = sum(sum(codec.predicted_bytes(self.shape(self.span_tokens)).values()) for codec in self._codecs)
        return spans, sum(sum(codec.predicted_codebook_bytes(self._rows, group).values()) for codec in self._codecs)

    def shape(self, tokens: int) -> tuple[int, int, int, int]:
        """[B, H, S, D] of so many."""
        return self._spec.batch, self._spec.heads, tokens, self._spec.head_dim

    @property
    def _rows(self) -> tuple[int, int, int]:
        return self._spec.batch, self._spec.heads, self._spec.head_dim


def _add(sizes: Counter[str], factor: int, more: dict[str, int]) -> None:
    sizes.update({name: factor * size for name, size in more.items()})
