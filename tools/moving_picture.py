"""Make the README's moving picture: one walk through the demo world with the exact cache and with a preset, side by side.

    python tools/moving_picture.py assets/walk.webp

Under each picture stands a gauge of what its memory takes, both on one scale. Prints bytes and PSNR of the walk. Takes a few
minutes on a CPU; needs torch, Pillow and tqdm.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import bootstrap_package  # noqa: F401  # names the package that is imported below
import numpy as np
import torch
from comfyui_qvg.qvg import PRESETS, KVCache, QVGConfig
from comfyui_qvg.qvg.demo.memories import EXACT, SPAN_FRAMES
from comfyui_qvg.qvg.demo.summary import pooled_psnr_db
from comfyui_qvg.qvg.demo.video import FRAMES_PER_SECOND
from comfyui_qvg.qvg.demo.walk import DEFAULT_FRAMES, DEFAULT_PATH, DEFAULT_SEED, GIVEN_FRAMES, Walk, picture, plan_walk, settings
from comfyui_qvg.qvg.models.demo_world import DemoWorld, DemoWorldDenoiser, load_demo_world
from comfyui_qvg.qvg.sampling import generate
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

PRESET = "balanced"
SCALE = 5  # of a picture of 64 pixels
SIDE, MARGIN, HEAD, FOOT = 64 * SCALE, 16, 44, 92
GROUND, INK, MUTED, RULE = "#14181f", "#e8ecf1", "#8b95a1", "#2b323c"
COLOURS = ("#7aa7d9", "#3ecf8e")
LAST_SECONDS = 3
LAP_FRAMES = 50


@dataclass
class Side:
    """One half of the picture: a run, and what it left behind."""

    label: str
    config: QVGConfig
    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    cache_bytes: list[int] = field(default_factory=list)


def main() -> None:
    """See the module docstring."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path, help="the .webp to write")
    options.add_argument("--quality", type=int, default=70, help="of the pictures, 1 to 100; default 70")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    sides = walked()
    write(sides, chosen.file, chosen.quality)
    for side in sides:
        print(f"{side.label}: {side.cache_bytes[-1] / 1e6:.1f} MB at the end, {max(side.cache_bytes) / 1e6:.1f} at the peak")
    psnr = pooled_psnr_db(sides[0].frames[GIVEN_FRAMES:], sides[1].frames[GIVEN_FRAMES:])
    print(f"PSNR against exact: {psnr:.1f} dB; {chosen.file}: {chosen.file.stat().st_size / 1e6:.2f} MB")


def walked() -> list[Side]:
    """Both walks, of the same world and the same noise."""
    plan, model = plan_walk(DEFAULT_PATH, DEFAULT_FRAMES, DEFAULT_SEED), load_demo_world()
    preset = PRESETS[PRESET].with_changes(span_frames=SPAN_FRAMES)
    sides = [Side("exact, 16 bits per value", EXACT), Side(f"QVG KV Cache, preset {PRESET}", preset)]
    for side in sides:
        _walk(side, plan, model)
    return sides


def _walk(side: Side, plan: Walk, model: DemoWorld) -> None:
    with KVCache(model.config.cache_spec(), side.config, model.config.rope()) as cache:
        blocks = generate(DemoWorldDenoiser(model), cache, plan.origins, settings(plan.seed), plan.given(model))
        for block in tqdm(blocks, total=len(plan.positions), desc=side.label):
            side.frames.append(picture(block.latent))
            side.cache_bytes.append(block.cache.total)


def write(sides: list[Side], file: Path, quality: int) -> None:
    """All moments as one animated file, which begins again after the last one has stood for a while."""
    first, *others = _moments(sides)
    moment_ms = 1000 // FRAMES_PER_SECOND
    durations = [moment_ms] * len(others) + [LAST_SECONDS * 1000]
    first.save(file, save_all=True, append_images=others, duration=durations, loop=0, quality=quality, method=6)


def _moments(sides: list[Side]) -> Iterator[Image.Image]:
    most = max(side.cache_bytes[-1] for side in sides)
    for frame in range(len(sides[0].frames)):
        image = Image.new("RGB", (2 * SIDE + 3 * MARGIN, HEAD + SIDE + FOOT), GROUND)
        draw = ImageDraw.Draw(image)
        for place, side in enumerate(sides):
            left = MARGIN + place * (SIDE + MARGIN)
            shown = Image.fromarray(side.frames[frame]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            image.paste(shown, (left, HEAD))
            draw.text((left, HEAD / 2), side.label, INK, _font(18), anchor="lm")
            _gauge(draw, left, side.cache_bytes[frame], sides[0].cache_bytes[frame], most, COLOURS[place])
        laps = (len(sides[0].frames) - 1) // LAP_FRAMES
        text = f"the same walk, {laps} times round: lap {min(laps, frame // LAP_FRAMES + 1)}, frame {frame + 1}"
        draw.text((MARGIN, HEAD + SIDE + FOOT - 18), text, MUTED, _font(14), anchor="lm")
        yield image


def _gauge(draw: ImageDraw.ImageDraw, left: int, held: int, exact: int, most: int, colour: str) -> None:
    """A bar for the bytes that are held, on the scale that `most` fills, and what they are in words."""
    top = HEAD + SIDE + 14
    draw.rectangle((left, top, left + SIDE, top + 12), RULE)
    draw.rectangle((left, top, left + max(1, round(SIDE * held / most)), top + 12), colour)
    less = f", {exact / held:.1f} times less" if exact >= 1.05 * held else ""
    draw.text((left, top + 30), f"memory {held / 1e6:.1f} MB{less}", colour, _font(18), anchor="lm")


def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


if __name__ == "__main__":
    main()
