"""Eight-bit rows: half a step of error, zeros stay zero, and no row overflows."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.kernels import quantize_rows


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1.0, 300.0, 1e6], ids=lambda s: f"size_{s:g}")
@pytest.mark.parametrize("channels", [1, 7, 64, 128])
def test_every_value_is_within_half_a_step(channels: int, size: float) -> None:
    """The step is at least the largest component / 127 and at most one float16 above it (2^-10, or 2^-24 where those end)."""
    x = torch.randn(2, 3, 40, channels, generator=torch.Generator().manual_seed(channels)) * size
    rows = quantize_rows(x)
    assert rows.values.dtype == torch.int8 and rows.scales.dtype == torch.float16
    assert rows.values.shape == x.shape and rows.scales.shape == x.shape[:-1]
    largest, step = x.abs().amax(-1), rows.scales.float()
    assert bool((step * 127 >= largest * (1 - 1e-6)).all()), "the largest component is clipped"
    assert bool((step <= largest / 127 * (1 + 2**-9) + 2**-24).all())
    error = (rows.dequantize() - x).abs()
    assert bool((error <= step[..., None] / 2 * (1 + 1e-5)).all())


def test_zero_rows_stay_zero() -> None:
    x = torch.zeros(1, 1, 3, 64)
    x[0, 0, 1] = 2.0
    restored = quantize_rows(x).dequantize()
    assert torch.equal(restored[0, 0, 0], x[0, 0, 0]) and torch.equal(restored[0, 0, 2], x[0, 0, 2])
    assert restored[0, 0, 1] == pytest.approx(2.0, rel=1e-3)


def test_huge_rows_saturate() -> None:
    x = torch.tensor([[3e38, -3e38, 1.0, 0.0]])
    rows = quantize_rows(x)
    assert rows.dequantize().tolist() == [[127 * 65504.0, -127 * 65504.0, 0.0, 0.0]]


def test_the_smallest_scale_is_not_zero() -> None:
    rows = quantize_rows(torch.full((1, 8), 1e-30))
    assert float(rows.scales) == 2.0**-24 and not rows.dequantize().any()


def test_bf16_and_views_are_fine() -> None:
    x = torch.randn(1, 2, 9, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole, part = quantize_rows(x), quantize_rows(x[:, 1:, 2:7])
    assert torch.equal(part.values, whole.values[:, 1:, 2:7]) and torch.equal(part.scales, whole.scales[:, 1:, 2:7])
