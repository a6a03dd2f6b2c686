"""Many spans of codes in one launch, found by a table of their addresses, as `kernels.spans` does for transform coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..direct import Codes
from ..dispatch import implementation, shape_refusal
from ..spans import Place, Tiles
from ..transcode import Keys8, Values8, check_pair
from ..turn import Turns

# Columns of `CodeTable.rows`, in this order: five addresses, and four numbers.
CODE_FIELDS = ("codes", "scales", "zero_points", "ids", "centroids", "tokens", "clusters", "first", "skip")
# Wide loads need addresses that are multiples of it; whatever torch allocates has such.
_ALIGNED_BYTES = 16

# What a kernel is compiled for: bits, group size, stages, and whether groups have zero points.
CodeKind = tuple[int, int, int, bool]


def code_kind(span: Codes) -> CodeKind:
    """Spans of one table are of one kind."""
    return span.bits, span.group_size, span.ids.shape[2], span.zero_points is not None


@dataclass(frozen=True, eq=False)
class CodeTable:
    """Keys and values kept as codes, span by span, the oldest first, all of one kind; `places` says where each span stands."""

    keys: tuple[Codes, ...]
    values: tuple[Codes, ...]
    places: tuple[Place, ...]

    @property
    def kind(self) -> CodeKind:
        """Of all spans."""
        return code_kind(self.keys[0])

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest span."""
        return max(span.num_tokens for span in self.keys)

    @cached_property
    def rows(self) -> Tensor:
        """For kernels: int64 [2, N, CODE_FIELDS] on the spans' device, keys first."""
        sides = [
            [self._row(span, place) for span, place in zip(side, self.places, strict=True)] for side in (self.keys, self.values)
        ]
        return torch.tensor(sides, dtype=torch.int64).to(self.keys[0].codes.device)

    def _row(self, span: Codes, place: Place) -> list[int]:
        zero_points = span.scales if span.zero_points is None else span.zero_points
        tensors = (span.codes, span.scales, zero_points, span.ids, span.centroids)
        return [*map(self._address, tensors), span.num_tokens, span.centroids.shape[3], *place]

    def _address(self, x: Tensor) -> int:
        """Of a dense tensor that begins at a multiple of 16 bytes: as a rule x itself, otherwise a copy that is kept."""
        dense = x.contiguous()
        dense = dense if dense.data_ptr() % _ALIGNED_BYTES == 0 else dense.clone()
        if dense is not x:
            self._copies.append(dense)
        return dense.data_ptr()

    @cached_property
    def _copies(self) -> list[Tensor]:
        """What addresses point to beside the spans themselves."""
        return []


def code_table(keys: Sequence[Codes], values: Sequence[Codes], places: Sequence[Place]) -> CodeTable:
    """Raises ValueError unless all spans are of one kind."""
    kinds = {code_kind(span) for span in (*keys, *values)}
    if len(kinds) != 1:
        raise ValueError(f"spans of one table have the same bits, group size, stages and zero points, not {sorted(kinds)}")
    return CodeTable(tuple(keys), tuple(values), tuple(places))


def decode_code_spans(
    table: CodeTable, spans: tuple[int, int], tiles: Tiles, turns: Turns | None = None, backend: str = "auto"
) -> None:
    """Decode the tokens of spans first:stop of the table that lie in the tiles. `turns` (of the tiles' tokens, as many as are
    committed) rotate the keys, or project keys and values. Other tokens of the tiles are left alone."""
    refusal = shape_refusal(tiles.either.shape[3], table.keys[0].group_size)
    implementation("code_spans", tiles.either, backend, refusal).decode_code_spans(table, spans, tiles, turns)


def transcode_code_spans(
    table: CodeTable,
    spans: tuple[int, int],
    start: int,
    common: Tensor,
    turns: Turns | None,
    keys: Keys8,
    values: Values8,
    backend: str = "auto",
) -> None:
    """Spans first:stop of the table into eight bits, as `kernels.transcode.transcode_spans`."""
    check_pair(keys, values)
    refusal = shape_refusal(keys.values.shape[3], table.keys[0].group_size)
    module = implementation("code_spans", keys.values, backend, refusal)
    module.transcode_code_spans(table, spans, start, common, turns, keys, values)
