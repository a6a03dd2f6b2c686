"""Draw how long a video each card has room for: the README's table of `qvg cards` as a picture.

python tools/cards_picture.py assets/cards.png
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import bootstrap_package  # noqa: F401  # names the package that is imported below
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.plan.cards import CARDS_GB, Asked, duration, longest_videos, size_of
from comfyui_qvg.qvg.plan.report import PICTURES_PER_SECOND
from PIL import Image, ImageDraw, ImageFont
from write_docs import CARD_MODELS

WIDTH, ROW, HEAD, LEFT, RIGHT, TOP = 1200, 26, 44, 110, 1120, 74
GROUND, INK, MUTED, RULE = "#ffffff", "#1c2430", "#5b6673", "#dde2e8"
# What is kept, what waits in main memory, its colour, and what it is called.
WAYS = (
    ("exact", "weights", "#3f86cc", "exact memory"),
    ("balanced", "weights", "#1f9d66", "balanced"),
    ("balanced", "weights and memory", "#d06f22", "balanced, encoded memory in main memory"),
)
TICKS = ((1, "1 s"), (5, "5 s"), (15, "15 s"), (60, "1 min"), (300, "5 min"), (900, "15 min"), (3600, "1 h"), (7200, "any"))


def main() -> None:
    """See the module docstring."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path, help="the .png to write")
    file = options.parse_args().file
    drawn().quantize(64).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def drawn() -> Image.Image:
    """A block for each model, a line in it for each card, a point for each way of keeping its memory."""
    asked = Asked(CARD_MODELS, weights=("fp8",), waiting=("weights", "weights and memory"), presets=("exact", "balanced"))
    cells = {cell[:5]: cell.pictures for cell in longest_videos(asked)}
    block = HEAD + ROW * len(CARDS_GB)
    image = Image.new("RGB", (WIDTH, TOP + block * len(CARD_MODELS) + 20), GROUND)
    draw = ImageDraw.Draw(image)
    x = float(LEFT)
    for _, _, colour, words in WAYS:
        _dot(draw, x, 24, colour)
        draw.text((x + 14, 24), words, INK, _font(17), anchor="lm")
        x += 40 + draw.textlength(words, _font(17))
    for seconds, words in TICKS:
        at = place(seconds)
        draw.line((at, TOP - 8, at, image.height - 14), RULE, 1)
        draw.text((at, TOP - 20), words, MUTED, _font(15), anchor="mm")
    for index, model in enumerate(CARD_MODELS):
        top = TOP + index * block
        width, height = size_of(model)
        draw.text((16, top + 22), f"{networks()[model].title}, {width} x {height}", INK, _font(18), anchor="lm")
        for line, card in enumerate(CARDS_GB):
            y = top + HEAD + line * ROW
            draw.text((LEFT - 20, y), f"{card} GB", MUTED, _font(15), anchor="rm")
            found = [(cells[model, card, "fp8", waiting, preset], colour) for preset, waiting, colour, _ in WAYS]
            _line(draw, y, found)
    return image


def _line(draw: ImageDraw.ImageDraw, y: float, found: list[tuple[int | None, str]]) -> None:
    points = [
        (place(None if pictures is None else pictures / PICTURES_PER_SECOND), colour)
        for pictures, colour in found
        if pictures != 0
    ]
    if not points:
        draw.text((LEFT + 4, y), "not one block", MUTED, _font(14), anchor="lm")
        return
    for (start, _), (end, colour) in itertools.pairwise(points):
        draw.line((start, y, end, y), colour, 3)
    for at, colour in points:
        _dot(draw, at, y, colour)
    draw.text((points[-1][0] + 12, y), duration(found[-1][0]), INK, _font(14), anchor="lm")


def place(seconds: float | None) -> float:
    """Where a length stands; None, any length, at the right edge."""
    first, last = math.log(TICKS[0][0]), math.log(TICKS[-1][0])
    at = last if seconds is None else min(last, max(first, math.log(max(seconds, 0.5))))
    return LEFT + (RIGHT - LEFT) * (at - first) / (last - first)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, colour: str) -> None:
    draw.ellipse((x - 6, y - 6, x + 6, y + 6), colour)


def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


if __name__ == "__main__":
    main()
