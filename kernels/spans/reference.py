"""A tile of a memory in torch: the truth that other backends are tested against, and what runs where there is no Triton."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import bitplanes, e4m3, lloyd_max
from ..projective import Projection
from ..rotary import rotate_in_place
from ..rows8 import Rows8, synthesis
from ..transform_codes import TransformCodes

if TYPE_CHECKING:
    from ..turn import Turns
    from . import Place, SpanTable, StretchTable, Tiles

# Tokens decoded at once: temporaries stay in a processor's cache, and short spans of one codebook are decoded together.
_STEP_TOKENS = 1024


class Piece(NamedTuple):
    """Tokens of a stretch, and where they go in the tile."""

    number: int
    tokens: slice
    at: int

    @property
    def num_tokens(self) -> int:
        """How many."""
        return int(self.tokens.stop - self.tokens.start)


def decode_spans(table: SpanTable, spans: tuple[int, int], tiles: Tiles, turns: Turns | None) -> None:
    """See `kernels.spans.decode_spans`."""
    pieces = list(pieces_of(table.places, [span.num_tokens for span in table.keys], spans, tiles))
    for side, tile, own in ((table.keys, tiles.keys, turns), (table.values, tiles.values, turns_of_values(turns))):
        for some in [] if tile is None else _together(side, pieces):
            assert tile is not None
            start, count = some[0].at, sum(piece.num_tokens for piece in some)
            parts = [_cut(side[piece.number], tiles.first_head, tile.shape[1], piece.tokens) for piece in some]
            decode_codes(parts, tile[:, :, start : start + count], None if own is None else own.tokens(start, start + count))


def copy_stretches(
    table: StretchTable,
    stretches: tuple[int, int],
    tiles: Tiles,
    turns: Turns | None,
    current: tuple[Tensor, Tensor, int] | None,
) -> None:
    """See `kernels.spans.copy_stretches`."""
    pieces = list(pieces_of(table.places, [x.shape[2] for x in table.keys], stretches, tiles))
    sides = ((table.keys, tiles.keys, turns), (table.values, tiles.values, turns_of_values(turns)))
    for which, (side, tile, own) in enumerate(sides):
        if tile is None:
            continue
        heads = slice(tiles.first_head, tiles.first_head + tile.shape[1])
        for some in _runs(pieces):
            start, count = some[0].at, sum(piece.num_tokens for piece in some)
            out = tile[:, :, start : start + count]
            _gather([_some(side[piece.number], heads, piece.tokens) for piece in some], out)
            if own is not None:
                turn(out, own.tokens(start, start + count))
        if current is not None:
            x, at = (current[1] if which else current[0])[:, heads], current[2] - tiles.start
            low, high = max(0, -at), min(x.shape[2], tile.shape[2] - at)
            if low < high:
                tile[:, :, at + low : at + high].copy_(x[:, :, low:high])


def turns_of_values(turns: Turns | None) -> Projection | None:
    """What values go through where keys go through `turns`: cameras' matrices too, in the model's own order of channels."""
    return replace(turns, apart=False) if isinstance(turns, Projection) else None


def decode_codes(parts: Sequence[TransformCodes], out: Tensor, turns: Turns | None = None) -> Tensor:
    """Tokens of one codebook, behind one another, into `out` [B, H, S, D] in float32 arithmetic. -> `out`"""
    exact = out if out.dtype == torch.float32 else torch.empty(out.shape, device=out.device)
    first = parts[0]
    codewords = Rows8(*first.codewords).dequantize()
    matrix = synthesis(first.directions, first.scales)
    codes, gains, ids = (_joined(some) for some in zip(*((part.codes, part.gains, part.ids) for part in parts), strict=True))
    for batch, planes in enumerate(first.planes):
        rows = matrix[batch, :, : planes[0]]
        for start in range(0, out.shape[2], _STEP_TOKENS):
            some = slice(start, start + _STEP_TOKENS)
            target = exact[batch, :, some]
            _look_up(codewords[batch], ids[batch, :, some], target)
            levels = _levels(codes[batch, :, some], planes)
            levels *= e4m3.decode(gains[batch, :, some])[..., None]
            target.baddbmm_(levels, rows)
    if turns is not None:
        turn(exact, turns)
    return exact if exact is out else out.copy_(exact)


def pieces_of(places: Sequence[Place], counts: Sequence[int], numbers: tuple[int, int], tiles: Tiles) -> Iterator[Piece]:
    """What lies in the tiles of stretches first:stop."""
    stop = tiles.start + tiles.either.shape[2]
    for number in range(*numbers):
        first, skip = places[number]
        low, high = max(skip, tiles.start - first), min(counts[number], stop - first)
        if low < high:
            yield Piece(number, slice(low, high), first + low - tiles.start)


def _runs(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that lie behind one another in the tile."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        if runs and runs[-1][-1].at + runs[-1][-1].num_tokens == piece.at:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _together(side: Sequence[TransformCodes], pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Those of `_runs` that share a codebook, a step of tokens at a time."""
    for run in _runs(pieces):
        some: list[Piece] = []
        for piece in run:
            same = some and side[piece.number].shares_codebook(side[some[0].number])
            if some and not (same and sum(one.num_tokens for one in some) + piece.num_tokens <= _STEP_TOKENS):
                yield some
                some = []
            some.append(piece)
        yield some


def _cut(span: TransformCodes, first_head: int, heads: int, tokens: slice) -> TransformCodes:
    """Some heads' tokens of a span."""
    some = slice(first_head, first_head + heads)
    return span._replace(
        codes=span.codes[:, some, tokens],
        gains=span.gains[:, some, tokens],
        ids=span.ids[:, some, tokens],
        codewords=Rows8(*(part[:, some] for part in span.codewords)),
        directions=None if span.directions is None else span.directions[:, some],
        scales=span.scales[:, some],
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 2)


def _some(x: Tensor, heads: slice, tokens: slice) -> Tensor:
    """x[:, heads, tokens]: often x itself, and of short stretches there are hundreds."""
    whole = (heads.start, heads.stop, tokens.start, tokens.stop) == (0, x.shape[1], 0, x.shape[2])
    return x if whole else x[:, heads, tokens]


def _gather(parts: Sequence[Tensor], out: Tensor) -> None:
    """Stretches behind one another into `out`, in its dtype."""
    if len(parts) == 1:
        out.copy_(parts[0])
    else:
        out.copy_(torch.cat(list(parts), 2))


def turn(x: Tensor, turns: Turns) -> None:
    """Tokens of any dtype, turned in float32."""
    if isinstance(turns, Projection):
        turns.apply_(x)
        return
    rotation = turns.spread()
    for start in range(0, x.shape[2], _STEP_TOKENS):
        some = slice(start, start + _STEP_TOKENS)
        part = x[:, :, some]
        turned = rotate_in_place(part.float(), (rotation[0][some], rotation[1][some]))
        if turned.data_ptr() != part.data_ptr():
            part.copy_(turned)


def _look_up(codewords: Tensor, ids: Tensor, out: Tensor) -> None:
    """Codewords [H, C, D] of tokens [H, S] into out [H, S, D]."""
    for words, names, target in zip(codewords, ids.to(torch.int32), out, strict=True):
        if target.is_contiguous():
            torch.index_select(words, 0, names, out=target)
        else:
            target.copy_(words.index_select(0, names))


def _levels(codes: Tensor, planes: tuple[int, ...]) -> Tensor:
    """Levels float32 [H, S, L] of codes [H, S, P], of the channels that have bits."""
    live = planes[0]
    # A channel's place in the table of levels is its width's first one plus its code: never beyond a byte, so eight add as one.
    places = _first_places(planes, codes.device).expand(*codes.shape[:2], -1).clone(memory_format=torch.contiguous_format)
    start = 0
    for index, size in enumerate(planes):
        packed = codes[..., start // 8 : (start + size) // 8]
        eight = _eight_bits(index, codes.device).index_select(0, packed.to(torch.int32).flatten())
        places[..., : size // 8] += eight.view(packed.shape)
        start += size
    pairs = places.view(torch.int16).to(torch.int32)
    return _level_pairs(codes.device).index_select(0, pairs.flatten()).view(torch.float32).view(*codes.shape[:2], live)


@cache
def _first_places(planes: tuple[int, ...], device: torch.device) -> Tensor:
    """For every channel the place of its width's first level, eight of them as one int64: [L / 8]."""
    return ((1 << bitplanes.widths(planes, planes[0])) - 1).to(torch.uint8).view(torch.int64).to(device)


@cache
def _eight_bits(plane: int, device: torch.device) -> Tensor:
    """For every byte of a plane its eight bits, each in its place of a code, one per byte of an int64: int64 [256]."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return (bits << plane).to(torch.uint8).view(torch.int64).flatten().to(device)


@cache
def _level_pairs(device: torch.device) -> Tensor:
    """For two places in the table of levels, the first in the lower byte, both levels in one int64: [32768]."""
    table = torch.zeros(128)
    table[: len(lloyd_max.table())] = lloyd_max.table()
    first, second = torch.arange(256).clamp(max=127).repeat(128), torch.arange(128).repeat_interleave(256)
    return torch.stack([table[first], table[second]], 1).contiguous().view(torch.int64).flatten().to(device)
