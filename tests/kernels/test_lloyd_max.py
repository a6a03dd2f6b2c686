"""The levels that are written down are the ones that Lloyd's iteration ends at, and their error is the integral."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from comfyui_qvg.kernels import lloyd_max
from scipy.integrate import quad
from scipy.stats import norm

WIDTHS = range(1, lloyd_max.MAX_BITS + 1)


def _positive_levels(bits: int) -> np.ndarray:
    """Lloyd's iteration on the positive half, until nothing moves by 1e-9."""
    levels = norm.ppf(0.5 + (np.arange(2 ** (bits - 1)) + 0.5) / 2**bits) * 1.3
    for _ in range(60_000):
        borders = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        means = -np.diff(norm_pdf(borders)) / np.diff(norm.cdf(borders))
        moved = np.abs(means - levels).max()
        levels = means
        if moved < 1e-9:
            break
    return levels


def norm_pdf(x: np.ndarray) -> np.ndarray:
    """Density of a standard normal variable."""
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda b: f"{b}_bits")
def test_levels_are_where_lloyds_iteration_ends(bits: int) -> None:
    kept = np.array(lloyd_max.levels(bits)[2 ** (bits - 1) :])
    assert np.abs(kept - _positive_levels(bits)).max() < 1e-5


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda b: f"{b}_bits")
def test_levels_are_symmetric_and_thresholds_lie_between(bits: int) -> None:
    levels, borders = lloyd_max.levels(bits), lloyd_max.thresholds(bits)
    assert len(levels) == 2**bits and len(borders) == 2**bits - 1
    assert list(levels) == sorted(set(levels)) and levels == tuple(-level for level in reversed(levels))
    assert all(low < border < high for (low, high), border in zip(pairwise(levels), borders, strict=True))
    assert borders[len(borders) // 2] == 0.0


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda b: f"{b}_bits")
def test_distortion_is_the_integral(bits: int) -> None:
    edges = (-12.0, *lloyd_max.thresholds(bits), 12.0)
    cells = zip(pairwise(edges), lloyd_max.levels(bits), strict=True)
    error = sum(quad(lambda x, at=level: (x - at) ** 2 * norm.pdf(x), low, high)[0] for (low, high), level in cells)
    assert error == pytest.approx(lloyd_max.DISTORTION[bits], abs=2e-6)
    assert lloyd_max.DISTORTION[0] == 1.0 and lloyd_max.DISTORTION[bits] < lloyd_max.DISTORTION[bits - 1] / 2


def test_the_table_holds_all_levels_behind_one_another() -> None:
    table = lloyd_max.table()
    assert table[0] == 0 and len(table) == 2 ** (lloyd_max.MAX_BITS + 1) - 1
    for bits in WIDTHS:
        assert table[2**bits - 1 : 2 ** (bits + 1) - 1].tolist() == pytest.approx(lloyd_max.levels(bits), abs=1e-6)
