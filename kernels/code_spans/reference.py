"""A tile of a memory of codes in torch: the truth that other backends are tested against."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from ..direct import Codes
from ..reconstruct.reference import reconstruct
from ..spans.reference import pieces_of, turn, turns_of_values
from ..transcode.reference import transcode_table

if TYPE_CHECKING:
    from ..spans import Tiles
    from ..transcode import Keys8, Values8
    from ..turn import Turns
    from . import CodeTable


def decode_code_spans(table: CodeTable, spans: tuple[int, int], tiles: Tiles, turns: Turns | None) -> None:
    """See `kernels.code_spans.decode_code_spans`."""
    pieces = list(pieces_of(table.places, [span.num_tokens for span in table.keys], spans, tiles))
    for side, tile, own in ((table.keys, tiles.keys, turns), (table.values, tiles.values, turns_of_values(turns))):
        for piece in [] if tile is None else pieces:
            assert tile is not None
            out = tile[:, :, piece.at : piece.at + piece.num_tokens]
            _decode(side[piece.number], tiles.first_head, piece.tokens, out)
            if own is not None:
                turn(out, own.tokens(piece.at, piece.at + piece.num_tokens))


def transcode_code_spans(
    table: CodeTable,
    spans: tuple[int, int],
    start: int,
    common: Tensor,
    turns: Turns | None,
    keys: Keys8,
    values: Values8,
) -> None:
    """See `kernels.code_spans.transcode_code_spans`."""
    counts = [span.num_tokens for span in table.keys]
    transcode_table(partial(decode_code_spans, table, spans), table.places, counts, spans, start, common, turns, keys, values)


def _decode(span: Codes, first_head: int, tokens: slice, out: Tensor) -> None:
    heads = slice(first_head, first_head + out.shape[1])
    zero_points = None if span.zero_points is None else span.zero_points[:, heads, :, tokens]
    codes, scales, ids = span.codes[:, heads, tokens], span.scales[:, heads, :, tokens], span.ids[:, heads, :, tokens]
    reconstruct(codes, scales, zero_points, ids, span.centroids[:, heads], span.bits, span.group_size, out, None)
