"""What a block goes through on its way into attention, and its result on the way out, in one launch each: a rotation, or cameras'
matrices."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import implementation, shape_refusal
from ..projective import Projection
from ..rotary import Angles, CosSin

# What keys in memory go through. Values go through cameras' matrices, too, and are not rotated.
Turns = Angles | Projection


def turned(x: Tensor, turns: CosSin | Projection, backend: str = "auto") -> Tensor:
    """x [B, H, S, D] rotated by angles (cosines and sines, each [S, D / 2]) or through matrices; a new tensor laid out as x is.

    Triton computes in float32 and rounds once; torch rounds to x's dtype after every step of a rotation.
    """
    return implementation("turn", x, backend, shape_refusal(x.shape[-1])).turned(x, turns)  # type: ignore[no-any-return]
