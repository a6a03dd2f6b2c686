"""Noise levels as sines, and what they do to the tokens of a frame: shift, scale and gate (DiT, arXiv 2212.09748)."""

from __future__ import annotations

import torch
from torch import Tensor

SINES = 256


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B, F*S, W]; shift and scale [B, F, 1, W]."""
    return torch.addcmul(shift, x.unflatten(1, (shift.shape[1], -1)), 1 + scale).flatten(1, 2)


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """x [B, F*S, W], gate [B, F, 1, W]."""
    by_frame: Tensor = x.unflatten(1, (gate.shape[1], -1)) * gate
    return by_frame.flatten(1, 2)


def sines(t: Tensor) -> Tensor:
    """t [B, F] in 0..1000 -> cosines, then sines, [B, F, 256] in float32."""
    half = SINES // 2
    frequencies = 10000.0 ** -(torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def exact_sines(t: Tensor) -> Tensor:
    """The same in float64, [B, F, 256]: integer timesteps near 1000 lose 1e-5 in float32."""
    half = SINES // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float64) / half
    angles = t.double()[..., None] * 10000.0**-exponents
    return torch.cat([angles.cos(), angles.sin()], -1)
