"""Spans as named tensors and back, checked against what spec and config say they must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...kernels.bitplanes import check_planes
from ...kernels.bitplanes import packed_width as plane_width
from ...kernels.lloyd_max import MAX_BITS
from ...kernels.packing import packed_width
from ...kernels.rows8 import Rows8
from ..cache.spec import CacheSpec
from ..codec.span import AnyCodebook, Basis, Codebook, Dictionary, ExactSpan, GroupSpan, QuantizedSpan, Span, TransformSpan
from ..config import QVGConfig

Expected = dict[str, tuple[tuple[int, ...], torch.dtype]]


def codebook_tensors(name: str, book: AnyCodebook) -> dict[str, Tensor]:
    """Tensors of a codebook under the names they have in a file."""
    if isinstance(book, Codebook):
        return {name: book.centroids}
    return {f"{name}.{part}": tensor for part, tensor in book.tensors().items()}


def codebook_facts(book: AnyCodebook) -> Any:
    """What a file keeps of a codebook beside its tensors, as JSON."""
    return [list(planes) for planes in book.basis.planes] if isinstance(book, Dictionary) else None


def restore_codebook(name: str, tensors: Mapping[str, Tensor], facts: Any, spec: CacheSpec, config: QVGConfig) -> AnyCodebook:
    """The inverse of `codebook_tensors` and `codebook_facts`. KeyError, ValueError: something is missing or of another shape."""
    rows, channels = (spec.batch, spec.heads), spec.head_dim
    if config.codec != "klt":
        centroids = tensors[name]
        _check(name, {"": centroids}, {"": ((*rows, config.num_stages, centroids.shape[3], channels), torch.float16)})
        return Codebook(centroids)
    planes = tuple(tuple(int(size) for size in row) for row in facts)
    if len(planes) != spec.batch or len({plane_width(row) for row in planes}) != 1:
        raise ValueError(f"{name} has planes {planes} for a batch of {spec.batch}")
    for row in planes:
        check_planes(row, channels, MAX_BITS)
    parts = {part: tensors[f"{name}.{part}"] for part in ("centroids", "centroid_scales", "basis_scales")}
    words = parts["centroids"].shape[2]
    expected: Expected = {
        "centroids": ((*rows, words, channels), torch.int8),
        "centroid_scales": ((*rows, words), torch.float16),
        "basis_scales": ((*rows, channels), torch.float16),
    }
    if config.transform == "klt":
        parts["basis"] = tensors[f"{name}.basis"]
        expected["basis"] = ((*rows, channels, channels), torch.int8)
    _check(name, parts, expected)
    basis = Basis(parts.get("basis"), parts["basis_scales"], planes)
    return Dictionary(Rows8(parts["centroids"], parts["centroid_scales"]), basis)


def restore_span(
    prefix: str,
    tensors: Mapping[str, Tensor],
    book: AnyCodebook | None,
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
    if isinstance(book, Dictionary):
        return _transform_span(prefix, parts, book, spec, tokens)
    if isinstance(book, Codebook):
        return _quantized_span(prefix, parts, book, spec, values, tokens)
    return _group_span(prefix, parts, spec, values, tokens, per_channel=config.codec == "kivi" and which == 0)


def _transform_span(prefix: str, parts: Mapping[str, Tensor], book: Dictionary, spec: CacheSpec, tokens: int) -> TransformSpan:
    rows = (spec.batch, spec.heads, tokens)
    _check(
        prefix,
        parts,
        {
            "codes": ((*rows, plane_width(book.basis.planes[0])), torch.uint8),
            "gains": (rows, torch.uint8),
            "ids": (rows, torch.uint8),
        },
    )
    _check_ids(prefix, parts["ids"], book.words.values.shape[2])
    return TransformSpan(parts["codes"], parts["gains"], parts["ids"], book)


def _quantized_span(
    prefix: str, parts: Mapping[str, Tensor], book: Codebook, spec: CacheSpec, config: QVGConfig, tokens: int
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
    _check_ids(prefix, parts["ids"], book.clusters)
    part = parts["codes"], parts["scales"], parts.get("zero_points"), parts["ids"]
    return QuantizedSpan(*part, book, config.whole_bits, config.group_size)


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


def _check_ids(prefix: str, ids: Tensor, words: int) -> None:
    if ids.numel() and int(ids.max()) >= words:
        raise ValueError(f"{prefix}.ids name centroid {int(ids.max())} of {words}")
