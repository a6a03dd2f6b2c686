"""The most that a cache holds at any moment of a run, to the byte.

Counted is every tensor that the cache holds or hands to a codec: the history of all layers; the current block, its keys and
values as the network made them; while a layer commits, its copy of the block, the chunks that wait (in one piece too, where a
span is made of several), and what the codec gives back, a grown codebook beside the one it replaces. What a codec works in is
not the cache's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from .codec import Codec, ExactCodec, make_codecs
from .config import QVGConfig
from .growth import Book, Commit, Growth

if TYPE_CHECKING:
    from .spec import CacheSpec


@dataclass(frozen=True)
class Peak:
    """After a commit: `frames` of the video so far, bytes of the history now, the most that was held at any moment until now."""

    frames: int
    now_bytes: int
    peak_bytes: int


def peaks(
    spec: CacheSpec, config: QVGConfig, chunks: Iterable[int], block_dtype: torch.dtype | None = None, by_layer: bool = True
) -> Iterator[Peak]:
    """One for every chunk, of so many frames each. `block_dtype` is what the network computes keys and values in, by default what
    they are kept in. `by_layer`: the network lets go of a layer's block before it makes the next one's (`KVCache.release`,
    `commit_layer`); otherwise all layers hold theirs until `KVCache.commit`."""
    growth, layer = Growth(spec.check(config), config.spans_per_codebook), _Layer(spec, config)
    frames = most = before = 0
    for chunk in chunks:
        block = layer.exact(chunk) * (block_dtype or spec.dtype).itemsize // spec.dtype.itemsize
        commit = growth.commit(chunk)
        during = layer.during(commit, before, block)
        after = before + layer.change(commit)
        waiting = before if by_layer else before + block
        # Between the first layer's commit and the last one's the sum rises or falls in equal steps.
        most = max(most, during + (spec.layers - 1) * max(waiting, after), spec.layers * after)
        frames, before = frames + chunk, after
        yield Peak(frames, spec.layers * after, most)


class _Layer:
    """Bytes of one layer."""

    def __init__(self, spec: CacheSpec, config: QVGConfig):
        self._spec, self._rows = spec, (spec.batch, spec.heads, spec.head_dim)
        self._exact, self._codecs = ExactCodec(spec.dtype), make_codecs(config, spec.dtype)
        self._span, self._book = cache(self._count_span), cache(self._count_book)

    def exact(self, frames: int) -> int:
        """Keys and values as they are kept before they are encoded."""
        return 2 * self._span(self._exact, frames)

    def change(self, commit: Commit) -> int:
        """By how much the history grows."""
        added = self.exact(commit.chunk_frames)
        if commit.span_frames:
            added += sum(self._encoded(codec, commit) for codec in self._codecs) - self.exact(commit.span_frames)
        spans = sum(self._span(codec, frames) for codec in self._codecs for frames in commit.gone_spans)
        books = sum(self._book(codec, book) for codec in self._codecs for book in commit.gone_books)
        return added - spans - books - sum(map(self.exact, commit.gone_chunks))

    def during(self, commit: Commit, before: int, block: int) -> int:
        """The most that the layer holds from the moment when it has the block until it has committed it."""
        copied = before + self.exact(commit.chunk_frames)
        most = [copied + block]  # the copy is made while the block is still held
        if commit.span_frames:
            keys, values = self._codecs
            several = commit.span_frames if commit.step.encode_chunks > 1 else 0
            held = copied
            for codec in (keys, values):
                # The longer codebook is there beside the shorter one until earlier spans have taken it over.
                most.append(held + self._span(self._exact, several) + self._made(codec, commit))
                held += self._encoded(codec, commit)
        return max(most)

    def _encoded(self, codec: Codec, commit: Commit) -> int:
        """What a span adds for good."""
        return (
            self._span(codec, commit.span_frames) + self._book(codec, commit.book_after) - self._book(codec, commit.book_before)
        )

    def _made(self, codec: Codec, commit: Commit) -> int:
        """What the codec gives back in memory of its own: the span, and the parts of its codebook that are new."""
        parts = ({} if not book else self._parts(codec, book) for book in (commit.book_before, commit.book_after))
        old, new = parts
        return self._span(codec, commit.span_frames) + sum(size for name, size in new.items() if size != old.get(name))

    def _parts(self, codec: Codec, book: Book) -> dict[str, int]:
        return codec.predicted_codebook_bytes(self._rows, [frames * self._spec.tokens_per_frame for frames in book])

    def _count_span(self, codec: Codec, frames: int) -> int:
        spec = self._spec
        shape = (spec.batch, spec.heads, frames * spec.tokens_per_frame, spec.head_dim)
        return sum(codec.predicted_bytes(shape).values()) if frames else 0

    def _count_book(self, codec: Codec, book: Book) -> int:
        return sum(self._parts(codec, book).values()) if book else 0


def most_held(spec: CacheSpec, config: QVGConfig, chunks: Iterable[int], block_dtype: torch.dtype | None, by_layer: bool) -> int:
    """Bytes at the worst moment of a whole run; 0 for a run of no chunks."""
    return max((peak.peak_bytes for peak in peaks(spec, config, chunks, block_dtype, by_layer)), default=0)
