"""Eight-bit attention in torch: the same roundings as the kernel's, the truth that it is tested against."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import e4m3

if TYPE_CHECKING:
    from ..transcode import Keys8, Values8

# Weights are at most 1 and E4M3 ends at 448: scaled up, small ones keep their precision.
WEIGHT_SCALE = 448.0
# Where the running maximum is taken anew; weights are rounded relative to it.
TILE_TOKENS = 1024


def attention8(q: Tensor, keys: Keys8, values: Values8, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `kernels.attention8.attention8`; lse without the common part."""
    total = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    best = torch.full((*q.shape[:-1], 1), -torch.inf, device=q.device)
    mass = torch.zeros_like(best)
    codes, scales = quantized_queries(q)
    for start in range(0, keys.values.shape[2], TILE_TOKENS):
        part, piece = keys.tokens(start, start + TILE_TOKENS), values.tokens(start, start + TILE_TOKENS)
        # Whole numbers below 2^24: exact in float32.
        logits = torch.matmul(codes, part.values.float().transpose(2, 3)) * part.scales[..., None, :] * scales
        logits = logits if bias is None else logits + bias[start : start + TILE_TOKENS]
        higher = torch.maximum(best, logits.amax(-1, keepdim=True))
        weights, rescale = torch.exp(logits - higher), torch.exp(best - higher)
        best, mass = higher, mass * rescale + weights.sum(-1, keepdim=True)
        total = total * rescale + _weighted(weights, piece)
    if not keys.values.shape[2]:
        return total.to(q.dtype), best[..., 0]
    return (total / mass).to(q.dtype), (best + mass.log())[..., 0]


def _weighted(weights: Tensor, values: Values8) -> Tensor:
    """Weights, rounded as the matrix units take them, times values."""
    if values.scales is None:
        return torch.matmul(weights.half().float(), values.values.float())
    rounded = e4m3.decode(e4m3.encode(weights * WEIGHT_SCALE)) / WEIGHT_SCALE
    return torch.matmul(rounded, e4m3.decode(values.values).transpose(2, 3)) * values.scales[:, :, None]


def quantized_queries(q: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers up to 127 (float32) and scales [B, H, Sq, 1] that include 1 / sqrt(D)."""
    scales = (q.float().abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12)
    return torch.round(q.float() / scales), scales / math.sqrt(q.shape[-1])
