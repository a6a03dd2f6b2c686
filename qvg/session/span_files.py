"""Spans as named tensors and back, checked against what spec and config say they must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...kernels.bitplanes import packed_width as plane_width
from ...kernels.kmeans import MAX_CLUSTERS
from ...kernels.packing import packed_width
from ...kernels.rows8 import Rows8
from ..codec.span import (
    Basis,
    Codebook,
    ExactSpan,
    Group,
    GroupSpan,
    KMeansCodebook,
    QuantizedSpan,
    Span,
    TransformCodebook,
    TransformSpan,
)
from ..config import QVGConfig
from ..errors import shown
from .checked import MisfitError
from .state import SavedState
from .tile_files import Entries, Entry, tile_entries

WHICH = ("keys", "values")
# An E4M3 byte that is no number.
_NO_NUMBER = 0x7F


# Gives a tensor of the file by its name.
Read = Callable[[str], Tensor]


class SavedCodebooks:
    """Codebooks on their way into a file: every shared part once, under a name of its own."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        # Of each basis by name, its planes, and how many directions it has.
        self.planes: dict[str, list[list[int]]] = {}
        self.directions: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def add(self, codebook: Codebook) -> list[str]:
        """Names of a codebook's parts: what spans of a group share, and a basis where there is one."""
        if isinstance(codebook, KMeansCodebook):
            name = self._name(codebook, "codebook")
            self.tensors[name] = codebook.centroids
            return [name]
        codewords, basis = self._name(codebook.codewords, "codebook"), self._name(codebook.basis, "basis")
        self.tensors |= {
            f"{codewords}.centroids": codebook.codewords.values,
            f"{codewords}.centroid_scales": codebook.codewords.scales,
        }
        self.tensors |= {f"{basis}.{part}": tensor for part, tensor in codebook.basis.tensors().items()}
        self.planes[basis], self.directions[basis] = [list(row) for row in codebook.basis.planes], codebook.basis.directions
        return [codewords, basis]

    def _name(self, part: object, kind: str) -> str:
        count = sum(name.startswith(kind) for name in self._names.values())
        return self._names.setdefault(id(part), f"{kind}.{count}")


def check_entries(state: SavedState, entries: Mapping[str, Entry]) -> None:
    """MisfitError unless a file with these tensors holds what its state says, and nothing else. Nothing is allocated."""
    stretches = state.stretches()
    least = 2 * state.spec.layers * len(stretches)
    if len(entries) < least:
        raise MisfitError(
            f"it has {len(entries)} tensors, but {state.spec.layers} layers of {len(stretches)} stretches have at least {least}"
        )
    expected = _expected(state, entries)
    for name, wanted in expected.items():
        found = entries.get(name)
        if found is None:
            raise MisfitError(f"it lacks the tensor {shown(name)}")
        if found != wanted:
            raise MisfitError(f"{shown(name)} is {_text(found)}, but must be {_text(wanted)}")
    unasked = next((name for name in entries if name not in expected), None)
    if unasked is not None:
        raise MisfitError(f"it holds the tensor {shown(unasked)}, which belongs to nothing")


def _expected(state: SavedState, entries: Mapping[str, Entry]) -> Entries:
    """All tensors of the file by name."""
    expected: Entries = {}
    for names in dict.fromkeys(state.codebooks.values()):
        expected |= _codebook_entries(state, names, entries)
    for layer in range(state.spec.layers):
        for which, part in enumerate(WHICH):
            for number, (section, tokens) in enumerate(state.stretches()):
                prefix = f"layer.{layer}.{part}.{number}"
                parts = span_entries(state, which, tokens, section == "spans", state.codebooks.get(prefix, ()))
                expected |= {f"{prefix}.{name}": entry for name, entry in parts.items()}
        for number, (section, tokens) in enumerate(state.stretches()):
            if section == "spans" and state.config.skips:
                expected |= tile_entries(state.spec, tokens, layer, number)
    if state.rows is not None:
        expected |= {"rows.tokens": Entry((state.rows,), torch.int32), "rows.counts": Entry((state.rows,), torch.uint16)}
    return expected


def _codebook_entries(state: SavedState, names: tuple[str, ...], entries: Mapping[str, Entry]) -> Entries:
    """Tensors of a codebook. How many codewords it has, the file's own tensor says."""
    rows, channels = (state.spec.batch, state.spec.heads), state.spec.head_dim
    if state.config.codec == "qvg":
        stages, (name,) = state.config.num_stages, names
        return {name: Entry((*rows, stages, _codewords(name, entries, 3), channels), torch.float16)}
    codewords, basis = names
    if basis not in state.planes:
        raise MisfitError(f"the basis {shown(basis)} has no planes")
    count, directions = _codewords(f"{codewords}.centroids", entries, 2), state.directions[basis]
    found = {
        f"{codewords}.centroids": Entry((*rows, count, channels), torch.int8),
        f"{codewords}.centroid_scales": Entry((*rows, count), torch.float16),
        f"{basis}.basis_scales": Entry((*rows, directions or channels), torch.float16),
    }
    return found | ({f"{basis}.basis": Entry((*rows, directions, channels), torch.int8)} if directions else {})


def _codewords(name: str, entries: Mapping[str, Entry], axis: int) -> int:
    shape = entries[name].shape if name in entries else ()
    if len(shape) <= axis:
        raise MisfitError(f"it lacks the tensor {shown(name)}, or that has too few axes")
    if not 1 <= shape[axis] <= MAX_CLUSTERS:
        raise MisfitError(f"{shown(name)} has {shape[axis]} codewords, but ids of one byte name 1 to {MAX_CLUSTERS}")
    return shape[axis]


def span_entries(state: SavedState, which: int, tokens: int, encoded: bool, names: tuple[str, ...]) -> Entries:
    """Tensors of a stretch of keys (which = 0) or values (1)."""
    spec, config = state.spec, _settings(state.config, which)
    rows, channels, group = (spec.batch, spec.heads), spec.head_dim, config.group_size
    if not encoded or config.codec == "none":
        return {"exact": Entry((*rows, tokens, channels), spec.dtype)}
    if config.codec == "klt":
        widths = state.planes[names[1]]
        return {
            "codes": Entry((*rows, tokens, plane_width(widths[0])), torch.uint8),
            "gains": Entry((*rows, tokens), torch.uint8),
            "ids": Entry((*rows, tokens), torch.uint8),
        }
    if config.codec == "kivi" and which == 0:
        count = -(-tokens // group) * channels
        codes, scales = (*rows, count, packed_width(group, config.whole_bits)), (*rows, 1, count)
    else:
        codes, scales = (*rows, tokens, packed_width(channels, config.whole_bits)), (*rows, channels // group, tokens)
    found = {"codes": Entry(codes, torch.uint8), "scales": Entry(scales, torch.uint8)}
    if config.codec == "kivi" or not config.symmetric:
        found["zero_points"] = Entry(scales, torch.uint8)
    if config.codec == "qvg":
        found["ids"] = Entry((*rows, config.num_stages, tokens), torch.uint8)
    return found


class RestoredSpans:
    """Spans out of tensors whose shapes are known to fit. MisfitError for values that cannot be."""

    def __init__(self, state: SavedState, read: Read):
        self._state, self._read = state, read
        self._codebooks: dict[tuple[str, ...], Codebook] = {}
        self._codewords: dict[str, tuple[Rows8, Group]] = {}
        self._bases: dict[str, Basis] = {}

    def span(self, prefix: str, which: int, tokens: int, encoded: bool) -> Span:
        """The stretch whose tensors' names begin so."""
        names, config = self._state.codebooks.get(prefix, ()), _settings(self._state.config, which)
        entries = span_entries(self._state, which, tokens, encoded, names)
        parts = {part: self._checked(f"{prefix}.{part}") for part in entries}
        if "exact" in parts:
            return ExactSpan(parts["exact"])
        if config.codec == "klt":
            transform = self._transform_codebook(names)
            _check_ids(prefix, parts["ids"], transform.codewords.values.shape[2])
            return TransformSpan(parts["codes"], parts["gains"], parts["ids"], transform)
        zero_points, bits, group = parts.get("zero_points"), config.whole_bits, config.group_size
        if config.codec == "qvg":
            centroids = self._centroids(names)
            _check_ids(prefix, parts["ids"], centroids.clusters)
            return QuantizedSpan(parts["codes"], parts["scales"], zero_points, parts["ids"], centroids, bits, group)
        per_channel = config.codec == "kivi" and which == 0
        return GroupSpan(parts["codes"], parts["scales"], zero_points, bits, group, tokens, per_channel, config.codec)

    def _centroids(self, names: tuple[str, ...]) -> KMeansCodebook:
        found = self._codebooks.get(names) or KMeansCodebook(self._checked(names[0]))
        assert isinstance(found, KMeansCodebook)
        self._codebooks[names] = found
        return found

    def _transform_codebook(self, names: tuple[str, ...]) -> TransformCodebook:
        codewords, basis = names
        if codewords not in self._codewords:
            rows = (self._checked(f"{codewords}.{part}") for part in ("centroids", "centroid_scales"))
            self._codewords[codewords] = (Rows8(*rows), Group())
        if basis not in self._bases:
            learned = self._checked(f"{basis}.basis") if self._state.directions[basis] else None
            self._bases[basis] = Basis(learned, self._checked(f"{basis}.basis_scales"), self._state.planes[basis])
        found = self._codebooks.get(names) or TransformCodebook(
            self._codewords[codewords][0], self._bases[basis], self._codewords[codewords][1]
        )
        assert isinstance(found, TransformCodebook)
        self._codebooks[names] = found
        return found

    def _checked(self, name: str) -> Tensor:
        """A tensor of the file, all of whose values are numbers."""
        tensor = self._read(name)
        if tensor.is_floating_point():
            numbers = bool(tensor.isfinite().all())
        elif name.endswith((".scales", ".zero_points", ".gains")):
            numbers = not bool(((tensor & _NO_NUMBER) == _NO_NUMBER).any())
        else:
            numbers = True
        if not numbers:
            raise MisfitError(f"{shown(name)} holds NaN or infinity")
        return tensor


def _settings(config: QVGConfig, which: int) -> QVGConfig:
    """What keys (0) or values (1) are encoded with."""
    return config if which == 0 or config.bits_v is None else config.with_changes(bits=config.bits_v)


def _check_ids(prefix: str, ids: Tensor, codewords: int) -> None:
    if ids.numel() and int(ids.max()) >= codewords:
        raise MisfitError(f"{prefix}.ids name centroid {int(ids.max())} of {codewords}")


def _text(entry: Entry) -> str:
    return f"{list(entry.shape)} {str(entry.dtype).removeprefix('torch.')}"
