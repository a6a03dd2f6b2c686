"""Into eight bits in torch: the truth that other backends are tested against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import e4m3
from ..direct.reference import TILE_TOKENS, decoded, rotated
from ..spans import Place, SpanTable, StretchTable, Tiles
from ..spans.reference import copy_stretches, decode_spans
from ..turn import Turns

if TYPE_CHECKING:
    from ..direct import CosSin, Stored
    from . import Keys8, Values8

SMALLEST_SCALE = 1e-12


def transcode_keys(keys: Stored, common: Tensor, rotation: CosSin | None, out: Keys8) -> None:
    """See `kernels.transcode.transcode_keys`."""
    for head, part in _tiles(*out.values.shape[1:3]):
        angles = None if rotation is None else (rotation[0][part], rotation[1][part])
        _store_keys(rotated(decoded(keys, head, part), angles), common, out, head, part)


def transcode_values(values: Stored, out: Values8) -> None:
    """See `kernels.transcode.transcode_values`."""
    heads = out.values.shape[1]
    for head, part in _tiles(heads, out.values.shape[2 if out.scales is None else 3]):
        _store_values(decoded(values, head, part), out, head, part)


def transcode_spans(
    table: SpanTable,
    spans: tuple[int, int],
    start: int,
    common: Tensor,
    turns: Turns | None,
    keys: Keys8,
    values: Values8,
) -> None:
    """See `kernels.transcode.transcode_spans`."""
    counts = [span.num_tokens for span in table.keys]
    transcode_table(partial(decode_spans, table, spans), table.places, counts, spans, start, common, turns, keys, values)


def transcode_table(
    decode: partial[None],
    places: Sequence[Place],
    counts: Sequence[int],
    spans: tuple[int, int],
    start: int,
    common: Tensor,
    turns: Turns | None,
    keys: Keys8,
    values: Values8,
) -> None:
    """Spans first:stop of a table, of `counts` tokens each, that `decode` decodes into tiles."""
    for head, part in _tiles_of(_seen(places, counts, spans, start, keys.values.shape[2]), keys.values.shape[1]):
        _transcode(decode, start, head, part, common, turns, keys, values)


def transcode_stretches(
    table: StretchTable,
    stretches: tuple[int, int],
    start: int,
    common: Tensor,
    turns: Turns | None,
    keys: Keys8,
    values: Values8,
    current: tuple[Tensor, Tensor, int] | None,
) -> None:
    """See `kernels.transcode.transcode_stretches`."""
    counts, tokens = [x.shape[2] for x in table.keys], keys.values.shape[2]
    ranges = list(_seen(table.places, counts, stretches, start, tokens))
    for head, part in _tiles_of(ranges, keys.values.shape[1]):
        _transcode(partial(copy_stretches, table, stretches, current=None), start, head, part, common, turns, keys, values)
    if current is not None:
        own = _seen([Place(current[2])], [current[0].shape[2]], (0, 1), start, tokens)
        for head, part in _tiles_of(own, keys.values.shape[1]):
            copy = partial(copy_stretches, table, (0, 0), current=current)
            _transcode(copy, start, head, part, common, None, keys, values)


def _transcode(
    decode: partial[None], start: int, head: slice, part: slice, common: Tensor, turns: Turns | None, keys: Keys8, values: Values8
) -> None:
    """Decoded tokens `part` of the outputs, of one head, into eight bits."""
    shape = (keys.values.shape[0], 1, part.stop - part.start, keys.values.shape[3])
    k, v = (torch.empty(shape, device=keys.values.device) for _ in range(2))
    decode(Tiles(k, v, start + part.start, head.start), None if turns is None else turns.tokens(part.start, part.stop))
    _store_keys(k, common, keys, head, part)
    _store_values(v, values, head, part)


def _store_keys(x: Tensor, common: Tensor, out: Keys8, head: slice, part: slice) -> None:
    x = x - common[:, head, None].float()
    scales = (x.abs().amax(-1) / 127).clamp(min=SMALLEST_SCALE)
    out.scales[:, head, part] = scales
    out.values[:, head, part] = torch.round(x / scales[..., None]).to(torch.int8)


def _store_values(x: Tensor, out: Values8, head: slice, part: slice) -> None:
    if out.scales is None:
        out.values[:, head, part] = x.clamp(-65504, 65504).half()
    else:
        out.values[:, head, :, part] = e4m3.encode((x / out.scales[:, head, None]).transpose(2, 3))


def _seen(places: Sequence[Place], counts: Sequence[int], numbers: tuple[int, int], start: int, tokens: int) -> Iterator[slice]:
    """Which tokens of the outputs some stretches hold, neighbours together."""
    low = high = 0
    for number in range(*numbers):
        first, skip = places[number]
        begin, end = max(first + skip - start, 0), min(first + counts[number] - start, tokens)
        if begin >= end:
            continue
        if begin != high and low < high:
            yield slice(low, high)
        low, high = (low if begin == high else begin), end
    if low < high:
        yield slice(low, high)


def _tiles_of(ranges: Iterator[slice] | list[slice], heads: int) -> Iterator[tuple[slice, slice]]:
    for some in ranges:
        for head, part in _tiles(heads, some.stop - some.start):
            yield head, slice(some.start + part.start, some.start + part.stop)


def _tiles(heads: int, tokens: int) -> list[tuple[slice, slice]]:
    starts = range(0, tokens, TILE_TOKENS)
    return [(slice(head, head + 1), slice(at, min(at + TILE_TOKENS, tokens))) for head in range(heads) for at in starts]
