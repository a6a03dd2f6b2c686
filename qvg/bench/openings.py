"""Openings and cuts: what a video begins with must not spoil what a codec learns.

A scene is a walk whose first frames are given: an opening (black, a title, another place ...), then frames that show a place. The
frames after those are generated, and the walk takes them back through the place that was shown, so they are painted from memory.
PSNR compares them with the exact cache's run of the same scene.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..demo.walk import Walk, plan_walk
from ..errors import ConfigError, quoted
from ..models.demo_world import STEP_PIXELS, DemoWorld, DemoWorldConfig
from ..models.demo_world.painted_map import JUDGED, paint

# One span of the demo world, the sink and one frame more are the opening.
OPENING_FRAMES, SHOWN_FRAMES, GENERATED_FRAMES = 18, 18, 20
# Worlds take these in turn, and all of it lies on the map. The first two come from elsewhere to the place that is shown, 18 moves
# later: then there and back again, or round and round. In the others the opening was where the place is: three times round, or a
# longer way round that also sees again what the opening hid.
PATHS = (
    "d-27,s-8,w-8,a-9,d-3",
    "w-18,d-5,w-4,a-5,s-4,d-5,w-4,a-5,s-4,d-2",
    "d-5,s-4,a-5,w-4",
    "s-8,d-8,w-8,a-8",
)
# Settings are chosen on worlds from the first number on, and shown on worlds from the second.
DEVELOPMENT_SEED, SHOWN_SEED = 6001, 9001
_OTHER_MAP = 1 << 20
_FADE_END = 0.05
_LOUD_GAIN = 8.0
_PIXELS = DemoWorldConfig().picture_pixels


@dataclass(frozen=True)
class Scene:
    """One world, one path, one opening."""

    seed: int
    scenario: str
    path: str
    opening_frames: int = OPENING_FRAMES
    shown_frames: int = SHOWN_FRAMES
    generated_frames: int = GENERATED_FRAMES

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise ConfigError(f"scenario is {quoted(self.scenario)}, but must be one of {', '.join(SCENARIOS)}")

    @property
    def given_frames(self) -> int:
        """Opening and what is shown after it."""
        return self.opening_frames + self.shown_frames

    @property
    def frames(self) -> int:
        """All of them."""
        return self.given_frames + self.generated_frames

    @property
    def plan(self) -> Walk:
        """The walk; a freeze frame holds the camera where the opening ends."""
        plan = plan_walk(self.path, self.frames, self.seed)
        if self.scenario == "freeze":
            plan.positions[: self.opening_frames] = plan.positions[self.opening_frames]
        return plan

    def given(self, model: DemoWorld) -> list[Tensor]:
        """Latents of the given frames, each [1, 1, 3, P, P]; a loud channel leaves -1..1, everything else stays in it."""
        place = _look(self.seed, self.plan, self.given_frames)
        return [frame[None, None] for frame in SCENARIOS[self.scenario](place, self)]


def scenes(worlds: int, scenarios: tuple[str, ...] = (), first_seed: int = SHOWN_SEED) -> list[Scene]:
    """Every scenario (without names: all of them) in so many worlds; worlds take the paths in turn."""
    seeds = range(first_seed, first_seed + worlds)
    return [Scene(seed, name, PATHS[seed % len(PATHS)]) for name in scenarios or tuple(SCENARIOS) for seed in seeds]


def _look(seed: int, plan: Walk, frames: int) -> Tensor:
    """What the camera sees in the first frames. -> [F, 3, P, P] in -1..1"""
    world = torch.from_numpy(paint(seed, JUDGED)).permute(2, 0, 1) * 2 - 1
    corners = (plan.positions[:frames] * STEP_PIXELS).tolist()
    return torch.stack([world[:, row : row + _PIXELS, col : col + _PIXELS] for row, col in corners])


def _still(draw: Callable[[int], Tensor]) -> Callable[[Tensor, Scene], Tensor]:
    """An opening that is one picture [3, P, P] in 0..1, drawn from the world's seed."""

    def opening(place: Tensor, scene: Scene) -> Tensor:
        place[: scene.opening_frames] = draw(scene.seed) * 2 - 1
        return place

    return opening


def _as_it_is(place: Tensor, scene: Scene) -> Tensor:
    """Nothing special; also a freeze frame, where only the camera stands still."""
    return place


def _fade(place: Tensor, scene: Scene) -> Tensor:
    """From black to 5 % of the light, then all of it."""
    light = torch.linspace(0, _FADE_END, scene.opening_frames)[:, None, None, None]
    place[: scene.opening_frames] = (place[: scene.opening_frames] + 1) * light - 1
    return place


def _gradient(seed: int) -> Tensor:
    """Four colours, one in each corner."""
    corners = torch.from_numpy(np.random.default_rng([seed, 1]).random((2, 3, 2), np.float32))
    along = torch.stack([torch.linspace(1, 0, _PIXELS), torch.linspace(0, 1, _PIXELS)])
    return torch.einsum("ah,acb,bw->chw", along, corners, along)


def _title(seed: int) -> Tensor:
    """Three lines of light letters, 5 x 7 pixels each, made up, on a dark ground."""
    rng = np.random.default_rng([seed, 2])
    picture = np.full((_PIXELS, _PIXELS, 3), (0.05, 0.04, 0.10), np.float32)
    for top in (14, 28, 42):
        letters = int(rng.integers(4, 9))
        left = (_PIXELS - 7 * letters) // 2
        for column in range(left, left + 7 * letters, 7):
            picture[top : top + 7, column : column + 5][rng.random((7, 5)) < 0.5] = (0.95, 0.92, 0.80)
    return torch.from_numpy(picture).permute(2, 0, 1)


def _noise(place: Tensor, scene: Scene) -> Tensor:
    """Another one in every frame, as between channels."""
    count = scene.opening_frames
    generator = torch.Generator().manual_seed(scene.seed)
    place[:count] = torch.rand(place[:count].shape, generator=generator) * 2 - 1
    return place


def _cut(place: Tensor, scene: Scene) -> Tensor:
    """The opening is in another world."""
    place[: scene.opening_frames] = _look(scene.seed + _OTHER_MAP, scene.plan, scene.opening_frames)
    return place


def _loud(place: Tensor, scene: Scene) -> Tensor:
    """Red is several times too strong from the end of the opening on."""
    place[scene.opening_frames :, 0] *= _LOUD_GAIN
    return place


SCENARIOS: dict[str, Callable[[Tensor, Scene], Tensor]] = {
    "ordinary": _as_it_is,
    "black": _still(lambda seed: torch.zeros(3, _PIXELS, _PIXELS)),
    "fade": _fade,
    "gradient": _still(_gradient),
    "title": _still(_title),
    "noise": _noise,
    "freeze": _as_it_is,
    "cut": _cut,
    "loud": _loud,
}
