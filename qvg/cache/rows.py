"""Which tokens became rows of a cache that merges, how many each row stands for, and where it is: six bytes a row, once for all
layers and heads.

A row is a token that was kept. A later token that looks like the row kept at its place is counted there (`merge.py`). Softmax
cannot tell m equal keys from one whose logit is log m higher (FAST-AR, arXiv 2602.01801, lemma 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..positions.frames import Origin
from ..positions.rope import GridRope

# Two bytes count so many; a row that is full is kept as it is, and the next token at its place begins another one.
MOST_COUNT = 65_535
ROW_BYTES = 6
# Places closer than that are one: what is left of a path's rounding.
_PLACES_PER_TOKEN = 256


class Rows:
    """The rows of a cache, in the order in which they were begun.

    tokens  int32 [S]: frame * tokens per frame + place in the frame of the token that a row's position comes from; frames are
            counted from the video's first
    counts  uint16 [S]: tokens that each row stands for
    """

    def __init__(self, rope: GridRope, moves: bool = True):
        self.rope, self._moves = rope, moves
        self.tokens, self.counts = torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.uint16)
        # The newest row at every place. An index in the program's own memory, made anew when a cache is loaded.
        self._places: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of tokens and counts."""
        return self.tokens.nbytes + self.counts.nbytes

    @property
    def counted(self) -> int:
        """Tokens that all rows stand for."""
        return int(self.counts.to(torch.int64).sum())

    def candidates(self, origin: Origin) -> Tensor:
        """For every token of a frame the row kept at its place, -1 where there is none or it is full: int64 [T]."""
        found = torch.tensor([self._places.get(place, -1) for place in self._frame(origin)])
        full = self.counts[found.clamp(min=0)].to(torch.int32) == MOST_COUNT if len(self) else found < 0
        return torch.where(full, -1, found)

    def take(self, frame: int, origin: Origin, rows: Tensor) -> None:
        """A frame's tokens join: `rows` int64 [T] names the row that each is counted in, -1 for a new one."""
        first, begun = frame * self.rope.tokens_per_frame, (rows < 0).nonzero()[:, 0]
        counted = (rows >= 0).nonzero()[:, 0]
        hit = rows[counted]
        # torch writes no uint16 by index; the bits are the same.
        self.counts.view(torch.int16)[hit] = (self.counts[hit].to(torch.int32) + 1).to(torch.uint16).view(torch.int16)
        if self._moves:
            self.tokens[hit] = (first + counted).to(torch.int32)
        places = self._frame(origin)
        for row, token in enumerate(begun.tolist(), len(self)):
            self._places[places[token]] = row
        self.tokens = torch.cat([self.tokens, (first + begun).to(torch.int32)])
        self.counts = torch.cat([self.counts, torch.ones(len(begun), dtype=torch.int32).to(torch.uint16)])

    def restore(self, tokens: Tensor, counts: Tensor, origins: Sequence[Origin]) -> None:
        """Take over rows from a file; `origins` of all frames from the first on."""
        self.tokens, self.counts = tokens, counts
        _, lines, columns = self.positions(origins).unbind(1)
        places = zip(_rounded(lines), _rounded(columns), strict=True)
        self._places = {place: row for row, place in enumerate(places)}  # the last one at a place is the newest

    def positions(self, origins: Sequence[Origin]) -> Tensor:
        """Time, row and column of every row: float32 [S, 3]. `origins` of all frames from the first on."""
        return token_positions(self.rope, origins, self.tokens)

    def _frame(self, origin: Origin) -> list[tuple[int, int]]:
        """The place of every token of a frame."""
        _, line, column = origin
        lines = [round((line + step) * _PLACES_PER_TOKEN) for step in range(self.rope.grid_rows)]
        columns = [round((column + step) * _PLACES_PER_TOKEN) for step in range(self.rope.grid_cols)]
        return [(row, col) for row in lines for col in columns]


def _rounded(places: Tensor) -> list[int]:
    """Of float32 positions; a path's rounding may differ from that of float64 far out, where tokens are hardly told apart."""
    rounded: list[int] = (places.double() * _PLACES_PER_TOKEN).round().to(torch.int64).tolist()
    return rounded


def token_positions(rope: GridRope, origins: Sequence[Origin], tokens: Tensor) -> Tensor:
    """Time, row and column of some tokens, by their numbers among all tokens of frames at these origins: float32 [n, 3]."""
    tokens = tokens.to(torch.int64)
    within = tokens % rope.tokens_per_frame
    step = torch.stack([torch.zeros_like(within), within // rope.grid_cols, within % rope.grid_cols], 1)
    return torch.tensor(origins, dtype=torch.float32).reshape(-1, 3)[tokens // rope.tokens_per_frame] + step
