"""Every four channels of a token through the matrix of its frame, as cameras see them (PRoPE, arXiv 2507.10496).

What the matrices are, `qvg/positions/projective.py` says; what reads a memory needs only how they are applied.
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

    def on(self, device: torch.device) -> Projection:
        """The same with matrices where kernels read them: float32, dense."""
        matrices = self.matrices.to(device, torch.float32).contiguous()
        return Projection(matrices, self.tokens_per_frame, self.first, self.apart)

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
