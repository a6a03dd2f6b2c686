"""The Walsh-Hadamard matrix: a rotation that needs no storage and spreads an outlier channel over all of them."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor


@cache
def hadamard(size: int) -> Tensor:
    """Orthonormal float32 [size, size], symmetric, its own inverse. ValueError unless size is a power of two (Sylvester 1867)."""
    if size < 1 or size & (size - 1):
        raise ValueError(
            f"{size} is not a power of two, so there is no Hadamard matrix of Sylvester's kind; use another transform"
        )
    matrix: Tensor = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix / math.sqrt(size)
