"""How much a frame matters: how far it is from the one before, and how new it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Shares of a frame's change and of its age in its score (arXiv 2603.27469).
CHANGE, RECENCY = 0.7, 0.3


def summary(keys: Tensor, values: Tensor) -> Tensor:
    """Of keys and values [B, H, S, D] of one frame: mean absolute value of each head's, float32 [H]."""
    return keys.float().abs().mean((0, 2, 3)) + values.float().abs().mean((0, 2, 3))


def change(now: Tensor, before: Tensor | None) -> float:
    """Relative difference of two summaries; 1 without one before."""
    if before is None:
        return 1.0
    return float((now - before).abs().mean() / before.abs().mean().clamp(min=1e-6))


def scores(changes: Sequence[float]) -> list[float]:
    """Of frames with these changes, oldest first."""
    last = max(len(changes) - 1, 1)
    return [CHANGE * value + RECENCY * number / last for number, value in enumerate(changes)]


def profile(changes: Sequence[float], least: float = 0.7, most: float = 1.3) -> tuple[float, ...]:
    """Budgets of layers from how much old frames change in each: the calmest layer gets `least`, the liveliest `most`."""
    values = torch.tensor(changes, dtype=torch.float64)
    spread = float(values.max() - values.min())
    even = (values - values.min()) / spread if spread > 0 else torch.full_like(values, 0.5)
    return tuple((least + (most - least) * even).tolist())
