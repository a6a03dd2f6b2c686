"""Spans as named tensors and back, checked against what spec and config say they must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.bitplanes import check_planes
from ...kernels.bitplanes import packed_width as plane_width
from ...kernels.kmeans import MAX_CLUSTERS
from ...kernels.lloyd_max import MAX_BITS
from ...kernels.packing import packed_width
from ...kernels.rows8 import Rows8
from ..cache.spec import CacheSpec
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

Expected = dict[str, tuple[tuple[int, ...], torch.dtype]]


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


class RestoredCodebooks:
    """The inverse. KeyError, TypeError, ValueError: something is missing or of another shape."""

    def __init__(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], spec: CacheSpec, config: QVGConfig):
        self._tensors, self._spec, self._config = tensors, spec, config
        self._planes = state["planes"] if "planes" in state else state.get("codebook_facts", {})
        every = spec.head_dim if config.transform == "klt" else 0
        self._directions = state.get("directions", dict.fromkeys(self._planes, every))
        self._codebooks: dict[tuple[str, ...], Codebook] = {}
        self._codewords: dict[str, tuple[Rows8, Group]] = {}
        self._bases: dict[str, Basis] = {}

    def codebook(self, names: Sequence[str] | str) -> Codebook:
        """A codebook by the names of its parts. A single name: as the first version of the format has it."""
        key = (names, names) if isinstance(names, str) else tuple(names)
        if key not in self._codebooks:
            self._codebooks[key] = self._restored(*key) if self._config.codec == "klt" else self._codebook(key[0])
        return self._codebooks[key]

    def _restored(self, codewords: str, basis: str) -> TransformCodebook:
        if codewords not in self._codewords:
            self._codewords[codewords] = (self._restored_codewords(codewords), Group())
        if basis not in self._bases:
            self._bases[basis] = self._restored_basis(basis)
        return TransformCodebook(self._codewords[codewords][0], self._bases[basis], self._codewords[codewords][1])

    def _codebook(self, name: str) -> KMeansCodebook:
        centroids, spec = self._tensors[name], self._spec
        shape = (spec.batch, spec.heads, self._config.num_stages, centroids.shape[3], spec.head_dim)
        _check(name, {"": centroids}, {"": (shape, torch.float16)})
        return KMeansCodebook(centroids)

    def _restored_codewords(self, name: str) -> Rows8:
        rows = (self._spec.batch, self._spec.heads)
        parts = {part: self._tensors[f"{name}.{part}"] for part in ("centroids", "centroid_scales")}
        count = parts["centroids"].shape[2]
        expected: Expected = {
            "centroids": ((*rows, count, self._spec.head_dim), torch.int8),
            "centroid_scales": ((*rows, count), torch.float16),
        }
        _check(name, parts, expected)
        if not 1 <= count <= MAX_CLUSTERS:
            raise ValueError(f"{name} has {count} codewords, but ids of one byte name 1 to {MAX_CLUSTERS}")
        return Rows8(parts["centroids"], parts["centroid_scales"])

    def _restored_basis(self, name: str) -> Basis:
        rows, channels = (self._spec.batch, self._spec.heads), self._spec.head_dim
        planes = tuple(tuple(int(size) for size in row) for row in self._planes[name])
        if len(planes) != self._spec.batch or len({plane_width(row) for row in planes}) != 1:
            raise ValueError(f"{name} has planes {planes} for a batch of {self._spec.batch}")
        learned = self._tensors.get(f"{name}.basis")
        count = channels if learned is None else learned.shape[2]
        if self._directions[name] != (0 if learned is None else count):
            raise ValueError(f"{name} has {0 if learned is None else count} directions, but must have {self._directions[name]}")
        for row in planes:
            check_planes(row, min(count, channels), MAX_BITS)
        parts = {"basis_scales": self._tensors[f"{name}.basis_scales"]}
        expected: Expected = {"basis_scales": ((*rows, count), torch.float16)}
        if learned is not None:
            parts["basis"], expected["basis"] = learned, ((*rows, count, channels), torch.int8)
        _check(name, parts, expected)
        return Basis(learned, parts["basis_scales"], planes)


def restore_span(
    prefix: str,
    tensors: Mapping[str, Tensor],
    codebook: Codebook | None,
    spec: CacheSpec,
    config: QVGConfig,
    tokens: int,
    which: int,
) -> Span:
    """A span from the tensors of a file whose names start with `prefix`; which = 0 for keys, 1 for values. Raises as above."""
    parts = {name.removeprefix(prefix + "."): tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}
    values = config if which == 0 or config.bits_v is None else config.with_changes(bits=config.bits_v)
    if "exact" in parts:
        _check(prefix, parts, {"exact": ((spec.batch, spec.heads, tokens, spec.head_dim), spec.dtype)})
        return ExactSpan(parts["exact"])
    if isinstance(codebook, TransformCodebook):
        return _transform_span(prefix, parts, codebook, spec, tokens)
    if isinstance(codebook, KMeansCodebook):
        return _quantized_span(prefix, parts, codebook, spec, values, tokens)
    return _group_span(prefix, parts, spec, values, tokens, per_channel=config.codec == "kivi" and which == 0)


def _transform_span(
    prefix: str, parts: Mapping[str, Tensor], codebook: TransformCodebook, spec: CacheSpec, tokens: int
) -> TransformSpan:
    rows = (spec.batch, spec.heads, tokens)
    _check(
        prefix,
        parts,
        {
            "codes": ((*rows, plane_width(codebook.basis.planes[0])), torch.uint8),
            "gains": (rows, torch.uint8),
            "ids": (rows, torch.uint8),
        },
    )
    _check_ids(prefix, parts["ids"], codebook.codewords.values.shape[2])
    return TransformSpan(parts["codes"], parts["gains"], parts["ids"], codebook)


def _quantized_span(
    prefix: str, parts: Mapping[str, Tensor], codebook: KMeansCodebook, spec: CacheSpec, config: QVGConfig, tokens: int
) -> QuantizedSpan:
    rows, scales = (spec.batch, spec.heads), (spec.batch, spec.heads, spec.head_dim // config.group_size, tokens)
    expected: Expected = {
        "codes": ((*rows, tokens, packed_width(spec.head_dim, config.whole_bits)), torch.uint8),
        "scales": (scales, torch.uint8),
        "ids": ((*rows, config.num_stages, tokens), torch.uint8),
    }
    if not config.symmetric:
        expected["zero_points"] = (scales, torch.uint8)
    _check(prefix, parts, expected)
    _check_ids(prefix, parts["ids"], codebook.clusters)
    part = parts["codes"], parts["scales"], parts.get("zero_points"), parts["ids"]
    return QuantizedSpan(*part, codebook, config.whole_bits, config.group_size)


def _group_span(
    prefix: str, parts: Mapping[str, Tensor], spec: CacheSpec, config: QVGConfig, tokens: int, per_channel: bool
) -> GroupSpan:
    rows, channels, group, bits = (spec.batch, spec.heads), spec.head_dim, config.group_size, config.whole_bits
    if per_channel:
        count = -(-tokens // group) * channels
        codes, scales = (*rows, count, packed_width(group, bits)), (*rows, 1, count)
    else:
        codes, scales = (*rows, tokens, packed_width(channels, bits)), (*rows, channels // group, tokens)
    expected: Expected = {"codes": (codes, torch.uint8), "scales": (scales, torch.uint8)}
    if config.codec == "kivi" or not config.symmetric:
        expected["zero_points"] = (scales, torch.uint8)
    _check(prefix, parts, expected)
    return GroupSpan(parts["codes"], parts["scales"], parts.get("zero_points"), bits, group, tokens, per_channel, config.codec)


def _check(prefix: str, parts: Mapping[str, Tensor], expected: Expected) -> None:
    """KeyError where a tensor is missing, ValueError where one is not what it should be."""
    for name, (shape, dtype) in expected.items():
        tensor = parts[name]
        if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
            raise ValueError(f"{prefix}.{name} is {tuple(tensor.shape)} {tensor.dtype}, expected {shape} {dtype}")


def _check_ids(prefix: str, ids: Tensor, codewords: int) -> None:
    if ids.numel() and int(ids.max()) >= codewords:
        raise ValueError(f"{prefix}.ids name centroid {int(ids.max())} of {codewords}")
