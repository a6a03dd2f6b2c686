"""Means of paired measurements, and how sure one can be of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 10_000
_SEED = 20_260_101


class Interval(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """Percentile bootstrap over cases (Efron 1979), 10,000 resamples, private seed. One value alone has no width."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(
            f"{data.size} values with {int((~np.isfinite(data)).sum())} of them not finite; need at least one, all finite"
        )
    picks = np.random.default_rng(_SEED).integers(0, data.size, (_RESAMPLES, data.size))
    low, high = np.percentile(data[picks].mean(1), (2.5, 97.5))
    return Interval(float(data.mean()), float(low), float(high))
