"""Pictures that come in, of any channels, and pictures for the page, drawn with PIL: ComfyUI does not ship matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..qvg.errors import ConfigError

Picture = NDArray[np.uint8]

_GROUND, _INK, _MUTED, _RULE = "#14181f", "#e8ecf1", "#8b95a1", "#2b323c"
_COLOURS = ("#7aa7d9", "#3ecf8e", "#f0924a", "#b79ce0")
_PATH_PIXELS = 384
_STROKE = 22
_CHART_PIXELS = (768, 320)
# Drawn so many times larger and then shrunk: PIL draws lines without smoothing.
_OVERSAMPLING = 2


@dataclass(frozen=True)
class Curve:
    """One line of a chart: a value per frame, and which of the colours; None: that of its place."""

    name: str
    values: Sequence[float]
    colour: int | None = None


def in_colour(name: str, images: Tensor) -> tuple[Tensor, str]:
    """Pictures of any channels as RGB [N, H, W, 3], and what was left out, "" for nothing. Grey ones [N, H, W] are taken, too.

    Raises ConfigError for what are no pictures.
    """
    if images.ndim == 3:
        images = images[None] if images.shape[-1] in (1, 3, 4) else images[..., None]
    channels = images.shape[-1] if images.ndim == 4 else 0
    if not 1 <= channels <= 4 or 0 in images.shape:
        raise ConfigError(
            f"{name} is {list(images.shape)}, but pictures are [pictures, height, width, 1 to 4 channels], none of them 0; "
            "connect an image"
        )
    if not images.isfinite().all():
        raise ConfigError(f"{name} holds NaN or infinity, which no picture does; check the node that it comes from")
    alpha = f"{name}: its alpha is left out" if channels in (2, 4) and float(images[..., -1].min()) < 1 else ""
    return (images[..., :3] if channels > 2 else images[..., :1].expand(*images.shape[:-1], 3)), alpha


def first_picture(name: str, images: Tensor, size: tuple[int, int]) -> tuple[Tensor, list[str]]:
    """The first one as RGB [1, H, W, 3], to be cut to the proportions of `size` (width, height), and what was left out."""
    pictures, alpha = in_colour(name, images)
    more = len(pictures) - 1
    others = [f"{name}: the first of {more + 1} pictures is taken, {more} left out"] if more else []
    return _not_cut_away(pictures[:1], size), [*([alpha] if alpha else []), *others]


def _not_cut_away(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """ComfyUI cuts what is too long by half of the excess at both ends, rounded: of a strip nothing would be left. Its middle is.
    [1, H, W, 3]"""
    (height, width), aspect = picture.shape[1:3], size[0] / size[1]
    if width - 2 * round((width - height * aspect) / 2) < 1 and width / height > aspect:
        return picture[:, :, width // 2 : width // 2 + 1]
    if height - 2 * round((height - width / aspect) / 2) < 1 and width / height < aspect:
        return picture[:, height // 2 : height // 2 + 1]
    return picture


def path_picture(positions: ArrayLike, looking: ArrayLike | None = None) -> Picture:
    """A camera's path from above. positions [F, 2], rows and columns -> [384, 384, 3]. The start is a dot, the end a ring.

    looking [F, 2]: which way each frame looks, a stroke of at most this length.
    """
    size = _PATH_PIXELS * _OVERSAMPLING
    places = np.asarray(positions, np.float64)
    low, high = places.min(0), places.max(0)
    scale = (size * 0.76) / max(1.0, float((high - low).max()))
    points = [(float(x), float(y)) for y, x in (places - (low + high) / 2) * scale + size / 2]
    image = Image.new("RGB", (size, size), _GROUND)
    draw = ImageDraw.Draw(image)
    for line in range(1, 8):
        draw.line([(size * line / 8, 0), (size * line / 8, size)], _RULE, 2)
        draw.line([(0, size * line / 8), (size, size * line / 8)], _RULE, 2)
    if len(points) > 1:
        draw.line(points, _COLOURS[0], 3 * _OVERSAMPLING, joint="curve")
    for (x, y), (down, right) in zip(points, () if looking is None else np.asarray(looking, np.float64).tolist(), strict=False):
        draw.line([(x, y), (x + right * _STROKE, y + down * _STROKE)], _COLOURS[3], _OVERSAMPLING)
    for x, y in points:
        draw.ellipse(_around(x, y, 2.5), _COLOURS[0])
    draw.ellipse(_around(*points[0], 7), _COLOURS[1])
    draw.ellipse(_around(*points[-1], 9), None, _COLOURS[2], 3 * _OVERSAMPLING)
    note = f"{len(places)} latent frames; dot: start, ring: end"
    draw.text((size / 2, size - 14 * _OVERSAMPLING), note, _MUTED, _font(13), anchor="mm")
    return _shrunk(image)


def remembered_picture(contexts: Sequence[Sequence[int]], frames: int) -> Picture:
    """Which earlier frames each chunk sees: a row per chunk, a column per frame. -> [384, 384, 3]

    Frames that the chunk before saw too are of one colour, those that come back after having been out of sight of another.
    """
    size, top, left = _PATH_PIXELS * _OVERSAMPLING, 44 * _OVERSAMPLING, 16 * _OVERSAMPLING
    side, image = size - 2 * left, Image.new("RGB", (size, size), _GROUND)
    draw, height, width = ImageDraw.Draw(image), (size - top - left) / len(contexts), side / frames
    chunk = frames // len(contexts)
    for row, context in enumerate(contexts):
        y = top + row * height
        known = {*contexts[row - 1], *range((row - 1) * chunk, row * chunk)} if row else set()
        own = range(row * chunk, (row + 1) * chunk)
        marks = [(frame, _COLOURS[0] if frame in known else _COLOURS[2]) for frame in context] + [(f, _COLOURS[1]) for f in own]
        for frame, colour in marks:
            x = left + frame * width
            gap = min(_OVERSAMPLING, width / 4)
            draw.rectangle((x, y, max(x, x + width - gap), max(y, y + height - gap)), colour)
    x = float(left)
    for words, colour in (("a chunk", _COLOURS[1]), ("sees frames", _COLOURS[0]), ("found again", _COLOURS[2])):
        draw.text((x, 18 * _OVERSAMPLING), words, colour, _font(13), anchor="lm")
        x += draw.textlength(words, _font(13)) + 16 * _OVERSAMPLING
    note = f"{len(contexts)} chunks downwards, {frames} latent frames to the right"
    draw.text((left, 34 * _OVERSAMPLING), note, _MUTED, _font(11), anchor="lm")
    return _shrunk(image)


def chart(title: str, curves: Sequence[Curve]) -> Picture:
    """Lines over frames, from 0 up, each named with its last value. -> [320, 768, 3]"""
    width, height = (side * _OVERSAMPLING for side in _CHART_PIXELS)
    left, right, top, bottom = 64 * _OVERSAMPLING, width - 16 * _OVERSAMPLING, 64 * _OVERSAMPLING, height - 34 * _OVERSAMPLING
    last = max(2, *(len(curve.values) for curve in curves)) - 1
    step = _round_step(max([1e-9, *(value for curve in curves for value in curve.values)]))
    highest = step * math.ceil(max([step, *(value for curve in curves for value in curve.values)]) / step - 1e-9)
    image = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(image)
    draw.text((16 * _OVERSAMPLING, 18 * _OVERSAMPLING), title, _INK, _font(15), anchor="lm")
    for tick in range(round(highest / step) + 1):
        y = bottom - (bottom - top) * tick * step / highest
        draw.line([(left, y), (right, y)], _RULE, 2)
        draw.text((left - 8 * _OVERSAMPLING, y), f"{tick * step:g}", _MUTED, _font(12), anchor="rm")
    for frame in (0, last // 2, last):
        x = left + (right - left) * frame / last
        draw.text((x, bottom + 16 * _OVERSAMPLING), str(frame), _MUTED, _font(12), anchor="rm" if frame == last else "mm")
    x = 16.0 * _OVERSAMPLING
    for place, curve in enumerate(curves):
        colour = _COLOURS[place if curve.colour is None else curve.colour]
        points = [(left + (right - left) * i / last, bottom - (bottom - top) * v / highest) for i, v in enumerate(curve.values)]
        draw.line(points, colour, 2 * _OVERSAMPLING, joint="curve")
        name = f"{curve.name}: {curve.values[-1]:.1f}"
        draw.text((x, 42 * _OVERSAMPLING), name, colour, _font(13), anchor="lm")
        x += draw.textlength(name, _font(13)) + 24 * _OVERSAMPLING
    return _shrunk(image)


def _round_step(highest: float) -> float:
    """1, 2 or 5 times a power of ten, so that 3 to 6 steps reach `highest`."""
    rough = highest / 5
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _around(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    r = radius * _OVERSAMPLING
    return (x - r, y - r, x + r, y + r)


def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels * _OVERSAMPLING)


def _shrunk(image: Image.Image) -> Picture:
    return np.array(image.resize((image.width // _OVERSAMPLING, image.height // _OVERSAMPLING), Image.Resampling.LANCZOS))
