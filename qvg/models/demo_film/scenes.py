"""Procedural films: a round picture seen by a camera in its middle, with things that move, pillars before them, and a light.

A scene is a pure function of its seed and its domain, and the two domains never share one: a model trained on `TRAINING` films
has not seen a single `JUDGED` one. The band of coloured squares at the top is a ruler, alike in all scenes and lights: the
network's positions are differences on the screen, and say neither where in the world a token is nor where on the screen. Of a
column's four squares most change with its place in the world, the rest with its place on the screen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .directions import TURN_COLUMNS, VIEW_COLUMNS, Track

TRAINING, JUDGED = 0x66696C, 0x6A7564
COLUMN_PIXELS = 16  # one token, so that a pan moves whole tokens
PICTURE_PIXELS = VIEW_COLUMNS * COLUMN_PIXELS
ROUND_PIXELS = TURN_COLUMNS * COLUMN_PIXELS
RULER_PIXELS = 16
CLOCK_FRAMES = 12  # period of all that moves; three of them are a turn

# Whole numbers of waves around the turn whose sum falls off fast beside its peak, the slowest among them one wave.
_RULER_WAVES = (1, 5, 8, 17)
_SCREEN_WAVES = (1, 3)  # across the picture
_NIGHT = np.array([0.34, 0.40, 0.58], np.float32)

Picture = NDArray[np.float32]


class Ball(NamedTuple):
    """Jumps at one place of the world."""

    x: float
    radius: float
    colour: Picture


class Bird(NamedTuple):
    """Flies to and fro before the camera."""

    y: float
    radius: float
    colour: Picture


class Scene:
    """A painted world and what moves in it."""

    def __init__(self, seed: int, domain: int = JUDGED):
        rng = np.random.default_rng([domain, seed])
        world, pillars = _paint_world(rng)
        layers = np.concatenate([world, pillars[..., None]], -1)
        self._layers = np.concatenate([layers, layers[:, :PICTURE_PIXELS]], 1)  # a view never has to wrap around
        self.clock = rng.uniform(0, CLOCK_FRAMES)
        self.balls = [Ball(rng.uniform(0, ROUND_PIXELS), rng.uniform(7, 10), _colour(rng)) for _ in range(rng.integers(1, 3))]
        bird = Bird(rng.uniform(30, 58), rng.uniform(6, 9), _colour(rng))
        self.bird = bird if rng.random() < 0.8 else None

    def frames(self, track: Track) -> Tensor:
        """-> [F, 3, 128, 128] in -1..1."""
        pictures = np.stack([self._frame(int(t), int(h), float(d)) for t, h, d in zip(*track, strict=True)])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1

    def _frame(self, time: int, heading: int, daylight: float) -> Picture:
        left = heading % TURN_COLUMNS * COLUMN_PIXELS
        view = self._layers[:, left : left + PICTURE_PIXELS]
        picture, free = view[..., :3].copy(), 1 - view[..., 3]
        phase = 2 * np.pi * (time + self.clock) / CLOCK_FRAMES
        for ball in self.balls:
            x = (ball.x - left + ROUND_PIXELS / 2) % ROUND_PIXELS - ROUND_PIXELS / 2
            _disc(picture, x, 108 - 40 * abs(np.sin(phase / 2)), ball.radius, ball.colour, free)
        if self.bird:
            _disc(picture, 64 + 46 * np.sin(phase), self.bird.y, self.bird.radius, self.bird.colour, free)
        picture[RULER_PIXELS:] *= _NIGHT + (1 - _NIGHT) * np.float32(daylight)
        picture[:RULER_PIXELS] = _RULER[:, left : left + PICTURE_PIXELS] + _SCREEN_MARKS
        return picture


def _paint_world(rng: np.random.Generator) -> tuple[Picture, Picture]:
    """-> colours [128, 576, 3] in 0..1, where pillars stand [128, 576]."""
    down = np.arange(PICTURE_PIXELS, dtype=np.float32)[:, None]
    sky, low = (_two_colours(rng, 0.35, 1.0)[None] for _ in range(2))
    share = ((down - RULER_PIXELS) / 64).clip(0, 1)[..., None]
    world = (sky * (1 - share) + low * share).astype(np.float32)
    everywhere = np.ones(world.shape[:2], np.float32)
    for _ in range(rng.integers(5, 9)):
        x, y, wide, tall = rng.uniform(0, ROUND_PIXELS), rng.uniform(24, 56), rng.uniform(12, 30), rng.uniform(4, 9)
        _ellipse(world, x, y, wide, tall, _colour(rng, 0.6))
    for base, height, slowest, fastest in ((60, 8, 2, 9), (82, 6, 3, 14)):
        ridge = base + height * _wave(rng, slowest, fastest)
        cover = (down - ridge + 0.5).clip(0, 1)[..., None]
        world += (_two_colours(rng, 0.1, 0.9)[None] - world) * cover
    for _ in range(rng.integers(16, 25)):
        x, middle, size, colour = rng.uniform(0, ROUND_PIXELS), rng.uniform(68, 122), rng.uniform(6, 15), _colour(rng)
        if rng.random() < 0.5:
            _ellipse(world, x, middle, size, size, colour)
        else:
            _box(world, x, middle, size, size * rng.uniform(0.6, 1.4), colour)
    pillars = np.zeros(world.shape[:2], np.float32)
    for _ in range(rng.integers(2, 5)):
        x, half, top, colour = rng.uniform(0, ROUND_PIXELS), rng.uniform(7, 12), rng.uniform(20, 44), _colour(rng, 0.05, 0.8)
        middle, tall = (top + PICTURE_PIXELS) / 2 + 2, (PICTURE_PIXELS - top) / 2 + 2
        _box(world, x, middle, half, tall, colour)
        _box(pillars[..., None], x, middle, half, tall, everywhere[0, :1])
    return world.clip(0, 1), pillars


def _colour(rng: np.random.Generator, darkest: float = 0.05, brightest: float = 1.0) -> Picture:
    return rng.uniform(darkest, brightest, 3).astype(np.float32)


def _two_colours(rng: np.random.Generator, darkest: float, brightest: float) -> Picture:
    """Two colours that take turns around the picture. -> [576, 3]"""
    first = _colour(rng, darkest, brightest)
    second = (first + rng.normal(0, 0.2, 3)).clip(darkest, brightest)
    share = (0.5 + 0.5 * np.tanh(2 * _wave(rng, 1, 6)))[:, None]
    return (first * share + second * (1 - share)).astype(np.float32)


def _wave(rng: np.random.Generator, slowest: int, fastest: int) -> Picture:
    """A random curve around the picture. -> [576]"""
    angle = 2 * np.pi * np.arange(ROUND_PIXELS) / ROUND_PIXELS
    parts = [rng.normal() / k**0.7 * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(slowest, fastest)]
    curve: Picture = np.sum(parts, 0).astype(np.float32)
    return curve


def _columns(x: float, reach: float) -> tuple[NDArray[np.int64], Picture]:
    """Columns around x, taken around the picture, and how far to the right of x they are."""
    columns = np.arange(int(np.floor(x - reach)) - 1, int(np.ceil(x + reach)) + 2)
    return columns % ROUND_PIXELS, (columns - x).astype(np.float32)


def _rows(y: float, reach: float) -> tuple[slice, Picture]:
    rows = np.arange(max(0, int(y - reach) - 1), min(PICTURE_PIXELS, int(y + reach) + 2))
    return slice(rows[0], rows[-1] + 1), (rows - y).astype(np.float32)[:, None]


def _ellipse(world: Picture, x: float, y: float, wide: float, tall: float, colour: Picture) -> None:
    (columns, dx), (rows, dy) = _columns(x, wide), _rows(y, tall)
    edge = (1 - np.hypot(dx / wide, dy / tall)) * min(wide, tall)
    _cover(world, rows, columns, (edge + 0.5).clip(0, 1), colour)


def _box(world: Picture, x: float, y: float, wide: float, tall: float, colour: Picture) -> None:
    (columns, dx), (rows, dy) = _columns(x, wide), _rows(y, tall)
    _cover(world, rows, columns, (wide + 0.5 - abs(dx)).clip(0, 1) * (tall + 0.5 - abs(dy)).clip(0, 1), colour)


def _cover(world: Picture, rows: slice, columns: NDArray[np.int64], cover: Picture, colour: Picture) -> None:
    part = world[rows, columns]
    world[rows, columns] = part + (colour - part) * cover[..., None]


def _disc(picture: Picture, x: float, y: float, radius: float, colour: Picture, free: Picture) -> None:
    """Draw on one frame where no pillar stands before it."""
    rows, dy = _rows(y, radius)
    first, last = max(0, int(x - radius) - 1), min(PICTURE_PIXELS, int(x + radius) + 2)
    if last <= first:
        return
    dx = (np.arange(first, last) - x).astype(np.float32)
    cover = (radius + 0.5 - np.hypot(dx, dy)).clip(0, 1) * free[rows, first:last]
    part = picture[rows, first:last]
    picture[rows, first:last] = part + (colour - part) * cover[..., None]


def _marks(angles: NDArray[np.floating[Any]], first: int) -> Picture:
    """Squares of 8 x 8 pixels, four to a column, that hold twelve numbers: cosine and sine of `angles` [columns, waves] from
    number `first` on, the others 0. -> [16, columns * 16, 3]"""
    numbers = np.zeros((len(angles), 12), np.float32)
    waves = 0.5 + 0.42 * np.stack([np.cos(angles), np.sin(angles)], -1)
    numbers[:, first : first + 2 * angles.shape[1]] = waves.reshape(len(angles), -1)
    squares = numbers.reshape(-1, 2, 2, 3).transpose(1, 0, 2, 3).reshape(2, -1, 3)
    half = RULER_PIXELS // 2
    return squares.repeat(half, 0).repeat(half, 1)


_HEADINGS = np.arange(TURN_COLUMNS + VIEW_COLUMNS)
_RULER = _marks(2 * np.pi / TURN_COLUMNS * np.outer(_HEADINGS, _RULER_WAVES), 0)
_SCREEN_MARKS = _marks(2 * np.pi / VIEW_COLUMNS * np.outer(np.arange(VIEW_COLUMNS), _SCREEN_WAVES), 2 * len(_RULER_WAVES))
