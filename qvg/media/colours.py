"""Colours of a video's pictures, made those of the last picture of the block before: an end to colours that drift, and to any
real
change of light as well (DreamX-World's program does it to what it decodes)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# sRGB's primaries and white D65 (IEC 61966-2-1).
_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = _TO_XYZ.sum(1)
_LINEAR_FROM, _LINEAR_TO = 0.008856, 7.787
_LEAST = 1e-6  # of a spread that can be scaled


def to_lab(pictures: NDArray[np.floating]) -> NDArray[np.float64]:
    """sRGB in 0..1 [..., 3] -> CIE L*a*b*, L 0..100."""
    rgb = np.asarray(pictures, np.float64)
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    ratios = linear @ _TO_XYZ.T / _WHITE
    curved = np.where(ratios > _LINEAR_FROM, np.cbrt(ratios), _LINEAR_TO * ratios + 16 / 116)
    x, y, z = np.moveaxis(curved, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def to_rgb(lab: NDArray[np.floating]) -> NDArray[np.float64]:
    """The other way round; what no screen shows is cut off. -> 0..1"""
    lightness, a, b = np.moveaxis(np.asarray(lab, np.float64), -1, 0)
    y = (lightness + 16) / 116
    curved = np.stack([y + a / 500, y, y - b / 200], -1)
    cubes = curved**3
    ratios = np.where(cubes > _LINEAR_FROM, cubes, (curved - 16 / 116) / _LINEAR_TO)
    linear = ratios * _WHITE @ np.linalg.inv(_TO_XYZ).T
    bent = np.where(linear > 0.0031308, 1.055 * np.clip(linear, 0, None) ** (1 / 2.4) - 0.055, 12.92 * linear)
    shown: NDArray[np.float64] = np.clip(bent, 0, 1)
    return shown


class ColourMatch:
    """Picture after picture of one video. Mean and spread of each channel in L*a*b* become those of the newest reference: the
    first picture, and then the last one of every block of `frames` latent frames. `strength`: how much of that, 0 to 1."""

    def __init__(self, strength: float, frames: int = 3):
        self._strength, self._first, self._following = strength, 4 * frames - 3, 4 * frames
        self._seen = 0
        self._reference: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._last: NDArray[np.float64] | None = None

    def matched(self, picture: NDArray[np.floating]) -> Array:
        """[H, W, 3] in 0..1 -> the same."""
        if self._reference is None:
            self._reference = _statistics(to_lab(picture))
        elif self._seen >= self._first and (self._seen - self._first) % self._following == 0:
            assert self._last is not None
            self._reference = _statistics(to_lab(self._last))
        lab = to_lab(picture)
        (mean, spread), (wanted_mean, wanted_spread) = _statistics(lab), self._reference
        scale = np.where(spread > _LEAST, wanted_spread / np.maximum(spread, _LEAST), 0.0)
        corrected = to_rgb((lab - mean) * scale + wanted_mean)
        self._last = (1 - self._strength) * np.asarray(picture, np.float64) + self._strength * corrected
        self._seen += 1
        return self._last.astype(np.float32)


def _statistics(lab: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return lab.mean((0, 1)), lab.std((0, 1))
