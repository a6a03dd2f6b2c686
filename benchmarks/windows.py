"""What a window costs on the demo world: bytes at the worst moment, and the next picture, for every preset.

    python benchmarks/windows.py [--save] [--windows 6,7,9,12,16,20,24,30] [--worlds 7001,7002,7003]

A walk in a short window soon invents other country, whatever is remembered of it, so PSNR of whole walks says more of chance
than of memory. Here every frame that enters memory is the real one, and once the window is full the model paints each next
picture too; compared is that picture with the one that the exact cache's window leads to (dB of the mean squared error of a
world's pictures, mean of the worlds). `--save` writes results/windows.csv.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import bootstrap_package  # noqa: F401
from comfyui_qvg.qvg import PRESETS, KVCache, QVGConfig
from comfyui_qvg.qvg.demo.walk import Walk, plan_walk, settings
from comfyui_qvg.qvg.files import written_whole
from comfyui_qvg.qvg.models.demo_world import STEP_PIXELS, DemoWorld, DemoWorldDenoiser, load_demo_world
from comfyui_qvg.qvg.models.demo_world.painted_map import paint
from comfyui_qvg.qvg.sampling import generate
from comfyui_qvg.qvg.sampling.autoregressive import SamplerSettings
from rows import RESULTS

NAMES = ("exact", "qvg", "fewest-bytes", "balanced", "near-exact")
FRAMES, PATH = 60, "s-8,d-8,w-8,a-8"
FIELDS = ("window", "preset", "most_bytes", "next_picture_db", "next_picture_db_low", "worlds", "seeds", "frames", "torch")


class NextPictures(DemoWorldDenoiser):
    """Before a real picture is committed, paints the one that memory leads to."""

    def __init__(self, model: DemoWorld, how: SamplerSettings):
        super().__init__(model)
        self.how, self.painted = how, list[Tensor]()

    def predict_clean(self, x: Tensor, noise_level: float, cache: KVCache) -> Tensor:
        """See `sampling.Denoiser`; level 0 is the commit."""
        if noise_level == 0:
            picture = self.how.noise(len(self.painted), self.block_shape(1))
            for level, following in itertools.pairwise(self.how.noise_levels()):
                clean = super().predict_clean(picture, level, cache)
                picture = clean + (picture - clean) * (following / level)
            self.painted.append(picture)
        return super().predict_clean(x, noise_level, cache)


def real_pictures(plan: Walk, model: DemoWorld) -> list[Tensor]:
    """All frames of a walk as they really look, [1, 1, 3, P, P] in -1..1."""
    pixels = model.config.picture_pixels
    world = torch.from_numpy(paint(plan.seed)).permute(2, 0, 1) * 2 - 1
    corners = (plan.positions * STEP_PIXELS).tolist()
    return [world[None, None, :, row : row + pixels, col : col + pixels] for row, col in corners]


def walk(model: DemoWorld, plan: Walk, config: QVGConfig) -> tuple[Tensor, int]:
    """The next pictures [F, ...] of a walk, and the most bytes that its cache held after a frame."""
    painter, most = NextPictures(model, settings(plan.seed)), 0
    with KVCache(model.config.cache_spec(), config, model.config.rope()) as cache:
        for block in generate(painter, cache, plan.origins, painter.how, real_pictures(plan, model), verify=False):
            most = max(most, block.cache.total)
    return torch.stack(painter.painted), most


def rows(window: int, worlds: list[int]) -> list[dict[str, object]]:
    """One for every preset."""
    model, errors, most = load_demo_world(), {name: list[float]() for name in NAMES}, dict.fromkeys(NAMES, 0)
    for seed in worlds:
        exact = None
        for name in NAMES:
            pictures, held = walk(model, plan_walk(PATH, FRAMES, seed), PRESETS[name].with_changes(window_frames=window))
            exact = pictures if exact is None else exact
            # -1..1 spans 2, whose square is four times that of pictures in 0..1.
            errors[name].append(float((pictures - exact)[window:].square().mean()) / 4)
            most[name] = max(most[name], held)
    found = []
    for name in NAMES:
        decibels = [-10 * np.log10(error) if error else float("nan") for error in errors[name]]
        figures = ("", "") if name == "exact" else (f"{np.mean(decibels):.2f}", f"{min(decibels):.2f}")
        facts = (len(worlds), " ".join(map(str, worlds)), FRAMES, torch.__version__)
        found.append(dict(zip(FIELDS, (window, name, most[name], *figures, *facts), strict=True)))
    return found


def main() -> int:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--windows", default="6,7,9,12,16,20,24,30")
    parser.add_argument("--worlds", default="7001,7002,7003")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for window in map(int, options.windows.split(",")):
        for row in rows(window, list(map(int, options.worlds.split(",")))):
            print(*(f"{row[name]}" for name in FIELDS[:5]), flush=True)
            found.append(row)
    if options.save:
        with written_whole(RESULTS / "windows.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
