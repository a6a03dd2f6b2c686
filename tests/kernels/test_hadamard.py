"""A rotation that is its own inverse; sizes that have none are refused."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.kernels.hadamard import hadamard


@pytest.mark.parametrize("size", [1, 2, 64, 128, 256])
def test_is_orthonormal_symmetric_and_flat(size: int) -> None:
    matrix = hadamard(size)
    assert matrix.dtype == torch.float32 and torch.equal(matrix, matrix.T)
    assert torch.allclose(matrix @ matrix, torch.eye(size), atol=1e-5)
    assert torch.allclose(matrix.abs(), torch.full((size, size), size**-0.5))


@pytest.mark.parametrize("size", [0, -4, 3, 96])
def test_refuses_what_is_not_a_power_of_two(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} is not a power of two.*use another transform"):
        hadamard(size)
