"""A cache made again out of a session's segments: their tensors as those of one saved cache, and checked as such."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cache import KVCache
from ..cache.spec import CacheSpec
from ..config import QVGConfig
from .books import Part, References
from .checked import Getter, MisfitError, as_it_is, as_list, as_object, as_text, as_whole
from .manifest import Index
from .recorder import CacheRecorder, has_codebooks, keeps_chunks
from .restored import restored_cache
from .segment import OpenSegment
from .span_files import WHICH, check_entries
from .state import config_of, read_state, spec_of, version_of
from .tile_files import Entries, Entry

# Where a tensor of the cache is; codewords are in parts, to be joined.
Place = list[tuple[OpenSegment, str]]
_CODEWORDS_AXIS = 2
_BOOK_PART = re.compile(
    r"layer\.(\d{1,6})\.(keys|values)\.(group|basis)\.(\d{1,9})\.(centroids|centroid_scales|basis|basis_scales)"
)


def stored_cache(
    folder: Path, said: Mapping[str, Any], index: Index, device: torch.device, backend: str | None
) -> tuple[KVCache, CacheRecorder]:
    """The cache that a manifest speaks of, and what goes on recording it. Nothing is taken for it before all that is said of it
    goes together. MisfitError, SessionError."""
    found = _Found(folder, said, index)
    found.find()
    saved = read_state(json.dumps(found.state), version_of(found.config))
    check_entries(saved, found.entries())
    cache = restored_cache(folder, saved, found.read, device, backend)
    cache.positions.as_placed = found.as_placed
    recorder = CacheRecorder(found.prefix, cache)
    recorder.learn(found.references, found.contents, found.rows)
    return cache, recorder


class _Found:
    """What segments hold, in the words of a saved cache."""

    def __init__(self, folder: Path, said: Mapping[str, Any], index: Index):
        get = Getter("a cache", said)
        self.prefix, self.state = as_text(get("prefix"), "prefix"), dict(as_object(get("state"), "state"))
        state = Getter("state", self.state)
        self._layout, self._folder, self._index = Getter("layout", state("layout")), folder, index
        self.spec: CacheSpec = spec_of(state("spec"))
        self.config: QVGConfig = config_of(state("config"))
        self._unread = {name for name in index.segments if name.startswith(f"{self.prefix}-")}
        self._places: dict[str, Place] = {}
        self._stretch = 0
        self._codebooks: dict[str, list[str]] = {}
        self.references: dict[int, References] = {}
        self.contents: dict[str, set[Part]] = {}
        self.rows: str | None = None
        moved = self.state.pop("moved", None)
        self.as_placed = moved is None
        self._moved = moved

    def find(self) -> None:
        """Look at the headers of all segments, and complete the state."""
        layout, state = self._layout, Getter("state", self.state)
        sizes = {part: as_list(layout(part), part, lambda frames, name: as_whole(frames, name, 1)) for part in ("sink", "tail")}
        committed, due = as_whole(state("frames_committed"), "frames_committed"), as_whole(state("spans_due"), "spans_due")
        first = as_whole(layout("first_span"), "first_span", 0, due)
        whole = due - first if not keeps_chunks(self.config) else 0
        if whole > len(self._unread):
            raise MisfitError(f"it has {whole} spans, but there are {len(self._unread)} segments")
        self._exact(0, sizes["sink"])
        spans = [self._span(number) for number in range(first, first + whole)]
        if self.config.merges:
            self._find_rows()
        tail, chunks = sizes["tail"], as_whole(layout("chunks"), "chunks", 0, len(sizes["tail"]))
        self._exact(committed - sum(tail), tail)
        planes = self._books() if has_codebooks(self.config) else {}
        if self._unread:
            raise MisfitError(f"segment {min(self._unread)} belongs to nothing")
        frames = {"sink": sizes["sink"], "spans": [*(() if self.config.merges else spans), *tail[:chunks]], "tail": tail[chunks:]}
        merged = {"merged": layout("merged")} if self.config.merges else {}
        self.state |= {"layout": frames | {"hidden": layout("hidden")} | merged, "codebooks": self._codebooks}
        self.state |= {"planes": {name: each[0] for name, each in planes.items()}}
        self.state |= {"directions": {name: each[1] for name, each in planes.items()}}
        self.state["origins"] = self._origins(sizes["sink"], [*spans, *tail], as_whole(layout("hidden"), "hidden"))

    def entries(self) -> Entries:
        """Shape and type of every tensor."""
        return {name: _joined(name, [segment.entries[inner] for segment, inner in place]) for name, place in self._places.items()}

    def read(self, name: str) -> Tensor:
        """A tensor; codewords in one piece again."""
        parts = [segment.read(inner) for segment, inner in self._places[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, _CODEWORDS_AXIS)

    def _open(self, name: str) -> OpenSegment:
        if name not in self._unread:
            raise MisfitError(f"segment {name} is not there")
        self._unread.discard(name)
        return OpenSegment(self._folder, self._index.segments[name], mapped=self.config.offloads and "-span-" in name)

    def _exact(self, first: int, sizes: list[int]) -> None:
        """Chunks of these frames, the first of which is the run's frame `first`."""
        for frames in sizes:
            if first < 0:
                raise MisfitError(f"its newest chunks have {sum(sizes)} frames, more than it has committed")
            segment = self._open(f"{self.prefix}-exact-{first:08}")
            self._take(segment, {f"layer.{layer}.{which}": f"{which}.{{}}.exact" for layer, which in self._rows_of_layers()})
            self._stretch += 1
            first += frames

    def _rows_of_layers(self) -> list[tuple[int, str]]:
        # No more layers than the file has room for: each has its own group_starts.
        starts = self.state.get("group_starts")
        if not isinstance(starts, list) or len(starts) != self.spec.layers:
            raise MisfitError(f"it has {self.spec.layers} layers, but counters of another number")
        return [(layer, which) for layer in range(self.spec.layers) for which in WHICH]

    def _take(self, segment: OpenSegment, names: Mapping[str, str]) -> None:
        """All of a segment's tensors, under the names of this stretch."""
        if segment.entries.keys() != names.keys():
            raise MisfitError(f"a segment of stretch {self._stretch} has other tensors than it must have")
        for inner, name in names.items():
            layer = inner.split(".")[1]
            self._places[f"layer.{layer}.{name.format(self._stretch)}"] = [(segment, inner)]

    def _span(self, number: int) -> int:
        """-> frames"""
        segment = self._open(f"{self.prefix}-span-{number:08}")
        get = Getter("a span", segment.about)
        for inner in segment.entries:
            parts = inner.split(".")
            if len(parts) != 4 or parts[0] != "layer" or parts[2] not in (*WHICH, "tiles"):
                raise MisfitError(f"span {number} has a tensor of another kind")
            self._places[f"layer.{parts[1]}.{parts[2]}.{self._stretch}.{parts[3]}"] = [(segment, inner)]
        if has_codebooks(self.config):
            layers = as_list(get("codebooks"), "codebooks", as_it_is, self.spec.layers)
            references: References = [as_list(both, "codebooks", _reference, 2) for both in layers]
            self.references[number] = references
            for layer, both in enumerate(references):
                for which, (group, basis) in zip(WHICH, both, strict=True):
                    names = [f"codebook.{layer}.{which}.{group}", *([f"basis.{layer}.{which}.{basis}"] if basis >= 0 else [])]
                    self._codebooks[f"layer.{layer}.{which}.{self._stretch}"] = names
        self._stretch += 1
        return as_whole(get("frames"), "frames", 0)

    def _find_rows(self) -> None:
        names = [name for name in self._unread if name.startswith(f"{self.prefix}-rows-")]
        if not names:
            return
        if len(names) > 1:
            raise MisfitError(f"{len(names)} segments say which rows there are")
        segment = self._open(names[0])
        self.rows = names[0]
        for name in ("rows.tokens", "rows.counts"):
            if name not in segment.entries:
                raise MisfitError(f"the segment of its rows lacks {name}")
            self._places[name] = [(segment, name)]
        waiting = {inner for inner in segment.entries if not inner.startswith("rows.")}
        if waiting:
            if waiting != {f"layer.{layer}.{which}" for layer, which in self._rows_of_layers()}:
                raise MisfitError("the rows that wait are not those of all layers")
            for layer, which in self._rows_of_layers():
                self._places[f"layer.{layer}.{which}.{self._stretch}.exact"] = [(segment, f"layer.{layer}.{which}")]
            self._stretch += 1

    def _books(self) -> dict[str, list[Any]]:
        """Codebooks that spans point to. -> planes and directions of each basis, by name"""
        wanted = {name for names in self._codebooks.values() for name in names}
        planes: dict[str, list[Any]] = {}
        names = sorted(name for name in self._unread if name.startswith(f"{self.prefix}-book-"))
        for name in names:
            segment, held = self._open(name), set[Part]()
            said = as_object(Getter("codebooks", segment.about)("bases"), "bases")
            for inner in segment.entries:
                match = _BOOK_PART.fullmatch(inner)
                if match is None or (match[3] == "basis") != match[5].startswith("basis"):
                    raise MisfitError(f"{name} has a tensor of another kind")
                is_basis = match[3] == "basis"
                whole = f"{'basis' if is_basis else 'codebook'}.{match[1]}.{match[2]}.{match[4]}"
                held.add((int(match[1]), WHICH.index(match[2]), int(is_basis), int(match[4])))
                if whole not in wanted:
                    continue
                if is_basis:
                    planes[whole] = as_list(said.get(inner.rpartition(".")[0]), "bases", as_it_is, 2)
                of_klt = self.config.codec == "klt"
                self._places.setdefault(f"{whole}.{match[5]}" if of_klt else whole, []).append((segment, inner))
            self.contents[name] = held
        return planes

    def _origins(self, sink: list[int], others: list[int], hidden: int) -> list[Any]:
        """Positions of the frames that attention sees."""
        if self._moved is not None:
            return as_list(self._moved, "moved", as_it_is)
        everywhere = self._index.origins.get(self.prefix, [])
        if self.state.get("rope") is None:
            return []
        if self.config.merges:
            return everywhere
        behind = max(0, sum(others) - hidden)
        return [*everywhere[: sum(sink)], *(everywhere[len(everywhere) - behind :] if behind else [])]


def _reference(value: object, name: str) -> tuple[int, int]:
    group, basis = as_list(value, name, lambda number, name: as_whole(number, name, -1, 10**9), 2)
    return group, basis


def _joined(name: str, parts: list[Entry]) -> Entry:
    """Of codewords that are in several segments. MisfitError unless they go together."""
    first = parts[0]
    if len(parts) == 1:
        return first
    axis = _CODEWORDS_AXIS
    ends = {(part.shape[:axis], part.shape[axis + 1 :], part.dtype, len(part.shape) > axis) for part in parts}
    if len(ends) != 1 or not len(first.shape) > axis:
        raise MisfitError(f"parts of {name} do not go together")
    return Entry((*first.shape[:axis], sum(part.shape[axis] for part in parts), *first.shape[axis + 1 :]), first.dtype)
