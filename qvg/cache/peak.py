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

import torch

from ..codec import Codec, ExactCodec
from ..config import QVGConfig
from .even_growth import EvenGrowth
from .growth import Book, Commit, Growth, Memory
from .spec_like import SpecLike

# Keys and values have codecs of their own; what is not encoded, another.
_ENCODED, _EXACT = (1, 0), 2


@dataclass(frozen=True)
class Peak:
    """After a commit: `frames` of the video so far, bytes of the history now, the most that was held at any moment until now.
    `device_bytes`: the same without what `offload` keeps in CPU memory, with its copies on the device; then an upper bound."""

    frames: int
    now_bytes: int
    peak_bytes: int
    device_bytes: int


def peaks(
    spec: SpecLike, config: QVGConfig, chunks: Iterable[int], block_dtype: torch.dtype | None = None, by_layer: bool = True
) -> Iterator[Peak]:
    """One for every chunk, of so many frames each. `block_dtype` is what the network computes keys and values in, by default what
    they are kept in. `by_layer`: the network lets go of a layer's block before it makes the next one's (`KVCache.release`,
    `commit_layer`); otherwise all layers hold theirs until `KVCache.commit`."""
    growth = Growth(spec.check(config), config.spans_per_codebook)
    layer = _Layer(spec, config, block_dtype, by_layer)
    before, frames, most, here = growth.memory(), 0, 0, 0
    for chunk in chunks:
        commit = growth.commit(chunk)
        after = growth.memory()
        at_once, on_device = layer.moment(commit, before, after)
        most, here = max(most, at_once), max(here, on_device)
        frames, before = frames + chunk, after
        yield Peak(frames, spec.layers * layer.history(after), most, here if config.offloads else most)


class EvenPeaks:
    """What `peaks` comes to after any number of frames in chunks of the policy's size, the first one of `first_frames` (0: as the
    others): quickly, however many they are."""

    def __init__(
        self,
        spec: SpecLike,
        config: QVGConfig,
        first_frames: int = 0,
        block_dtype: torch.dtype | None = None,
        by_layer: bool = True,
    ):
        self._spec, self._offloads = spec, config.offloads
        self._growth = EvenGrowth(spec.check(config), config.spans_per_codebook, first_frames)
        self._layer = _Layer(spec, config, block_dtype, by_layer)
        self._moment = cache(self._count_moment)

    def after(self, frames: int) -> Peak:
        """So many frames."""
        if not frames:
            return Peak(0, 0, 0, 0)
        commits, last = self._growth.commits(frames)
        moments = [self._moment(index, last if index == commits - 1 else None) for index in self._growth.turning_points(commits)]
        most, here = (max(sizes) for sizes in zip(*moments, strict=True))
        now = self._spec.layers * self._layer.history(self._growth.memory(commits, last))
        return Peak(frames, now, most, here if self._offloads else most)

    def _count_moment(self, index: int, last_frames: int | None) -> tuple[int, int]:
        commit = self._growth.commit(index, last_frames)
        return self._layer.moment(commit, self._growth.memory(index), self._growth.memory(index + 1, last_frames))


def _on_device(layers: int, during: int, waiting: int, packed: int, exact: int, packed_after: int) -> int:
    """The most while packed spans are elsewhere and two layers' are on a visit. `packed` are a layer's before it commits, and
    `packed_after`; the rest is without them: `during` of the layer that commits, `waiting` of one that has yet to, `exact` of
    one that has. Beside the last one the first one's new spans are there."""
    fetched = min(2, layers)
    return max(
        during + (layers - 1) * max(waiting, exact) + fetched * packed,
        during + (layers - 1) * exact + packed + (packed_after if layers > 1 else 0),
        layers * exact + fetched * packed_after,
    )


class _Layer:
    """Bytes of one layer."""

    def __init__(self, spec: SpecLike, config: QVGConfig, block_dtype: torch.dtype | None, by_layer: bool):
        self._spec, self._rows = spec, (spec.batch, spec.heads, spec.head_dim)
        self._codecs: tuple[Codec, ...] = (*spec.codecs(config), ExactCodec(spec.dtype))
        self._block_dtype, self._by_layer = block_dtype or spec.dtype, by_layer
        self._config = config
        self._span, self._parts, self._codebook = cache(self._count_span), cache(self._count_parts), cache(self._count_codebook)

    def moment(self, commit: Commit, before: Memory, after: Memory) -> tuple[int, int]:
        """Of all layers: the most that is held from the block in work until it is history, and that without what is kept
        elsewhere."""
        layers, had, has = self._spec.layers, self.history(before), self.history(after)
        block = self.exact(commit.chunk_frames) * self._block_dtype.itemsize // self._spec.dtype.itemsize
        during, waiting = self.during(commit, had, block), had if self._by_layer else had + block
        # Between the first layer's commit and the last one's the sum rises or falls in equal steps.
        most = max(during + (layers - 1) * max(waiting, has), layers * has)
        exact = self.exact(after.exact_frames)
        packed = had - self.exact(before.exact_frames)
        working = during - packed + self.lent(commit)
        return most, _on_device(layers, working, waiting - packed, packed, exact, has - exact)

    def history(self, memory: Memory) -> int:
        """What is kept."""
        spans = sum(many * self._span(which, frames) for which in _ENCODED for frames, many in memory.spans.items())
        books = sum(many * self._codebook(which, book) for which in _ENCODED for book, many in memory.codebooks.items())
        tiles = sum(many * self._spec.tile_bytes(self._config, frames) for frames, many in memory.spans.items())
        return self.exact(memory.exact_frames) + spans + books + tiles

    def exact(self, frames: int) -> int:
        """Keys and values as they are kept before they are encoded."""
        return 2 * self._span(_EXACT, frames)

    def lent(self, commit: Commit) -> int:
        """Copies of codebooks on the device that an encoder starts from, at most."""
        return sum(self._codebook(which, commit.codebook_newest) for which in _ENCODED) if commit.span_frames else 0

    def during(self, commit: Commit, before: int, block: int) -> int:
        """The most that the layer holds from the moment when it has the block until it has committed it."""
        held = before + self.exact(commit.chunk_frames)
        most = held + block  # the copy is made while the block is still there
        if commit.span_frames:
            joined = self._span(_EXACT, commit.span_frames) if commit.span_chunks > 1 else 0
            for which in _ENCODED:
                most = max(most, held + joined + self._made(which, commit))
                held += self._encoded(which, commit)
            # Tiles are made while what was encoded is still there.
            most = max(most, held + self._spec.tile_bytes(self._config, commit.span_frames))
        return most

    def _encoded(self, which: int, commit: Commit) -> int:
        """What a span adds for good."""
        return (
            self._span(which, commit.span_frames)
            + self._codebook(which, commit.codebook_after)
            - self._codebook(which, commit.codebook_before)
        )

    def _made(self, which: int, commit: Commit) -> int:
        """What the codec gives back in memory of its own: the span, and those parts of its codebook that are new. A longer
        codebook is there beside the shorter one until earlier spans have taken it over."""
        old, new = (self._parts(which, codebook) for codebook in (commit.codebook_before, commit.codebook_after))
        return self._span(which, commit.span_frames) + sum(size for name, size in new.items() if size != old.get(name))

    def _count_parts(self, which: int, codebook: Book) -> dict[str, int]:
        tokens = [frames * self._spec.tokens_per_frame for frames in codebook]
        return self._codecs[which].predicted_codebook_bytes(self._rows, tokens) if codebook else {}

    def _count_span(self, which: int, frames: int) -> int:
        spec = self._spec
        shape = (spec.batch, spec.heads, frames * spec.tokens_per_frame, spec.head_dim)
        return sum(self._codecs[which].predicted_bytes(shape).values())

    def _count_codebook(self, which: int, codebook: Book) -> int:
        return sum(self._parts(which, codebook).values())
