"""Encoded stretches of keys or values, and the codebooks they own or share.

These are the memory format, fixed for good: planar codes (`kernels/packing.py`), E4M3 bytes (`kernels/e4m3.py`), uint8 ids,
float16 centroids. A span is immutable; a codebook may belong to several spans and is counted once (by its storage).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Codebook:
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

    def to(self, device: torch.device | str) -> Codebook:
        """A copy on another device."""
        return Codebook(self.centroids.to(device))


@dataclass(frozen=True, eq=False)
class ExactSpan:
    """Tokens kept as they are: values [B, H, S, D], 16 bits each."""

    values: Tensor

    codec = "none"

    @property
    def num_tokens(self) -> int:
        """Tokens held."""
        return self.values.shape[2]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by component."""
        return {"exact": self.values}

    def to(self, device: torch.device | str) -> ExactSpan:
        """A copy on another device."""
        return ExactSpan(self.values.to(device))


@dataclass(frozen=True, eq=False)
class QuantizedSpan:
    """Tokens as centroid ids plus packed residual codes.

    codes [B, H, S, D * bits / 8], scales [B, H, G, S], zero_points like scales or None, ids [B, H, N, S]; all uint8.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None
    ids: Tensor
    codebook: Codebook
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
        """Every tensor by component."""
        parts = {"centroids": self.codebook.centroids, "ids": self.ids, "codes": self.codes, "scales": self.scales}
        return parts if self.zero_points is None else {**parts, "zero_points": self.zero_points}

    def to(self, device: torch.device | str, codebook: Codebook | None = None) -> QuantizedSpan:
        """A copy on another device; `codebook` is the already moved one where several spans share it."""
        zero_points = None if self.zero_points is None else self.zero_points.to(device)
        book = codebook or self.codebook.to(device)
        codes, scales, ids = self.codes.to(device), self.scales.to(device), self.ids.to(device)
        return QuantizedSpan(codes, scales, zero_points, ids, book, self.bits, self.group_size)


Span = ExactSpan | QuantizedSpan


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
                total[name] = total.get(name, 0) + storage.nbytes()
    return total


def move(spans: Iterable[Span], device: torch.device | str) -> list[Span]:
    """Spans on another device; what shared a codebook still shares it."""
    moved: dict[int, Codebook] = {}
    result: list[Span] = []
    for span in spans:
        if isinstance(span, ExactSpan):
            result.append(span.to(device))
            continue
        if id(span.codebook) not in moved:
            moved[id(span.codebook)] = span.codebook.to(device)
        result.append(span.to(device, moved[id(span.codebook)]))
    return result
