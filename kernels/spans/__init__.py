"""Many stretches of a memory in one launch: those kept as transform coefficients, and those kept as they are.

A launch costs a GPU's host more than a span of a few thousand tokens costs the GPU. So a table says once where every span and
its codebook lie, as addresses, and a kernel finds its span in it. Nothing else is made of a codebook: kernels read its eight-bit
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import implementation, shape_refusal
from ..hadamard import hadamard
from ..lloyd_max import MAX_BITS
from ..transform_codes import TransformCodes
from ..turn import Turns

# Columns of `SpanTable.rows`, in this order: eight addresses, and six numbers.
SPAN_FIELDS = (
    "codes", "gains", "ids", "codewords", "codeword_scales", "basis", "scales", "sizes",
    "tokens", "bytes", "codeword_count", "directions", "first", "skip",
)  # fmt: skip
# Columns of `StretchTable.rows`.
STRETCH_FIELDS = ("values", "batch", "head", "token", "tokens", "first", "skip")
# Wide loads need addresses that are multiples of it; whatever torch allocates has such.
_ALIGNED_BYTES = 16


class Place(NamedTuple):
    """Where a stretch stands: the number of its first token among all visible ones, as if all its own were, and how many of them
    are not."""

    first: int
    skip: int = 0


@dataclass(frozen=True, eq=False)
class SpanTable:
    """Keys and values kept as transform coefficients, span by span, the oldest first; `places` says where each span stands."""

    keys: tuple[TransformCodes, ...]
    values: tuple[TransformCodes, ...]
    places: tuple[Place, ...]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest span."""
        return max(span.num_tokens for span in self.keys)

    @cached_property
    def planes(self) -> tuple[int, int]:
        """Bit planes of keys and of values, at most."""
        return _most_planes(self.keys), _most_planes(self.values)

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(first, stop) of consecutive spans that share the codebook of their keys and that of their values."""
        cuts = [0]
        for number in range(1, len(self.keys)):
            before, here = number - 1, number
            if not all(side[before].shares_codebook(side[here]) for side in (self.keys, self.values)):
                cuts.append(here)
        return list(zip(cuts, [*cuts[1:], len(self.keys)], strict=True))

    @cached_property
    def rows(self) -> Tensor:
        """For kernels: int64 [2, N, SPAN_FIELDS] on the spans' device, keys first."""
        self._held.clear()
        sides = [
            [_span_row(_aligned(span, self._held), place) for span, place in zip(side, self.places, strict=True)]
            for side in (self.keys, self.values)
        ]
        return torch.tensor(sides, dtype=torch.int64).to(self.keys[0].codes.device)

    @cached_property
    def _held(self) -> list[TransformCodes]:
        """Copies that addresses point to; other addresses point to the spans themselves."""
        return []


@dataclass(frozen=True, eq=False)
class StretchTable:
    """Keys and values [B, H, S, D] kept as they are, in one dtype, the oldest first; channels are dense."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    places: tuple[Place, ...]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest stretch; 0 without any."""
        return max((x.shape[2] for x in self.keys), default=0)

    @cached_property
    def rows(self) -> Tensor:
        """For kernels: int64 [2, N, STRETCH_FIELDS] on the stretches' device, keys first."""
        sides = [
            [[x.data_ptr(), *x.stride()[:3], x.shape[2], *place] for x, place in zip(side, self.places, strict=True)]
            for side in (self.keys, self.values)
        ]
        return torch.tensor(sides, dtype=torch.int64).to(self.keys[0].device)


class Tiles(NamedTuple):
    """What is filled: keys and values [B, h, T, D] of visible tokens `start`.. and of heads `first_head`.. of all; None for one
    that is not wanted."""

    keys: Tensor | None
    values: Tensor | None
    start: int
    first_head: int = 0

    @property
    def either(self) -> Tensor:
        """One of the two."""
        tile = self.values if self.keys is None else self.keys
        assert tile is not None
        return tile


def decode_spans(
    table: SpanTable, spans: tuple[int, int], tiles: Tiles, turns: Turns | None = None, backend: str = "auto"
) -> None:
    """Decode the tokens of spans first:stop of the table that lie in the tiles. `turns` (of the tiles' tokens, as many as are
    committed) rotate the keys, or project keys and values. Other tokens of the tiles are left alone."""
    module = implementation("spans", tiles.either, backend, shape_refusal(tiles.either.shape[3]))
    module.decode_spans(table, spans, tiles, turns)


def copy_stretches(
    table: StretchTable,
    stretches: tuple[int, int],
    tiles: Tiles,
    turns: Turns | None = None,
    backend: str = "auto",
    current: tuple[Tensor, Tensor, int] | None = None,
) -> None:
    """The same for stretches that are kept as they are. `current`: keys, values and the visible number of the first token of one
    more, which is not turned."""
    module = implementation("spans", tiles.either, backend, shape_refusal(tiles.either.shape[3]))
    module.copy_stretches(table, stretches, tiles, turns, current)


def _most_planes(spans: Sequence[TransformCodes]) -> int:
    return max(len(planes) for span in spans for planes in span.planes)


def _span_row(span: TransformCodes, place: Place) -> list[int]:
    basis = _signs(span.scales.shape[2], span.codes.device) if span.directions is None else span.directions
    tensors = (span.codes, span.gains, span.ids, *span.codewords, basis, span.scales)
    directions = 0 if span.directions is None else span.directions.shape[2]
    numbers = (span.num_tokens, span.codes.shape[3], span.codewords.values.shape[2], directions, *place)
    return [*(x.data_ptr() for x in tensors), plane_sizes(span.planes, span.codes.device).data_ptr(), *numbers]


def _aligned(span: TransformCodes, held: list[TransformCodes]) -> TransformCodes:
    """The span with dense tensors that begin at multiples of 16 bytes: as a rule itself."""
    codewords = type(span.codewords)(*(_dense(part) for part in span.codewords))
    directions = None if span.directions is None else _dense(span.directions)
    dense = span._replace(
        codes=_dense(span.codes), gains=_dense(span.gains), ids=_dense(span.ids), codewords=codewords,
        directions=directions, scales=_dense(span.scales),
    )  # fmt: skip
    held.append(dense)
    return dense


def _dense(x: Tensor) -> Tensor:
    x = x.contiguous()
    return x if x.data_ptr() % _ALIGNED_BYTES == 0 else x.clone()


@cache
def _signs(channels: int, device: torch.device) -> Tensor:
    """The Hadamard matrix as +-1: int8 [D, D]. Kept for good, as `plane_sizes`."""
    return hadamard(channels).sign().to(device, torch.int8)


@cache
def plane_sizes(planes: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Plane sizes of every batch row where a kernel can read them: int32 [B, 6], missing ones 0. Kept for good, because tables
    point to them: 24 bytes for every way to share bits that came up."""
    return torch.tensor([[*row, *[0] * (MAX_BITS - len(row))] for row in planes], dtype=torch.int32).to(device)
