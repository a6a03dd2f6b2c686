"""Rotary embedding of the order [first halves | second halves]: channel p rotates with channel p + D/2."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Cosines and sines of every token, each [S, D / 2] float32.
CosSin = tuple[Tensor, Tensor]


class Grid(NamedTuple):
    """Where a kernel finds a token's angles in `Angles`: plain integers.

    frame     elements from one frame to the next
    first     tokens of the first frame that come before token 0
    rows, cols  tokens of a frame
    time, row, col  channel pairs that turn with each axis
    """

    frame: int
    first: int
    rows: int
    cols: int
    time: int
    row: int
    col: int


class Angles(NamedTuple):
    """The turns of `num_tokens` consecutive tokens of frames that are grids, axis by axis.

    cos and sin float32 [F, time + rows * row + cols * col]: what all tokens of a frame share, then what each row's share, then
    what each column's share. For a video of 1,560 tokens a frame that is an 80th of what `spread` makes of it.
    """

    cos: Tensor
    sin: Tensor
    rows: int
    cols: int
    pairs: tuple[int, int, int]
    first: int
    num_tokens: int

    @property
    def grid(self) -> Grid:
        """For a kernel."""
        return Grid(self.cos.stride(0), self.first, self.rows, self.cols, *self.pairs)

    @property
    def nbytes(self) -> int:
        """Of both tables."""
        return self.cos.nbytes + self.sin.nbytes

    def tokens(self, start: int, stop: int) -> Angles:
        """A view of tokens start:stop, as far as there are any."""
        stop = min(stop, self.num_tokens)
        low, per_frame = self.first + start, self.rows * self.cols
        frames = slice(low // per_frame, -(-(self.first + stop) // per_frame))
        cos, sin = self.cos[frames], self.sin[frames]
        return self._replace(cos=cos, sin=sin, first=low % per_frame, num_tokens=max(0, stop - start))

    def at(self, tokens: Tensor) -> CosSin:
        """Of some tokens, int64 [n], in any order: each [n, D/2]."""
        frame = (tokens + self.first) // (self.rows * self.cols)
        within = (tokens + self.first) % (self.rows * self.cols)
        return (
            self._looked_up(self.cos, frame, within // self.cols, within % self.cols),
            self._looked_up(self.sin, frame, within // self.cols, within % self.cols),
        )

    def _looked_up(self, table: Tensor, frame: Tensor, line: Tensor, column: Tensor) -> Tensor:
        time, row, col = self.pairs
        of_time, of_row, of_col = table.split((time, self.rows * row, self.cols * col), 1)
        return torch.cat(
            [
                of_time[frame],
                of_row.reshape(-1, row)[frame * self.rows + line] if row else of_row[frame],
                of_col.reshape(-1, col)[frame * self.cols + column] if col else of_col[frame],
            ],
            1,
        )

    def followed_by(self, others: Angles) -> Angles:
        """These tokens, which end with a frame, and behind them `others`, which begin with one."""
        return self._replace(
            cos=torch.cat([self.cos, others.cos]),
            sin=torch.cat([self.sin, others.sin]),
            num_tokens=self.num_tokens + others.num_tokens,
        )

    def spread(self) -> CosSin:
        """Of every token: each [S, D/2]."""
        return self._spread(self.cos), self._spread(self.sin)

    def _spread(self, table: Tensor) -> Tensor:
        time, row, col = self.pairs
        parts = table.split((time, self.rows * row, self.cols * col), 1)
        shape = (len(table), self.rows, self.cols, -1)
        by_axis = (
            parts[0][:, None, None],
            parts[1].unflatten(1, (self.rows, row))[:, :, None] if row else parts[1][:, None, None],
            parts[2].unflatten(1, (self.cols, col))[:, None] if col else parts[2][:, None, None],
        )
        whole = torch.cat([part.expand(shape) for part in by_axis], -1).flatten(0, 2)
        return whole[self.first : self.first + self.num_tokens]


def angles_of_tokens(rotation: CosSin) -> Angles:
    """The turns of tokens that are frames of their own."""
    cos, sin = rotation
    return Angles(cos, sin, 1, 1, (cos.shape[1], 0, 0), 0, len(cos))


def check_rotation(rotation: CosSin | None, out: Tensor) -> None:
    """Raise ValueError unless cos and sin are float32 [S, D/2] for the tokens and channels of out [B, H, S, D]."""
    shape = (out.shape[2], out.shape[3] // 2)
    if rotation is not None and any(tuple(part.shape) != shape for part in rotation):
        raise ValueError(f"cos and sin {[tuple(part.shape) for part in rotation]} must each be {shape}: tokens, head_dim / 2")


def rotate(x: Tensor, rotation: CosSin, out: Tensor | None = None) -> Tensor:
    """Rotate every channel pair of x [..., S, D] by its token's angle (RoFormer, arXiv 2104.09864). `out` must not overlap x."""
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    out = torch.empty_like(x) if out is None else out
    low, high = out.chunk(2, -1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=high).addcmul_(first, sin)
    return out


def rotate_in_place(x: Tensor, rotation: CosSin) -> Tensor:
    """CosSin every channel pair of float32 x [B, H, S, D] by its token's angle; cos and sin [S, D/2]. Returns x."""
    cos, sin = rotation
    low, high = x.chunk(2, -1)
    turned = low * sin  # one temporary: fresh pages cost more than the arithmetic
    low.mul_(cos).addcmul_(high, sin, value=-1)
    high.mul_(cos).add_(turned)
    return x
