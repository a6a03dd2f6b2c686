"""What the pack's kernels move that find their tensors by tables of addresses: of every stretch the tokens that lie in the tile.

A launch gets a slice of a table; most of a tile's first and last stretch lies outside of it, and a kernel neither reads nor
writes that. So bytes follow from the numbers that the kernel itself goes by: the columns of the table, and where the tile begins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from counting_gpu import OnGpu, at_address, traffic
from torch import Tensor


class _Columns(NamedTuple):
    """Of a table's rows: how many hold addresses, how many of these lead to something of every token, and where numbers are."""

    addresses: int
    of_tokens: int
    tokens: int
    first: int
    skip: int


# By the width of a row: `SPAN_FIELDS`, `STRETCH_FIELDS` and `CODE_FIELDS` of kernels/spans and kernels/code_spans.
_BY_WIDTH = {14: _Columns(8, 3, 8, 12, 13), 7: _Columns(1, 1, 4, 5, 6), 9: _Columns(5, 4, 5, 7, 8)}
# Arguments that say a type, and that are something else where there are no turns.
_NEVER_READ, _TURNS = ("KIND",), ("COS", "SIN", "A", "B")


class Moved(NamedTuple):
    """`reads`: arguments that are read as a whole; `more`: bytes read besides; `share` of the outputs is written."""

    reads: list[Tensor]
    more: int
    share: float


def moved_by_table(named: dict[str, Any], reads: dict[str, list[Tensor]], grid: Any) -> Moved | None:
    """What a launch with the arguments `named` moves; None of a kernel that has no table. `reads`: tensors that it is given."""
    table = named.get("ROWS")
    if not isinstance(table, OnGpu) or table.inner.is_meta or table.shape[-1] not in _BY_WIDTH:
        return None
    start, count = named.get("start", 0), named.get("tokens") if "start" in named else None
    rows = grid[1] if isinstance(grid, tuple) and len(grid) > 1 else None
    sides = range(named["side"], named["side"] + grid[2]) if "side" in named else range(table.shape[0])
    more, places = 0, 0
    if table.dim() == 3:  # a table of no stretches is a number
        more, places = _of_table(table.inner, sides, rows, start, count)
    skipped = {*_NEVER_READ, *(_TURNS if named.get("TURNS", 1) == 0 else ())}
    if "current_tokens" in named:
        skipped |= {"CURRENT_KEYS", "CURRENT_VALUES"}
        own = _overlap(named["current_first"], 0, named["current_tokens"], start, count)
        places += own * len(sides)
        for name in ("CURRENT_KEYS", "CURRENT_VALUES")[sides.start : sides.stop]:
            if own:
                more += _part(named[name], rows) * own // named["current_tokens"]
    whole = [x for name, tensors in reads.items() if name not in skipped for x in tensors]
    return Moved(whole, more, 1.0 if count is None else places / (len(sides) * count))


def _of_table(table: Tensor, sides: range, rows: int | None, start: int, count: int | None) -> tuple[int, int]:
    """Bytes read, and tokens written on all sides."""
    columns, shares, places = _BY_WIDTH[table.shape[-1]], dict[int, float](), 0
    for side in sides:
        for row in table[side].tolist():
            tokens = row[columns.tokens]
            live = _overlap(row[columns.first], row[columns.skip], tokens, start, count)
            places += live
            for number, address in enumerate(row[: columns.addresses] if live else ()):
                share = live / tokens if number < columns.of_tokens else 1.0
                shares[address] = max(share, shares.get(address, 0.0))
    return int(sum(_part(at_address(address), rows) * share for address, share in shares.items())), places


def _overlap(first: int, skip: int, tokens: int, start: int, count: int | None) -> int:
    """How many of a stretch's tokens from `skip` on lie in a tile; all, where a kernel has no tile."""
    low, high = first + skip, first + tokens
    return max(0, (high if count is None else min(high, start + count)) - (low if count is None else max(low, start)))


def _part(x: Tensor, rows: int | None) -> int:
    """Bytes of some (b, h) rows: the pack's kernels have a program for every one of them along the grid's second axis."""
    every = x.shape[0] * x.shape[1] if x.dim() > 2 else 1
    return traffic([x]) if rows is None or rows >= every else traffic([x]) * rows // every
