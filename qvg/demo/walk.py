"""A walk through the demo world: where the camera stands in each frame, what is given, how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..camera import parse_path, walk
from ..camera.paths import MAX_PATH_FRAMES
from ..errors import ConfigError, shown
from ..models.demo_world import STEP_PIXELS, DemoWorld, DemoWorldConfig
from ..models.demo_world.painted_map import JUDGED, MAP_PIXELS, paint
from ..sampling import SamplerSettings

# Once around a rectangle in 50 frames; 151 frames are three times around, back to where it began.
DEFAULT_PATH = "d-14,s-11,a-14,w-11"
DEFAULT_FRAMES = 151
DEFAULT_SEED = 1
GIVEN_FRAMES = 4
# A place counts as visited again when the camera was elsewhere for so many frames.
VISIT_GAP_FRAMES = 12
MAX_SEED = 1 << 40

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Walk:
    """Where the camera stands in each frame, and the world it walks through."""

    seed: int
    positions: NDArray[np.int64]

    @property
    def origins(self) -> list[list[tuple[float, float, float]]]:
        """One block per frame: (time, row, column) in tokens."""
        scale = STEP_PIXELS / DemoWorldConfig().patch_pixels
        return [[(0.0, float(row) * scale, float(col) * scale)] for row, col in self.positions]

    def given(self, model: DemoWorld) -> list[Tensor]:
        """The first frames as they really look. -> pictures [1, 1, 3, P, P] in -1..1."""
        pixels = model.config.picture_pixels
        world = torch.from_numpy(paint(self.seed, JUDGED)).permute(2, 0, 1) * 2 - 1
        corners = self.positions[:GIVEN_FRAMES] * STEP_PIXELS
        return [world[None, None, :, row : row + pixels, col : col + pixels] for row, col in corners.tolist()]


def plan_walk(path: str, frames: int, seed: int) -> Walk:
    """A walk from the middle of the map; it may leave the map, for only the given frames are looked up on it."""
    if frames < GIVEN_FRAMES + 1:
        raise ConfigError(
            f"frames is {frames}, but {GIVEN_FRAMES} are given and at least one must be generated; use {GIVEN_FRAMES + 1} or more"
        )
    if frames > MAX_PATH_FRAMES:
        raise ConfigError(
            f"frames is {shown(frames, 20)}, but a walk has at most {MAX_PATH_FRAMES}, which is hours of video; use fewer"
        )
    if not 0 <= seed < MAX_SEED:
        raise ConfigError(f"seed is {seed}, but must be a whole number from 0 to {MAX_SEED - 1}; choose one in that range")
    moves = parse_path(path)
    middle = (MAP_PIXELS // 2 - 32) // STEP_PIXELS
    return Walk(seed, walk(moves, frames, (middle, middle)))


def settings(seed: int) -> SamplerSettings:
    """Three steps. With more, unseen country is painted crisper, but a tiny difference in memory soon grows into another country,
    and PSNR against the exact run says little (4 seeds: 31 to 33 dB with three steps, 24 to 33 with four)."""
    return SamplerSettings(steps=3, seed=seed)


def picture(latent: Tensor) -> Picture:
    """[1, 1, 3, P, P] in -1..1 -> uint8 [P, P, 3]."""
    pixels: Picture = ((latent[0, 0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels
