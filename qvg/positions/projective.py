"""Projective positional encoding: attention between tokens of different cameras, in coordinates of the cameras (PRoPE, arXiv
2507.10496).

P takes the world into a camera's picture: its focal lengths times its view matrix. Heads are read as groups of four channels,
homogeneous coordinates all of them, and a token of camera i is transformed

    query  P_i^T q     key  P_i^-1 k     value  P_i^-1 v     output  P_i out

so that a score is q P_i P_j^-1 k: it knows only how camera j stands towards camera i. Principal points are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 4

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Projection:
    """Matrices [F, 4, 4] of consecutive frames, for tokens `first`.. of the first of them on.

    `apart` says that the channels to be transformed went through `rope.pairs_apart` before.
    """

    matrices: Tensor
    tokens_per_frame: int
    first: int = 0
    apart: bool = False

    def tokens(self, start: int, stop: int) -> Projection:
        """The projection of tokens start:stop."""
        low, high = self.first + start, self.first + stop
        frame = low // self.tokens_per_frame
        matrices = self.matrices[frame : -(-high // self.tokens_per_frame)]
        return Projection(matrices, self.tokens_per_frame, low - frame * self.tokens_per_frame, self.apart)

    def apply_(self, x: Tensor) -> Tensor:
        """Transform x [B, H, S, D] in place, in float32 arithmetic; takes two float32 copies of a few thousand tokens for a
        moment."""
        matrices, start, frame = self.matrices.to(x.device), 0, 0
        while start < x.shape[2]:
            within = self.first if start == 0 else 0
            count = min(self.tokens_per_frame - within, x.shape[2] - start)
            frames = 1
            if count == self.tokens_per_frame:
                frames = max(1, min(_TOKENS_AT_ONCE, x.shape[2] - start) // count)
            part = x[:, :, start : start + frames * count]
            by_frame = part.float().unflatten(2, (frames, count))
            part.copy_(_transform(by_frame, matrices[frame : frame + frames], self.apart).flatten(2, 3))
            start, frame = start + frames * count, frame + frames
        return x


@dataclass(frozen=True)
class Projector:
    """The cameras of a block and of the memory that it attends to, for `KVCache.attend_projected`.

    to_picture  P of the block's frames [F, 4, 4]
    to_world    P^-1 of the frames in memory, oldest first, and then of the block's [K + F, 4, 4]
    apart       queries and keys went through `rope.pairs_apart`; values never do
    """

    to_picture: Tensor
    to_world: Tensor
    tokens_per_frame: int
    apart: bool = False

    @property
    def frames(self) -> int:
        """In memory and in the block."""
        return len(self.to_world)

    def block(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the block on their way into attention; new tensors."""
        to_world = self.to_world[len(self.to_world) - len(self.to_picture) :]
        queries = project(q, self.to_picture.mT, self.apart)
        return queries, project(k, to_world, self.apart), project(v, to_world)

    def encoding(self, which: int, start: int, stop: int) -> Projection:
        """What keys (0) or values (1) of the tokens start:stop of the memory go through."""
        return Projection(self.to_world, self.tokens_per_frame, apart=self.apart and which == 0).tokens(start, stop)

    def leave(self, out: Tensor) -> Tensor:
        """Attention's output back in the world."""
        return project(out, self.to_picture)


def projection_matrices(views: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """P and its inverse of cameras. views [F, 4, 4] world-to-camera, rigid; intrinsics [F, 3, 3] normalised. -> each [F, 4, 4]

    The inverse is put together from the transposed rotation and the inverse focal lengths; give float64 for full precision.
    """
    one = torch.ones_like(views[:, 0, 0])
    focal = torch.stack([intrinsics[:, 0, 0].to(views), intrinsics[:, 1, 1].to(views), one, one], -1)
    turn = views[:, :3, :3].transpose(1, 2)
    inverse = torch.zeros_like(views)
    inverse[:, :3, :3] = turn
    inverse[:, :3, 3] = -(turn @ views[:, :3, 3:]).squeeze(-1)
    inverse[:, 3, 3] = 1
    return focal[:, :, None] * views, inverse / focal[:, None, :]


def project(x: Tensor, matrices: Tensor, apart: bool = False) -> Tensor:
    """Every four channels of x [B, H, S, D] times the matrix of their token's frame; matrices [F, 4, 4], S = F equal parts."""
    return Projection(matrices.float(), x.shape[2] // len(matrices), apart=apart).apply_(x.clone())


def _transform(x: Tensor, matrices: Tensor, apart: bool) -> Tensor:
    """x [B, H, F, T, D] float32, matrices [F, 4, 4]."""
    matrices = matrices.to(x)
    if not apart:
        groups: Tensor = x.flatten(3).unflatten(-1, (-1, GROUP))
        return (groups @ matrices.mT).view_as(x)
    # Neighbours (2i, 2i + 1) lie at (i, i + D/2): channel 2b + a of group g is at (a, g, b) of (2, D/4, 2).
    halves = x.unflatten(-1, (2, -1, 2))
    projected: Tensor = torch.einsum("fbapq,...ftqgp->...ftagb", matrices.unflatten(1, (2, 2)).unflatten(3, (2, 2)), halves)
    return projected.flatten(-3)
