"""What a prompt of the film model says: where the camera goes and what the light becomes; and the rules by which both follow it.

A rule needs the last two frames and the prompt, nothing else, so that a model which sees them can go on. The camera stands in the
middle of a round picture of 36 columns and its heading is the column at the left edge of what it sees, 8 columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TURN_COLUMNS = 36  # one whole turn, and so the frames that it takes
VIEW_COLUMNS = 8
BLOCK_FRAMES = 3
SWING_COLUMNS = 18  # "swing" goes back and forth between the headings 0 and 18
LIGHT_SHARE = 1 / 8  # of the way to the prompt's light, in each frame

LOOKS = {"look north": 0, "look east": 9, "look south": 18, "look west": 27}
CAMERAS = ("turn right", "turn left", "swing", "stay", *LOOKS)
LIGHTS = ("day", "night")

TEXT_CHANNELS, TEXT_ROWS, TEXT_TOKENS = 64, 4, 8
_TEXT_SEED = 14


class Direction(NamedTuple):
    """A prompt: names out of CAMERAS and LIGHTS."""

    camera: str
    light: str

    @property
    def text(self) -> str:
        """As a menu shows it."""
        return f"{self.camera}, {self.light}"


DIRECTIONS = tuple(Direction(camera, light) for camera in CAMERAS for light in LIGHTS)


def text_rows() -> Tensor:
    """What stands for a text encoder's output: [16 prompts, 4 rows, 64 channels]; two rows for the camera, two for the light."""
    generator = torch.Generator().manual_seed(_TEXT_SEED)
    half = TEXT_ROWS // 2
    cameras = torch.randn(len(CAMERAS), half, TEXT_CHANNELS, generator=generator)
    lights = torch.randn(len(LIGHTS), half, TEXT_CHANNELS, generator=generator)
    pairs = [(CAMERAS.index(direction.camera), LIGHTS.index(direction.light)) for direction in DIRECTIONS]
    return torch.stack([torch.cat([cameras[camera], lights[light]]) for camera, light in pairs])


def prompt_rows(direction: Direction) -> Tensor:
    """A prompt as ComfyUI's network takes it, which adds no padding: [1, 8 rows, 64 channels], the last four zero."""
    rows = text_rows()[DIRECTIONS.index(direction)]
    return torch.cat([rows, rows.new_zeros(TEXT_TOKENS - TEXT_ROWS, TEXT_CHANNELS)])[None]


@dataclass(frozen=True)
class View:
    """What the camera does in one frame. `daylight`: 0 at night to 1 by day; `step`: columns that it moved to come here."""

    heading: int
    step: int
    daylight: float

    def next(self, direction: Direction) -> View:
        """The frame after this one."""
        heading, step = self._moved(direction.camera)
        daylight = self.daylight + LIGHT_SHARE * (float(direction.light == "day") - self.daylight)
        return View(heading % TURN_COLUMNS, step, daylight)

    def _moved(self, camera: str) -> tuple[int, int]:
        if camera in LOOKS:
            return LOOKS[camera], 0
        step = {"turn right": 1, "turn left": -1, "stay": 0}.get(camera)
        if step is None:  # swing: turns round at its two marks, else goes on
            step = {0: 1, SWING_COLUMNS: -1}.get(self.heading, self.step or 1)
        return self.heading + step, step


class Track(NamedTuple):
    """Frames of a film, each array [F]: frame number, heading in columns, daylight."""

    times: NDArray[np.int64]
    headings: NDArray[np.int64]
    daylight: NDArray[np.float64]

    def part(self, frames: NDArray[np.int64] | slice) -> Track:
        """Some of the frames."""
        return Track(self.times[frames], self.headings[frames], self.daylight[frames])


def follow(start: View, directions: Sequence[Direction], first_time: int = 0) -> tuple[Track, View]:
    """Go on from `start` by one direction for each block of 3 frames. -> the frames, the last view."""
    views, view = [], start
    for direction in directions:
        for _ in range(BLOCK_FRAMES):
            view = view.next(direction)
            views.append(view)
    times = first_time + np.arange(len(views))
    headings, daylight = np.array([v.heading for v in views], np.int64), np.array([v.daylight for v in views])
    return Track(times, headings, daylight), view
