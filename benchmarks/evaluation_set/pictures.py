"""Start pictures, painted from seeds: nobody's photographs, the same on every machine.

python pictures.py --out pictures [--width 832 --height 480]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float64]
SIZE = (832, 480)


def grid(width: int, height: int) -> tuple[Field, Field]:
    """x and y of every pixel, 0..1 up to the shorter side's length."""
    y, x = np.mgrid[0:height, 0:width] / min(width, height)
    return x, y


def waves(x: Field, y: Field, seed: int, scale: float, octaves: int = 5) -> Field:
    """Smooth noise in 0..1: sums of sines in random directions, finer and fainter."""
    dice, total, weight = np.random.default_rng(seed), np.zeros_like(x), 0.0
    for octave in range(octaves):
        for _ in range(4):
            angle, phase = dice.uniform(0, 2 * np.pi, 2)
            total += np.sin(scale * 2**octave * (x * np.cos(angle) + y * np.sin(angle)) + phase) / 2**octave
        weight += 4 / 2**octave
    return np.asarray((total / weight + 1) / 2)


def mixed(low: tuple[int, int, int], high: tuple[int, int, int], share: Field) -> Field:
    """Two colours by a share of 0..1."""
    t = np.clip(share, 0, 1)[..., None]
    return np.asarray((1 - t) * np.array(low, float) + t * np.array(high, float))


def put(picture: Field, mask: NDArray[np.bool_], colour: Field) -> None:
    """Paint over where the mask says."""
    picture[mask] = colour[mask] if colour.ndim == 3 else colour


def hills(x: Field, y: Field, seed: int) -> Field:
    """Five ridges in haze under a low sun."""
    picture = mixed((250, 214, 165), (90, 140, 200), 1 - y)
    put(picture, (x - 1.1) ** 2 + (y - 0.35) ** 2 < 0.006, np.array([255, 240, 200.0]))
    for ridge in range(5):
        edge = 0.42 + 0.12 * ridge + 0.12 * (waves(x, 0 * y, seed + ridge, 3 + ridge) - 0.5)
        shade = mixed((170, 180, 190), (30, 60, 40), np.full_like(x, ridge / 4) + 0.1 * waves(x, y, seed + 9 + ridge, 20))
        put(picture, y > edge, shade)
    return picture


def tiles(x: Field, y: Field, seed: int) -> Field:
    """A tiled floor to the horizon with three spheres."""
    picture = mixed((200, 220, 240), (120, 160, 210), 1 - 2 * y)
    below = y > 0.45
    depth = 0.25 / np.maximum(y - 0.449, 1e-3)
    even = (np.floor(4 * (x - 0.87) * depth) + np.floor(4 * depth)) % 2 == 0
    floor = np.where(even[..., None], np.array([210, 200, 185.0]), np.array([90, 70, 60.0]))
    put(picture, below, floor)
    for number, (cx, cy, radius) in enumerate(((0.5, 0.62, 0.16), (0.95, 0.56, 0.1), (1.3, 0.7, 0.2))):
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        light = 1 - np.hypot(x - cx + radius / 3, y - cy + radius / 3) / (1.5 * radius)
        colours = ((200, 60, 50), (60, 150, 90), (70, 90, 190))
        put(picture, inside, mixed((20, 20, 30), colours[(number + seed) % 3], light))
    return picture


def city(x: Field, y: Field, seed: int) -> Field:
    """Houses at night, some windows lit."""
    dice, picture = np.random.default_rng(seed), mixed((14, 16, 40), (60, 50, 90), y)
    for left in np.arange(0, x.max(), 0.11):
        top, lit = dice.uniform(0.15, 0.6), dice.uniform(0.25, 0.7)
        house = (x >= left) & (x < left + 0.1) & (y > top)
        put(picture, house, np.array([26, 28, 38.0]))
        column, row = np.floor((x - left) / 0.02), np.floor((y - top) / 0.035)
        lamp = np.sin(column * 12.99 + row * 78.2 + seed + left * 40) * 43758.5
        window = house & ((x - left) % 0.02 < 0.012) & ((y - top) % 0.035 < 0.02) & (lamp - np.floor(lamp) < lit)
        put(picture, window, np.array([255, 210, 120.0]))
    return picture


def forest(x: Field, y: Field, seed: int) -> Field:
    """Rows of firs in mist."""
    dice, picture = np.random.default_rng(seed), mixed((225, 232, 235), (190, 205, 210), y)
    for row in range(4):
        base = 0.55 + 0.14 * row
        for cx in dice.uniform(0, x.max(), 14):
            height = dice.uniform(0.25, 0.4) * (0.6 + 0.2 * row)
            inside = (y < base) & (y > base - height) & (np.abs(x - cx) < 0.32 * (y - base + height))
            put(picture, inside, mixed((170, 185, 180), (20, 50, 35), np.full_like(x, 0.3 + 0.23 * row)))
    return picture


def clouds(x: Field, y: Field, seed: int) -> Field:
    """A sea under clouds."""
    picture = mixed((70, 120, 190), (245, 245, 245), 1.6 * waves(x, 2 * y, seed, 5, 6) - 0.35)
    sea = mixed((20, 60, 90), (110, 160, 180), waves(x, 12 * y, seed + 1, 6) + 0.4 * (1 - y))
    put(picture, y > 0.62, sea)
    return picture


def room(x: Field, y: Field, seed: int) -> Field:
    """A room with a window, a table and a striped rug."""
    wide = x.max()
    picture = mixed((196, 180, 160), (150, 132, 115), y)
    put(picture, y > 0.68, mixed((120, 85, 60), (85, 60, 45), waves(x, 8 * y, seed, 9)))
    rug = (y > 0.78) & (y < 0.95) & (np.abs(x - wide / 2) < 0.6)
    stripes = np.floor((x - wide / 2) / 0.06) % 2 == 0
    put(picture, rug, np.where(stripes[..., None], np.array([150, 40, 45.0]), np.array([225, 205, 170.0])))
    put(picture, (np.abs(x - 0.45) < 0.2) & (np.abs(y - 0.3) < 0.17), mixed((160, 200, 235), (240, 245, 250), y * 2))
    put(picture, ((np.abs(x - 0.45) < 0.008) | (np.abs(y - 0.3) < 0.008)) & (np.abs(x - 0.45) < 0.2) & (np.abs(y - 0.3) < 0.17),
        np.array([245, 240, 230.0]))  # fmt: skip
    put(picture, (np.abs(x - 1.2) < 0.3) & (np.abs(y - 0.6) < 0.02), np.array([70, 45, 30.0]))
    put(picture, (np.abs(np.abs(x - 1.2) - 0.26) < 0.015) & (y > 0.6) & (y < 0.82), np.array([60, 38, 26.0]))
    put(picture, (x - 1.15) ** 2 + (y - 0.54) ** 2 < 0.0016, np.array([210, 140, 40.0]))
    return picture


def dunes(x: Field, y: Field, seed: int) -> Field:
    """Sand in stripes of light and shadow."""
    warped = y + 0.15 * waves(x, y, seed, 3)
    picture = mixed((235, 190, 120), (130, 80, 50), (np.sin(28 * warped + 6 * waves(x, y, seed + 1, 2)) + 1) / 2)
    put(picture, warped < 0.33, mixed((120, 170, 220), (215, 225, 230), 3 * y))
    return picture


def blocks(x: Field, y: Field, seed: int) -> Field:
    """Coloured blocks stacked on a table."""
    dice, picture = np.random.default_rng(seed), mixed((235, 232, 225), (205, 200, 190), y)
    put(picture, y > 0.8, np.array([120, 90, 65.0]))
    for column in range(9):
        for row in range(int(dice.integers(1, 7))):
            left, top = 0.18 + 0.155 * column, 0.69 - 0.105 * row
            inside = (x > left) & (x < left + 0.14) & (y > top) & (y < top + 0.1)
            colour = dice.uniform(60, 235, 3)
            put(picture, inside, colour)
            put(picture, inside & (y < top + 0.012), np.minimum(255, colour + 35))
    return picture


SCENES: dict[str, tuple[Callable[[Field, Field, int], Field], int]] = {
    "hills": (hills, 101),
    "tiles": (tiles, 202),
    "city": (city, 303),
    "forest": (forest, 404),
    "clouds": (clouds, 505),
    "room": (room, 606),
    "dunes": (dunes, 707),
    "blocks": (blocks, 808),
}


def paint(name: str, width: int = SIZE[0], height: int = SIZE[1]) -> NDArray[np.uint8]:
    """One of SCENES. -> uint8 [height, width, 3]"""
    scene, seed = SCENES[name]
    painted: NDArray[np.uint8] = scene(*grid(width, height), seed).round().clip(0, 255).astype(np.uint8)
    return painted


def main() -> int:
    """-> exit code."""
    parser = argparse.ArgumentParser(description="Paint the start pictures.")
    parser.add_argument("--out", type=Path, default=Path("pictures"), metavar="DIR")
    parser.add_argument("--width", type=int, default=SIZE[0])
    parser.add_argument("--height", type=int, default=SIZE[1])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in SCENES:
        Image.fromarray(paint(name, options.width, options.height)).save(options.out / f"{name}.png")
        print(f"wrote {options.out / name}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
