"""Levels that quantize a standard normal variable with the least squared error (Lloyd 1957, Max 1960), at 1 to 6 bits.

Computed once by Lloyd's iteration to 1e-10 and kept as numbers, so that every device and every file means the same levels; a
test computes them again. Levels are symmetric around zero: only the positive half is written down.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

MAX_BITS = 6

_POSITIVE = {
    1: (0.797885,),
    2: (0.452780, 1.510418),
    3: (0.245094, 0.756005, 1.343909, 2.151946),
    4: (0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732590),
    5: (
        0.065890,
        0.198052,
        0.331378,
        0.466700,
        0.604934,
        0.747136,
        0.894565,
        1.048783,
        1.211804,
        1.386340,
        1.576228,
        1.787233,
        2.028728,
        2.317739,
        2.691120,
        3.260732,
    ),
    6: (
        0.033410,
        0.100278,
        0.167297,
        0.234567,
        0.302193,
        0.370283,
        0.438950,
        0.508314,
        0.578503,
        0.649656,
        0.721922,
        0.795468,
        0.870477,
        0.947155,
        1.025736,
        1.106488,
        1.189720,
        1.275794,
        1.365141,
        1.458276,
        1.555831,
        1.658589,
        1.767542,
        1.883977,
        2.009611,
        2.146810,
        2.298981,
        2.471305,
        2.672274,
        2.917407,
        3.240437,
        3.744101,
    ),
}

# Mean squared error at 0 to 6 bits, as a share of the variance.
DISTORTION = (1.0, 0.3633802, 0.1174818, 0.0345478, 0.0095010, 0.0025047, 0.0006442)


@cache
def levels(bits: int) -> tuple[float, ...]:
    """All 2**bits levels, ascending."""
    positive = _POSITIVE[bits]
    return (*(-level for level in reversed(positive)), *positive)


@cache
def thresholds(bits: int) -> tuple[float, ...]:
    """Borders between neighbouring levels: 2**bits - 1 midpoints, ascending."""
    values = levels(bits)
    return tuple((low + high) / 2 for low, high in pairwise(values))


@cache
def table() -> Tensor:
    """Levels of 0, 1, ... MAX_BITS bits behind one another, float32: code c of b bits is at 2**b - 1 + c. Zero bits mean 0."""
    return torch.tensor([0.0, *(level for bits in range(1, MAX_BITS + 1) for level in levels(bits))])


@cache
def border_table() -> Tensor:
    """Borders laid out as `table` is: border i of b bits is at 2**b - 1 + i; the last place of each width is empty (infinity)."""
    inf = float("inf")
    return torch.tensor([inf, *(border for bits in range(1, MAX_BITS + 1) for border in (*thresholds(bits), inf))])
