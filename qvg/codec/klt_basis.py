"""Bases of the `klt` codec: the directions in which what codewords leave over varies most, and the bits that each gets.

Sums run in float64: variances of one tensor differ by more than float32 can tell apart (a loud channel beside faint ones), and
what two machines add up in different orders must not become different bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.lloyd_max import DISTORTION, MAX_BITS
from ...kernels.rows8 import Rows8, dual_rows, quantize_rows
from .klt_sizes import STEP_CHANNELS
from .span import Basis

# A direction without energy still needs a scale to divide by: the share of the mean variance that all get.
_VARIANCE_FLOOR = 1e-6
_SMALLEST_VARIANCE = 1e-9
# Directions of equal variance could be turned into each other by the last bit of a sum: each gets a little less than the one
# before, as a share of the mean variance in all.
_RAMP = 1e-7
# No channel gets more bits than the average and this many.
_EXTRA_PLANES = 3


def learn_basis(residual: Tensor, directions: int, bits: float) -> Basis:
    """The `directions` loudest directions of tokens [B, H, S, D] (Karhunen-Loeve transform) and `bits` per channel among them."""
    covariance = second_moments(residual)
    channels = covariance.shape[-1]
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
    ramp = torch.linspace(1, 0, channels, dtype=covariance.dtype, device=covariance.device) * _RAMP * mean
    variances, vectors = torch.linalg.eigh(covariance + torch.diag_embed(ramp))  # ascending
    variances, vectors = variances.flip(-1), vectors.flip(-1).transpose(2, 3)
    variances = torch.maximum(variances, _VARIANCE_FLOOR * mean).clamp(min=_SMALLEST_VARIANCE)
    vectors = _pointing_up(vectors[:, :, :directions])
    rows = quantize_rows((vectors * variances[:, :, :directions].sqrt()[..., None]).float())
    rows = Rows8(*(part.to(residual.device) for part in _unit_variance(rows, covariance)))
    # Heads of a layer share their planes; videos of a batch do not, so that none depends on what is made beside it.
    shares = rows.dequantize().square().sum(-1)
    shares = (shares / shares.sum(-1, keepdim=True)).mean(1)
    total = round(bits * channels)
    return Basis(*rows, tuple(allocate_planes(row, total) for row in shares.tolist()))


def fixed_basis(residual: Tensor, bits: float) -> Basis:
    """The Hadamard matrix over channels that powers of two bring to about the same spread first, so that one loud channel does
    not fill all the others; the same width for all of them, or as nearly as whole bits allow."""
    channels = residual.shape[-1]
    spread = second_moments(residual).diagonal(dim1=-2, dim2=-1).sqrt().clamp(min=_SMALLEST_VARIANCE**0.5)
    scales = torch.exp2(torch.round(torch.log2(spread))).clamp(max=32768.0).half().to(residual.device)
    whole, part = divmod(round(bits * channels), channels)
    planes = (*[channels] * whole, *([part] if part else []))
    return Basis(None, scales, (planes,) * len(scales))


def allocate_planes(variances: Sequence[float], total_bits: int) -> tuple[int, ...]:
    """Bit planes (see `kernels/bitplanes.py`) for coefficients of these falling variances, `total_bits` bits per token in all.

    Reverse water-filling in whole bits: one more bit goes to the eight channels whose error it lowers most, until none is left.
    """
    energy = [sum(variances[start : start + STEP_CHANNELS]) for start in range(0, len(variances), STEP_CHANNELS)]
    most = min(MAX_BITS, -(-total_bits // len(variances)) + _EXTRA_PLANES)
    bits = [0] * len(energy)
    for _ in range(total_bits // STEP_CHANNELS):
        gains = [
            share * (DISTORTION[width] - DISTORTION[width + 1]) if width < most else -1.0
            for share, width in zip(energy, bits, strict=True)
        ]
        bits[gains.index(max(gains))] += 1
    # Planes must nest; equal variances may have left a later channel with more bits than an earlier one.
    bits.sort(reverse=True)
    return tuple(STEP_CHANNELS * sum(width > plane for width in bits) for plane in range(bits[0]))


def second_moments(x: Tensor) -> Tensor:
    """Mean outer product of tokens [B, H, S, D] -> [B, H, D, D] float64, rounded to float32's precision: two orders of summing
    give the same bits."""
    x = (x.cpu() if x.device.type == "mps" else x).double()  # Apple's GPUs have no float64
    return (torch.matmul(x.transpose(2, 3), x) / x.shape[2]).float().double()


def _pointing_up(vectors: Tensor) -> Tensor:
    """Directions have no sign of their own: the largest component is made positive."""
    largest = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)


def _unit_variance(rows: Rows8, covariance: Tensor) -> Rows8:
    """Rows scaled up where their coefficients vary by more than 1. Rounded to eight bits, a faint direction catches a little of
    the loud ones; measured by its own deviation alone, that little would be the largest coefficient of all and set the token's
    spread (up to 40 times the error on tensors of low rank)."""
    analysis = dual_rows(rows.dequantize().double())
    variances = (torch.matmul(analysis, covariance) * analysis).sum(-1)
    scales = rows.scales.double() * variances.clamp(min=1).sqrt()
    return Rows8(rows.values, scales.clamp(max=65504).half())
