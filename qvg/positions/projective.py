"""Projective positional encoding: attention between tokens of different cameras, in coordinates of the cameras (PRoPE, arXiv
2507.10496).

P takes the world into a camera's picture: its focal lengths times its view matrix. Heads are read as groups of four channels,
homogeneous coordinates all of them, and a token of camera i is transformed

    query  P_i^T q     key  P_i^-1 k     value  P_i^-1 v     output  P_i out

so that a score is q P_i P_j^-1 k: it knows only how camera j stands towards camera i. Principal points are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...kernels.projective import Projection
from ...kernels.turn import turned


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

    def on(self, device: torch.device) -> Projector:
        """The same with matrices on a device: copied there once, though every layer asks."""
        if device not in self._elsewhere:
            there = Projector(self.to_picture.to(device), self.to_world.to(device), self.tokens_per_frame, self.apart)
            self._elsewhere[device] = there
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, Projector]:
        return {}

    @cached_property
    def _of_queries(self) -> Tensor:
        """Transposed P of the block's frames, dense, as kernels read it."""
        return self.to_picture.mT.contiguous()

    def block(self, q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the block on their way into attention; new tensors."""
        to_world = self.to_world[len(self.to_world) - len(self.to_picture) :]
        queries = project(q, self._of_queries, self.apart, backend)
        return queries, project(k, to_world, self.apart, backend), project(v, to_world, backend=backend)

    def encoding(self, which: int, start: int, stop: int) -> Projection:
        """What keys (0) or values (1) of the tokens start:stop of the memory go through."""
        return Projection(self.to_world, self.tokens_per_frame, apart=self.apart and which == 0).tokens(start, stop)

    def leave(self, out: Tensor, backend: str = "auto") -> Tensor:
        """Attention's output back in the world."""
        return project(out, self.to_picture, backend=backend)


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


def project(x: Tensor, matrices: Tensor, apart: bool = False, backend: str = "auto") -> Tensor:
    """Every four channels of x [B, H, S, D] times the matrix of their token's frame; matrices [F, 4, 4], S = F equal parts."""
    return turned(x, Projection(matrices.float(), x.shape[2] // len(matrices), apart=apart), backend)
