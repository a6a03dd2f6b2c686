"""Bases of the `klt` codec: the directions in which what codewords leave over varies most, and the bits that each gets.

Sums run in float64: variances of one tensor differ by more than float32 can tell apart (a loud channel beside faint ones), and
what two machines add up in different orders must not become different bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ...kernels.lloyd_max import DISTORTION, MAX_BITS
from ...kernels.rows8 import Rows8, dual_rows, quantize_rows
from .klt_sizes import STEP_CHANNELS
from .klt_tables import Tables, in_float64
from .span import Basis

# A direction without energy still needs a scale to divide by: the share of the mean variance that all get.
_VARIANCE_FLOOR = 1e-6
_SMALLEST_VARIANCE = 1e-9
# Directions of equal variance could be rotated into each other by the last bit of a sum: each gets a little less than the one
# before, as a share of the mean variance in all.
_RAMP = 1e-7
# Powers of two end at 2^15 in float16.
_LARGEST_EXPONENT = 15
# More than 1 dB of error is too much for what few directions save.
_TOO_MUCH_LEFT = 10**0.1
# No channel gets more bits than the average and this many.
_EXTRA_PLANES = 3


def learn_basis(residual: Tensor, directions: int, bits: float, tables: Tables) -> Basis:
    """The `directions` loudest directions of tokens [B, H, S, D] (Karhunen-Loeve transform) and `bits` per channel among them;
    all that get bits where the others hold too much to be left out."""
    covariance = second_moments(residual)
    channels = covariance.shape[-1]
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
    ramp = _ramp(channels, covariance.device)
    variances, vectors = torch.linalg.eigh(torch.addcmul(covariance, ramp, mean[..., None]))  # ascending
    variances, vectors = variances.flip(-1), vectors.flip(-1).transpose(2, 3)
    variances = torch.maximum(variances, _VARIANCE_FLOOR * mean).clamp(min=_SMALLEST_VARIANCE)
    count = _enough(variances.cpu(), directions, bits)
    lengths = _pointing_up(variances[:, :, :count].sqrt(), vectors[:, :, :count])
    rows = quantize_rows((vectors[:, :, :count] * lengths).float())
    rows = Rows8(*(part.to(residual.device) for part in _unit_variance(rows, covariance)))
    planes = (allocate_planes(row, bits, channels) for row in _shares(tables.squares(rows).cpu()))
    return Basis(*rows, tuple(planes))


@lru_cache(maxsize=16)
def _ramp(channels: int, device: torch.device) -> Tensor:
    """What directions get as shares of the mean variance: float64 [D, D], on the diagonal."""
    return torch.diag(torch.linspace(1, 0, channels, dtype=torch.float64, device=device) * _RAMP)


def _shares(variances: Tensor) -> list[list[float]]:
    """Of every batch row, each direction's share of the variance: heads of a layer share their planes, videos of a batch do
    not."""
    shares: list[list[float]] = (variances / variances.sum(-1, keepdim=True)).mean(1).tolist()
    return shares


def _enough(variances: Tensor, directions: int, bits: float) -> int:
    """`directions`, or as many as get bits where that lowers the expected error by 1 dB in a batch row."""
    channels, count = variances.shape[-1], directions
    for row in _shares(variances):
        planes = allocate_planes(row, bits, channels)
        few = expected_error(row, allocate_planes(row[:directions], bits, channels))
        if few > _TOO_MUCH_LEFT * expected_error(row, planes):
            count = max(count, planes[0])
    return count


def fixed_basis(residual: Tensor, bits: float) -> Basis:
    """The Hadamard matrix over channels that powers of two bring to about the same spread first, so that one loud channel does
    not fill all the others; the same width for all of them, or as nearly as whole bits allow."""
    exponents = torch.round(torch.log2(_spread(residual)))
    # Beyond float16's range gains do the rest, for all channels alike.
    exponents = exponents - (exponents.amax(-1, keepdim=True) - _LARGEST_EXPONENT).clamp(min=0)
    scales = torch.exp2(exponents).half().to(residual.device)
    return Basis(None, scales, (_even_planes(bits, residual.shape[-1]),) * len(scales))


def channel_basis(residual: Tensor, bits: float) -> Basis:
    """Each direction is a channel with its own spread, the loudest first: for widths of which there is no Hadamard matrix."""
    planes = _even_planes(bits, residual.shape[-1])
    spread, order = _spread(residual).sort(dim=-1, descending=True, stable=True)
    rows = torch.nn.functional.one_hot(order, residual.shape[-1])[:, :, : planes[0]] * spread[:, :, : planes[0], None]
    values, scales = (part.to(residual.device) for part in quantize_rows(rows.float()))
    return Basis(values, scales, (planes,) * len(rows))


def _spread(x: Tensor) -> Tensor:
    """Of every channel of tokens [B, H, S, D], what float16 can hold of it at least: float64 [B, H, D]."""
    return second_moments(x).diagonal(dim1=-2, dim2=-1).sqrt().clamp(min=_SMALLEST_VARIANCE**0.5)


def _even_planes(bits: float, channels: int) -> tuple[int, ...]:
    """The same width for all channels, or as nearly as whole bits allow."""
    whole, part = divmod(round(bits * channels), channels)
    return (*[channels] * whole, *([part] if part else []))


def allocate_planes(variances: Sequence[float], bits_per_channel: float, channels: int) -> tuple[int, ...]:
    """Bit planes (see `kernels/bitplanes.py`) for coefficients of these falling variances, which share the bits of all channels.

    Reverse water-filling in whole bits: one more bit goes to the eight channels whose error it lowers most, until none is left.
    """
    energy = [sum(variances[start : start + STEP_CHANNELS]) for start in range(0, len(variances), STEP_CHANNELS)]
    total = round(bits_per_channel * channels)
    most = min(MAX_BITS, max(-(-total // channels) + _EXTRA_PLANES, -(-total // len(variances))))
    bits = [0] * len(energy)
    for _ in range(total // STEP_CHANNELS):
        gains = [
            share * (DISTORTION[width] - DISTORTION[width + 1]) if width < most else -1.0
            for share, width in zip(energy, bits, strict=True)
        ]
        bits[gains.index(max(gains))] += 1
    # Planes must nest; equal variances may have left a later channel with more bits than an earlier one.
    bits.sort(reverse=True)
    return tuple(STEP_CHANNELS * sum(width > plane for width in bits) for plane in range(bits[0]))


def expected_error(variances: Sequence[float], planes: Sequence[int]) -> float:
    """What normal coefficients of these variances lose in these planes; those without bits are lost."""
    widths = (sum(size > channel for size in planes) for channel in range(len(variances)))
    return sum(variance * DISTORTION[width] for variance, width in zip(variances, widths, strict=True))


def second_moments(x: Tensor) -> Tensor:
    """Mean outer product of tokens [B, H, S, D] -> [B, H, D, D] float64, rounded to float32's precision: two orders of summing
    give the same bits."""
    x = in_float64(x)
    return (torch.matmul(x.transpose(2, 3), x) / x.shape[2]).float().double()


def _pointing_up(lengths: Tensor, vectors: Tensor) -> Tensor:
    """Directions have no sign of their own: lengths [..., R] become [..., R, 1] with the sign that makes the largest component
    positive."""
    largest = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))
    return torch.copysign(lengths[..., None], largest)


def _unit_variance(rows: Rows8, covariance: Tensor) -> Rows8:
    """Rows scaled up where their coefficients vary by more than 1. Rounded to eight bits, a faint direction catches a little of
    the loud ones; measured by its own deviation alone, that little would be the largest coefficient of all and set the token's
    spread (up to 40 times the error on tensors of low rank)."""
    analysis = dual_rows(rows.dequantize(torch.float64))
    variances = (torch.matmul(analysis, covariance) * analysis).sum(-1)
    scales = rows.scales * variances.clamp(min=1).sqrt()
    return Rows8(rows.values, scales.clamp(max=65504).half())
