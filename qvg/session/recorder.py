"""What of a growing cache is on disk already, and what a checkpoint has to write and may forget.

    exact-<first frame>   an exact chunk, of sink or tail; gone as soon as its span is written
    span-<n>              the n-th encoded span, of all layers, without codebooks; gone when it leaves the window
    book-<n>              parts of codebooks that spans up to the n-th have begun, or by which they grew
    rows-<blocks>         of a cache that merges tokens: counts of its rows, and rows that wait; the next one replaces it

Spans, codebooks and exact chunks never change, so each is written once; rows that wait do. The work of a checkpoint is that of
what is new, however long the history is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..attention.plan import Pair
from ..cache import KVCache
from ..codec.span import ExactSpan, TransformCodebook
from ..config import CODECS, COMPARED, QVGConfig
from ..errors import ConfigError
from ..positions.frames import Origin
from .books import Books, Part, References
from .segment import Segment, write_segment
from .span_files import WHICH
from .state import fixed_state

Write = Callable[[Path, str, Mapping[str, Tensor], Mapping[str, Any]], Segment]


@dataclass
class Change:
    """What a checkpoint adds to the index: segments, names of those that are gone, positions of new frames, and what the manifest
    is to say of the cache from now on."""

    added: list[Segment]
    gone: list[str]
    origins: list[Origin]
    state: dict[str, Any]


class CacheRecorder:
    """One cache of a session. `prefix`: how the names of its segments begin."""

    def __init__(self, prefix: str, cache: KVCache, write: Write = write_segment):
        check_saveable(cache.config)
        self.prefix, self._cache, self._write = prefix, cache, write
        # A reset, or another cache in this one's place, has layers of another state.
        self._life = cache.layers[0].state
        self._frames = self._spans = self._oldest = 0
        self._exact: set[tuple[int, int]] = set()
        # Of a cache with a window, what its spans point to, by their numbers.
        self._references: dict[int, References] = {}
        self._books = [[Books() for _ in WHICH] for _ in cache.layers]
        # Of each segment of codebooks what is in it.
        self._contents: dict[str, set[Part]] = {}
        self._rows: str | None = None

    def is_of(self, cache: KVCache) -> bool:
        """Whether this cache is still the one that was recorded, grown."""
        return cache.layers[0].state is self._life

    def names(self) -> list[str]:
        """All segments that are on disk."""
        exact = [self._name("exact", first) for first, _ in self._exact]
        spans = [self._name("span", number) for number in range(self._oldest, self._spans)]
        return [*exact, *spans, *self._contents, *([self._rows] if self._rows else [])]

    def learn(self, references: Mapping[int, References], contents: Mapping[str, set[Part]], rows: str | None) -> None:
        """The cache was made again from what is on disk: spans that point to these parts of codebooks, which are in these
        segments."""
        cache, live = self._cache, self._live_spans()
        self._frames, self._spans, self._oldest, self._rows = cache.frames_committed, live.stop, live.start, rows
        self._exact = {(first, frames) for first, frames, _, _ in self._chunks()}
        self._contents = dict(contents)
        if cache.config.window_frames is not None:
            self._references = dict(references)
        for number, layers in references.items():
            for layer, books in zip(cache.layers, self._books, strict=True):
                for which, span in enumerate(layer.state.spans[number - live.start]):
                    books[which].learn(span.codebook, layers[layer.layer][which])

    def checkpoint(self, folder: Path, blocks: int) -> Change:
        """Write what is not on disk yet. OSError; what was written by then is of no checkpoint, and the next one writes it."""
        names = ("_frames", "_spans", "_oldest", "_exact", "_rows")
        before = {name: getattr(self, name) for name in names}
        before |= {"_references": dict(self._references), "_contents": dict(self._contents)}
        before["_books"] = [[book.copy() for book in both] for both in self._books]
        try:
            return self._checkpoint(folder, blocks)
        except BaseException:
            self.__dict__.update(before)
            raise

    def _checkpoint(self, folder: Path, blocks: int) -> Change:
        cache, live = self._cache, self._live_spans()
        added = self._new_spans(folder, range(max(self._spans, live.start), live.stop), live.start)
        gone = self._forget_spans(live)
        exact, left = self._new_exact(folder)
        rows = self._new_rows(folder, blocks)
        gone += left + ([self._rows] if rows and self._rows else [])
        self._rows = rows.name if rows else self._rows
        positions, fresh = cache.positions, cache.frames_committed - self._frames
        origins = positions.committed[max(0, len(positions.committed) - fresh) :] if fresh and positions.as_placed else []
        self._frames, self._spans = cache.frames_committed, live.stop
        moved = None if positions.as_placed else cache.origins
        state = fixed_state(cache) | {"layout": self._layout(live), "moved": moved}
        return Change([*added, *exact, *([rows] if rows else [])], gone, list(origins), state)

    def _name(self, kind: str, number: int) -> str:
        return f"{self.prefix}-{kind}-{number:08}"

    def _live_spans(self) -> range:
        """Numbers of the spans in memory that are kept as such."""
        if keeps_chunks(self._cache.config):
            return range(0)
        count = len(self._cache.layers[0].state.spans)
        return range(self._cache.spans_due - count, self._cache.spans_due)

    def _layout(self, live: range) -> dict[str, Any]:
        layout = self._cache.layout
        chunks = list(layout.spans) if keeps_chunks(self._cache.config) else []
        said = {"sink": list(layout.sink), "tail": [*chunks, *layout.tail], "chunks": len(chunks)}
        return said | {"first_span": live.start, "hidden": layout.hidden, "merged": layout.merged}

    # -------------------------------------------------------------------------------------------------------- exact chunks

    def _chunks(self) -> Iterator[tuple[int, int, str, int]]:
        """Exact chunks in memory: first frame, frames, section, number in it."""
        layout, first = self._cache.layout, 0
        for number, frames in enumerate(layout.sink):
            yield first, frames, "sink", number
            first += frames
        spans = layout.spans if keeps_chunks(self._cache.config) else ()
        first = self._cache.frames_committed - sum(spans) - sum(layout.tail)
        for section, sizes in (("spans", spans), ("tail", layout.tail)):
            for number, frames in enumerate(sizes):
                yield first, frames, section, number
                first += frames

    def _new_exact(self, folder: Path) -> tuple[list[Segment], list[str]]:
        added, there = [], set()
        for first, frames, section, number in self._chunks():
            there.add((first, frames))
            if (first, frames) not in self._exact:
                tensors: dict[str, Tensor] = {}
                for layer in self._cache.layers:
                    tensors |= _exact_tensors(layer.layer, getattr(layer.state, section)[number])
                added.append(self._write(folder, self._name("exact", first), tensors, {"first_frame": first, "frames": frames}))
        gone = [self._name("exact", first) for first, _ in self._exact - there]
        self._exact = there
        return added, gone

    # --------------------------------------------------------------------------------------------------------------- spans

    def _new_spans(self, folder: Path, new: range, first: int) -> list[Segment]:
        added, found = [], dict[int, References]()
        for number in new:
            tensors: dict[str, Tensor] = {}
            references: References = []
            for layer, books in zip(self._cache.layers, self._books, strict=True):
                pair, name = layer.state.spans[number - first], f"layer.{layer.layer}"
                references.append([book.reference(span.codebook) for span, book in zip(pair, books, strict=True)])
                for which, span in zip(WHICH, pair, strict=True):
                    shared = {} if span.codebook is None else span.codebook.tensors()
                    own = {part: tensor for part, tensor in span.tensors().items() if part not in shared}
                    tensors |= {f"{name}.{which}.{part}": tensor for part, tensor in own.items()}
                if self._cache.config.skips:
                    tiles = layer.state.tiles[number - first].tensors()
                    tensors |= {f"{name}.tiles.{part}": tensor for part, tensor in tiles.items()}
            spans = self._cache.layout.spans
            found[number] = references
            about: dict[str, Any] = {"frames": spans[number - first] if spans else 0}
            about |= {"codebooks": references} if has_codebooks(self._cache.config) else {}
            added.append(self._write(folder, self._name("span", number), tensors, about))
        if self._cache.config.window_frames is not None:
            self._references |= found
        return [*added, *(self._new_books(folder, found, first) if found and has_codebooks(self._cache.config) else [])]

    def _new_books(self, folder: Path, found: Mapping[int, References], first: int) -> list[Segment]:
        """What the codebooks of these spans have that is not on disk."""
        tensors: dict[str, Tensor] = {}
        bases: dict[str, Any] = {}
        held: set[Part] = set()
        for number, references in found.items():
            for layer, books in zip(self._cache.layers, self._books, strict=True):
                for which, span in enumerate(layer.state.spans[number - first]):
                    name, book, codebook = f"layer.{layer.layer}.{WHICH[which]}", books[which], span.codebook
                    group, basis = references[layer.layer][which]
                    if grown := book.grown(codebook, group):
                        tensors |= {f"{name}.group.{group}.{part}": tensor for part, tensor in grown.items()}
                        held.add((layer.layer, which, 0, group))
                    if isinstance(codebook, TransformCodebook) and basis not in book.bases:
                        learned = codebook.basis
                        tensors |= {f"{name}.basis.{basis}.{part}": tensor for part, tensor in learned.tensors().items()}
                        bases[f"{name}.basis.{basis}"] = [[list(row) for row in learned.planes], learned.directions]
                        book.bases.add(basis)
                        held.add((layer.layer, which, 1, basis))
        if not tensors:
            return []
        name = self._name("book", max(found))
        self._contents[name] = held
        return [self._write(folder, name, tensors, {"bases": bases})]

    def _forget_spans(self, live: range) -> list[str]:
        """Spans that have left the window, and codebooks that only they had."""
        left = range(self._oldest, min(live.start, self._spans))
        self._oldest = live.start
        if not left:
            return []
        for number in left:
            self._references.pop(number, None)
        gone = [self._name("span", number) for number in left]
        used = {
            (layer, which, kind, number)
            for references in self._references.values()
            for layer, both in enumerate(references)
            for which, reference in enumerate(both)
            for kind, number in enumerate(reference)
        }
        for name in [name for name, held in self._contents.items() if not held & used]:
            del self._contents[name]
            gone.append(name)
        for layer, books in enumerate(self._books):
            for which, book in enumerate(books):
                mine = [(kind, number) for at, kept, kind, number in used if (at, kept) == (layer, which)]
                book.forget({n for kind, n in mine if not kind}, {n for kind, n in mine if kind})
        return gone

    # ---------------------------------------------------------------------------------------------------------------- rows

    def _new_rows(self, folder: Path, blocks: int) -> Segment | None:
        merger, name = self._cache.merger, self._name("rows", blocks)
        if merger is None or not len(merger.rows) or name == self._rows:
            return None
        tensors = {"rows.tokens": merger.rows.tokens, "rows.counts": merger.rows.counts}
        for layer in self._cache.layers:
            if layer.state.waiting is not None:
                tensors |= _exact_tensors(layer.layer, layer.state.waiting)
        return self._write(folder, name, tensors, {})


def check_saveable(config: QVGConfig) -> None:
    """ConfigError for settings whose memory changes what is on disk already, or has no format."""
    if config.codec in COMPARED:
        raise ConfigError(
            f"codec {config.codec!r} is there to compare with, and sessions have no format for its spans; use one of "
            f"{', '.join(CODECS)}"
        )
    if config.codec == "none" and config.merges:
        raise ConfigError(
            f"merge {config.merge:g} with codec 'none' changes what was remembered long ago, so it cannot be kept in a session "
            "while it grows; use another codec, or merge 0"
        )


def keeps_chunks(config: QVGConfig) -> bool:
    """Whether spans are the chunks that were committed, exact, and kept on disk as such."""
    return config.codec == "none" and not config.merges and not config.skips


def has_codebooks(config: QVGConfig) -> bool:
    """Whether its spans point into codebooks."""
    return config.codec in ("qvg", "klt")


def _exact_tensors(layer: int, pair: Pair) -> dict[str, Tensor]:
    tensors = {}
    for which, span in zip(WHICH, pair, strict=True):
        assert isinstance(span, ExactSpan)
        tensors[f"layer.{layer}.{which}"] = span.values
    return tensors
