"""Encoded stretches of keys or values, and the codebooks they own or share.

All but `PartsSpan` are the memory format, fixed for good: planar codes (`kernels/packing.py`), bit planes
(`kernels/bitplanes.py`), E4M3 bytes (`kernels/e4m3.py`), eight-bit rows (`kernels/rows8.py`), uint8 ids, float16 centroids. A
span is immutable; a codebook may belong to several spans and is counted once (by its storage).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ...kernels.rows8 import Rows8, synthesis
from ...kernels.transform_codes import TransformCodes

# Puts a tensor somewhere else: on another device, into pinned memory.
Put = Callable[[Tensor], Tensor]
# By the id of a codebook, or of a part of one, what is somewhere else already.
Known = dict[int, Any]

# Tensors that count as part of another component.
_COMPONENTS = {
    "centroid_scales": "centroids",
    "basis_scales": "basis",
    "gains": "scales",
    "tensor_scales": "scales",
    "exponents": "scales",
    "outlier_places": "outliers",
    "outlier_values": "outliers",
    "mask": "ids",
    **{
        f"{prefix}_{part}": part
        for prefix in ("residual", "coefficient", "foreground", "background")
        for part in ("codes", "scales", "zero_points")
    },
}


@dataclass(frozen=True, eq=False)
class KMeansCodebook:
    """Centroids of every stage: [B, H, N, C, D] float16."""

    centroids: Tensor

    @property
    def num_stages(self) -> int:
        """k-means passes."""
        return self.centroids.shape[2]

    @property
    def clusters(self) -> int:
        """Centroids per stage."""
        return self.centroids.shape[3]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {"centroids": self.centroids}

    def put(self, put: Put) -> KMeansCodebook:
        """The same elsewhere."""
        return KMeansCodebook(put(self.centroids))


@dataclass(frozen=True, eq=False)
class Basis:
    """Where the coefficients of a residual point, and how many bits each has.

    rows    int8 [B, H, R, D], one direction per row, at most D, or None: the Hadamard matrix
    scales  float16 [B, H, R]: of each row, its coefficient's deviation included; without rows [B, H, D], of each channel
    planes  for every batch row the channels in each bit plane, see `kernels/bitplanes.py`
    """

    rows: Tensor | None
    scales: Tensor
    planes: tuple[tuple[int, ...], ...]

    @property
    def directions(self) -> int:
        """Directions that are kept; 0 for the Hadamard matrix."""
        return 0 if self.rows is None else self.rows.shape[2]

    def filled(self) -> tuple[Tensor | None, Tensor]:
        """Rows and scales with zeros for the directions that are not kept: [B, H, D, D] (or None) and [B, H, D]."""
        if self.rows is None:
            return None, self.scales
        missing = self.rows.shape[3] - self.rows.shape[2]
        if not missing:
            return self.rows, self.scales
        return torch.nn.functional.pad(self.rows, (0, 0, 0, missing)), torch.nn.functional.pad(self.scales, (0, missing))

    def synthesis(self) -> Tensor:
        """From coefficients (as row vectors) to residuals: float32 [B, H, D, D]."""
        return synthesis(*self.filled())

    def heads(self, heads: slice) -> Basis:
        """A view of some heads."""
        return Basis(None if self.rows is None else self.rows[:, heads], self.scales[:, heads], self.planes)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {"basis_scales": self.scales} | ({} if self.rows is None else {"basis": self.rows})

    def put(self, put: Put) -> Basis:
        """The same elsewhere."""
        return Basis(None if self.rows is None else put(self.rows), put(self.scales), self.planes)


class Group:
    """Identity of the spans that share codewords."""


@dataclass(frozen=True, eq=False)
class TransformCodebook:
    """Codebook of the KLT codec: codewords int8 [B, H, C, D] with float16 scales [B, H, C], and a basis for what they leave over.

    A longer codebook with the same first codewords decodes everything that a shorter one does. All codebooks of a `group` share
    their codewords (the same object), and some of them a basis.
    """

    codewords: Rows8
    basis: Basis
    group: Group

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {"centroids": self.codewords.values, "centroid_scales": self.codewords.scales, **self.basis.tensors()}

    def put(self, put: Put, known: Known | None = None) -> TransformCodebook:
        """The same elsewhere. `known`: by the id of what is here what is there already; what is new joins."""
        known = {} if known is None else known
        if id(self.codewords) not in known:
            known[id(self.codewords)] = Rows8(*(put(part) for part in self.codewords))
        return TransformCodebook(known[id(self.codewords)], put_basis(self.basis, put, known), self.group)


@dataclass(frozen=True, eq=False)
class ExactSpan:
    """Tokens kept as they are: values [B, H, S, D], 16 bits each."""

    values: Tensor

    codec = "none"
    codebook = None

    @property
    def num_tokens(self) -> int:
        """Tokens held."""
        return self.values.shape[2]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {"exact": self.values}

    def put(self, put: Put) -> ExactSpan:
        """The same elsewhere."""
        return ExactSpan(put(self.values))


@dataclass(frozen=True, eq=False)
class QuantizedSpan:
    """Tokens as centroid ids plus packed residual codes.

    codes [B, H, S, D * bits / 8], scales [B, H, G, S], zero_points like scales or None, ids [B, H, N, S]; all uint8.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None
    ids: Tensor
    codebook: KMeansCodebook
    bits: int
    group_size: int

    codec = "qvg"

    @property
    def num_tokens(self) -> int:
        """Tokens held."""
        return self.codes.shape[2]

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.codebook.centroids.shape[4]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        parts = {**self.codebook.tensors(), "ids": self.ids, "codes": self.codes, "scales": self.scales}
        return parts if self.zero_points is None else {**parts, "zero_points": self.zero_points}

    def put(self, put: Put, codebook: KMeansCodebook | None = None) -> QuantizedSpan:
        """The same elsewhere; `codebook` is the one that is there already, where several spans share it."""
        zero_points = None if self.zero_points is None else put(self.zero_points)
        codebook = codebook or self.codebook.put(put)
        return QuantizedSpan(put(self.codes), put(self.scales), zero_points, put(self.ids), codebook, self.bits, self.group_size)


@dataclass(frozen=True, eq=False)
class TransformSpan:
    """Tokens as codeword ids plus transform coefficients: codes [B, H, S, P], gains [B, H, S], ids [B, H, S]; all uint8."""

    codes: Tensor
    gains: Tensor
    ids: Tensor
    codebook: TransformCodebook

    codec = "klt"

    @property
    def num_tokens(self) -> int:
        """Tokens held."""
        return self.codes.shape[2]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {**self.codebook.tensors(), "ids": self.ids, "codes": self.codes, "gains": self.gains}

    def kept(self) -> TransformCodes:
        """The same as kernels read it."""
        book = self.codebook
        return TransformCodes(
            self.codes, self.gains, self.ids, book.codewords, book.basis.rows, book.basis.scales, book.basis.planes
        )

    def with_codewords(self, codewords: Rows8) -> TransformSpan:
        """The same tokens with codewords that have grown."""
        return replace(self, codebook=replace(self.codebook, codewords=codewords))

    def put(self, put: Put, codebook: TransformCodebook | None = None) -> TransformSpan:
        """The same elsewhere; `codebook` is the one that is there already, where several spans share it."""
        return TransformSpan(put(self.codes), put(self.gains), put(self.ids), codebook or self.codebook.put(put))


@dataclass(frozen=True, eq=False)
class GroupSpan:
    """Tokens as packed codes with a scale and a zero point per group, without centroids: what the baselines make.

    A group is a stretch of a token's channels: codes [B, H, S, D * bits / 8], scales and zero_points [B, H, D / g, S]. Or, if
    `per_channel` (KIVI's keys), one channel of g tokens, the last ones filled up: codes [B, H, R * D, g * bits / 8] for R runs of
    g tokens, scales and zero_points [B, H, 1, R * D]. All uint8.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None
    bits: int
    group_size: int
    num_tokens: int
    per_channel: bool
    codec: str
    codebook = None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        parts = {"codes": self.codes, "scales": self.scales}
        return parts if self.zero_points is None else {**parts, "zero_points": self.zero_points}

    def put(self, put: Put) -> GroupSpan:
        """The same elsewhere."""
        zero_points = None if self.zero_points is None else put(self.zero_points)
        return replace(self, codes=put(self.codes), scales=put(self.scales), zero_points=zero_points)


class Maker(Protocol):
    """The codec that a `PartsSpan` is read by."""

    name: str

    def unpacked(self, parts: Mapping[str, Tensor], tokens: slice, heads: slice) -> Tensor:
        """Tokens and heads of a span: [B, heads, tokens, D]."""


@dataclass(frozen=True, eq=False)
class PartsSpan:
    """Tokens as tensors that the codec which made them understands (`COMPARED`). Not part of the memory format, and not saved."""

    parts: Mapping[str, Tensor]
    num_tokens: int
    maker: Maker
    codebook = None

    @property
    def codec(self) -> str:
        """Its name."""
        return self.maker.name

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return dict(self.parts)

    def put(self, put: Put) -> PartsSpan:
        """The same elsewhere."""
        return replace(self, parts={name: put(tensor) for name, tensor in self.parts.items()})


Codebook = KMeansCodebook | TransformCodebook
Span = ExactSpan | QuantizedSpan | TransformSpan | GroupSpan | PartsSpan


def component(name: str) -> str:
    """What the bytes of a tensor of this name count as."""
    return _COMPONENTS.get(name, name)


def storage_bytes(spans: Iterable[Span]) -> dict[str, int]:
    """Bytes by component, each storage counted once however many tensors or spans reach it."""
    total: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    for span in spans:
        for name, tensor in span.tensors().items():
            storage = tensor.untyped_storage()
            key = (str(tensor.device), storage.data_ptr())
            if storage.nbytes() and key not in seen:
                seen.add(key)
                total[component(name)] = total.get(component(name), 0) + storage.nbytes()
    return total


def move(spans: Iterable[Span], device: torch.device | str) -> list[Span]:
    """Spans on another device; what shared a codebook still shares it."""
    return put_all(spans, lambda tensor: tensor.to(device))


def put_all(spans: Iterable[Span], put: Put) -> list[Span]:
    """Spans elsewhere; what shared a codebook, or a part of one, still shares it."""
    known: Known = {}
    return [put_span(span, put, known) for span in spans]


def put_span(span: Span, put: Put, known: Known) -> Span:
    """A span elsewhere. `known`: by the id of each codebook and part of one what is there already; what is new joins."""
    codebook = span.codebook
    if codebook is None:
        return span.put(put)
    return span.put(put, put_codebook(codebook, put, known))  # type: ignore[call-arg,arg-type]


def put_basis(basis: Basis, put: Put, known: Known) -> Basis:
    """A basis elsewhere; `known` as in `put_span`."""
    if id(basis) not in known:
        known[id(basis)] = basis.put(put)
    there: Basis = known[id(basis)]
    return there


def put_codebook(codebook: Codebook, put: Put, known: Known) -> Codebook:
    """A codebook elsewhere; `known` as in `put_span`."""
    if id(codebook) not in known:
        known[id(codebook)] = codebook.put(put, known) if isinstance(codebook, TransformCodebook) else codebook.put(put)
    there: Codebook = known[id(codebook)]
    return there
