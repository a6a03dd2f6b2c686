"""A block's turn in torch: the truth that other backends are tested against."""

from __future__ import annotations

from torch import Tensor

from ..projective import Projection
from ..rotary import CosSin, rotate


def turned(x: Tensor, turns: CosSin | Projection) -> Tensor:
    """See `kernels.turn.turned`."""
    return turns.apply_(x.clone()) if isinstance(turns, Projection) else rotate(x, turns)
