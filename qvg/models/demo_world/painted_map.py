"""Painted maps: the procedural worlds that the demo model was trained on and is judged on.

A map is a square picture seen from above: sea, beach, meadow, wood, rock and snow with hard edges, and on it trees, flowers
and houses. `paint(seed, domain)` is a pure function of its two arguments. The two domains never share a map, so a model
trained on `TRAINING` maps has not seen a single `JUDGED` one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TRAINING, JUDGED = 0x7261, 0x6A75
MAP_PIXELS = 320

Picture = NDArray[np.float32]

# Colour bands from the sea floor to the summits: (upper edge of the height band, colour on dry land, colour on moist land).
_BANDS = (
    (0.16, (38, 92, 148), (30, 78, 138)),
    (0.29, (74, 162, 190), (66, 150, 186)),
    (0.37, (238, 218, 164), (230, 206, 150)),
    (0.60, (172, 200, 98), (128, 180, 92)),
    (0.80, (120, 166, 82), (74, 134, 84)),
    (0.92, (158, 146, 138), (136, 130, 132)),
    (9.99, (246, 246, 250), (232, 238, 248)),
)
_TREES = ((44, 104, 66), (66, 126, 58), (196, 112, 52), (222, 136, 168))
_FLOWERS = ((250, 236, 120), (244, 124, 140), (250, 250, 250), (176, 120, 214))
_ROOFS = ((206, 74, 58), (70, 96, 170), (232, 176, 64), (148, 70, 120))
_CELL_PIXELS = 16


def paint(seed: int, domain: int = JUDGED, pixels: int = MAP_PIXELS) -> Picture:
    """One map. -> [pixels, pixels, 3] float32 in 0..1. The same arguments always give the same picture."""
    rng = np.random.default_rng([domain, seed])
    height = _equalized(_smooth_noise(rng, pixels, ((44, 1.0), (24, 0.45), (12, 0.12))))
    moisture = _equalized(_smooth_noise(rng, pixels, ((70, 1.0), (35, 0.5))))
    picture = _bands(height, moisture) * _hillshade(height)[..., None]
    _scatter_objects(rng, picture, height, moisture)
    painted: Picture = np.clip(picture / 255.0, 0.0, 1.0).astype(np.float32)
    return painted


def _smooth_noise(rng: np.random.Generator, pixels: int, octaves: tuple[tuple[int, float], ...]) -> Picture:
    """Sum of cubic-interpolated random grids; each octave is (wavelength in pixels, amplitude)."""
    total = np.zeros((pixels, pixels), np.float32)
    for wavelength, amplitude in octaves:
        knots = rng.standard_normal((pixels // wavelength + 4,) * 2).astype(np.float32)
        spline = _cubic_weights(pixels, wavelength, knots.shape[0])
        total += amplitude * (spline @ knots @ spline.T)
    return total


def _cubic_weights(pixels: int, wavelength: int, knots: int) -> Picture:
    """Catmull-Rom weights from knots to pixels. -> [pixels, knots]."""
    position = np.arange(pixels) / wavelength + 1
    base = position.astype(int)
    f = position - base
    taps = (-0.5 * f + f**2 - 0.5 * f**3, 1 - 2.5 * f**2 + 1.5 * f**3, 0.5 * f + 2 * f**2 - 1.5 * f**3, -0.5 * f**2 + 0.5 * f**3)
    weights = np.zeros((pixels, knots), np.float32)
    for offset, tap in enumerate(taps):
        weights[np.arange(pixels), base - 1 + offset] = tap
    return weights


def _equalized(field: Picture) -> Picture:
    """Ranks scaled to 0..1, so that every map has the same share of sea, land and snow."""
    ranks = np.empty(field.size, np.float32)
    ranks[np.argsort(field, axis=None, kind="stable")] = np.linspace(0, 1, field.size, dtype=np.float32)
    return ranks.reshape(field.shape)


def _bands(height: Picture, moisture: Picture) -> Picture:
    """Colour of each band with one-pixel soft edges. -> [pixels, pixels, 3] in 0..255."""
    wet = np.clip((moisture - 0.4) * 5, 0, 1)[..., None]
    slope = np.hypot(*np.gradient(height)) + 1e-3
    picture = np.zeros((*height.shape, 3), np.float32)
    lower = None
    for upper, dry_colour, wet_colour in _BANDS:
        colour = np.asarray(dry_colour, np.float32) * (1 - wet) + np.asarray(wet_colour, np.float32) * wet
        cover = 1.0 if lower is None else np.clip((height - lower) / slope + 0.5, 0, 1)[..., None]
        picture = picture * (1 - cover) + colour * cover
        lower = upper
    return picture


def _hillshade(height: Picture) -> Picture:
    """Light from the upper left. -> factor around 1."""
    rows, cols = np.gradient(height)
    return 1 + np.clip(-(rows + cols) * 3.5, -0.10, 0.10) * (height > 0.29)


def _scatter_objects(rng: np.random.Generator, picture: Picture, height: Picture, moisture: Picture) -> None:
    """At most one tree, flower or house in each cell of a jittered grid, by what grows at that height and moisture."""
    cells = picture.shape[0] // _CELL_PIXELS
    dice = rng.random((cells, cells, 6))
    for row, col in np.ndindex(cells, cells):
        place, kind, size, colour = dice[row, col, :2], dice[row, col, 2], dice[row, col, 3], dice[row, col, 4]
        y, x = ((np.array([row, col]) + 0.3 + 0.4 * place) * _CELL_PIXELS).astype(int)
        level, wet = height[y, x], moisture[y, x]
        if 0.60 <= level < 0.80 and kind < 0.85:
            _tree(picture, y, x, 5.0 + 2.0 * size, _TREES[int(colour * 2 + (2 if wet < 0.35 else 0))])
        elif 0.39 <= level < 0.60 and kind < 0.28:
            _house(picture, y, x, 5 + int(2 * size), _ROOFS[int(colour * 4)])
        elif 0.39 <= level < 0.60 and kind < 0.75:
            _disc(picture, y, x, 2.6 + size, _FLOWERS[int(colour * 4)])
        elif level < 0.14 and kind < 0.25:
            _disc(picture, y, x, 3.5 + size, (112, 124, 132))


def _tree(picture: Picture, y: int, x: int, radius: float, colour: tuple[int, int, int]) -> None:
    _disc(picture, y + 2, x + 2, radius, (48, 74, 60), 0.5)
    _disc(picture, y, x, radius, colour)
    r, g, b = (min(255, int(c * 1.25) + 12) for c in colour)
    _disc(picture, y - radius * 0.3, x - radius * 0.3, radius * 0.5, (r, g, b))


def _house(picture: Picture, y: int, x: int, half: int, colour: tuple[int, int, int]) -> None:
    r, g, b = (int(c * 0.72) for c in colour)
    _box(picture, y - half + 2, y + half + 2, x - half + 2, x + half + 2, (70, 84, 60), 0.5)
    _box(picture, y - half, y, x - half, x + half, colour, 1.0)
    _box(picture, y, y + half, x - half, x + half, (r, g, b), 1.0)


def _disc(picture: Picture, y: float, x: float, radius: float, colour: tuple[int, int, int], alpha: float = 1.0) -> None:
    reach = int(radius) + 2
    y0, x0 = max(0, int(y) - reach), max(0, int(x) - reach)
    part = picture[y0 : int(y) + reach + 1, x0 : int(x) + reach + 1]
    rows, cols = np.ogrid[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]]
    cover = alpha * np.clip(radius + 0.5 - np.hypot(rows - y, cols - x), 0, 1)[..., None]
    part[...] = part * (1 - cover) + np.asarray(colour, np.float32) * cover


def _box(picture: Picture, top: int, bottom: int, left: int, right: int, colour: tuple[int, int, int], alpha: float) -> None:
    part = picture[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    part[...] = part * (1 - alpha) + np.asarray(colour, np.float32) * alpha
