"""Where the camera stands: keys held for latent frames -> camera-to-world matrices, one per latent frame.

A path of N latent frames has N + 1 poses: the start, and one after each step. HY-WorldPlay was trained with these steps per
latent frame (four video frames), so larger ones are out of its distribution.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle, islice, repeat

import numpy as np
from numpy.typing import NDArray

from ..errors import CameraPathError
from .paths import Move

UNITS_PER_FRAME = 0.08
DEGREES_PER_FRAME = 3.0

# What to do when the video is longer than the path: refuse, walk the path again from where the camera is, or stand still.
BEYOND = ("refuse", "again", "stay")

# Keys -> (forward, right) in moves, (yaw, pitch) in turns. y points down, so a positive pitch lifts the view.
_STEPS = {
    "w": (1, 0, 0, 0),
    "s": (-1, 0, 0, 0),
    "d": (0, 1, 0, 0),
    "a": (0, -1, 0, 0),
    "right": (0, 0, 1, 0),
    "left": (0, 0, -1, 0),
    "up": (0, 0, 0, 1),
    "down": (0, 0, 0, -1),
}


@dataclass(frozen=True)
class Steps:
    """How far a held key leads at a time: a move in units, a turn in degrees."""

    move: float = UNITS_PER_FRAME
    turn: float = DEGREES_PER_FRAME


WORLDPLAY = Steps()


def walk_poses(moves: Sequence[Move], start: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """All poses of a path. -> [N + 1, 4, 4] camera-to-world, `start` (default: the origin, looking along z) first.

    In every frame the camera turns (yaw, then pitch, about its own axes) and then moves (forward, then right, as it now looks).
    """
    return walked(_steps(moves), np.eye(4) if start is None else np.array(start, np.float64))


def camera_poses(moves: Sequence[Move], frames: int, beyond: str = "refuse") -> NDArray[np.float64]:
    """Exactly `frames` poses of a path. -> [frames, 4, 4] camera-to-world.

    beyond  "refuse": the path must have `frames` poses; "again" and "stay" lengthen one that is too short and cut one that is too
            long. The official code passes over extra poses in silence and spreads a single one over a whole chunk.

    Raises `CameraPathError` for a path without moves, or one that does not fit.
    """
    if beyond not in BEYOND:
        raise CameraPathError(f"beyond is {beyond!r}, but must be one of {', '.join(map(repr, BEYOND))}; choose one of these")
    if not moves:
        raise CameraPathError("the camera path has no moves; write one such as 'w-8,right-8'")
    if frames < 1:
        raise CameraPathError(f"a video of {frames} latent frames needs no camera; ask for 1 or more")
    count = 1 + sum(move.frames for move in moves)
    if beyond == "refuse" and count != frames:
        difference = f"drop {count - frames}" if count > frames else f"add {frames - count}"
        raise CameraPathError(
            f"the camera path has {count} poses (the start, and one after each of its {count - 1} latent frames), but the video "
            f"has {frames} latent frames; {difference}, or let the path be fitted to the video"
        )
    steps = cycle(_steps(moves)) if beyond == "again" else _steps(moves)
    poses = walked(islice(steps, frames - 1), np.eye(4))
    held = np.repeat(poses[-1:], frames - len(poses), axis=0)
    return np.concatenate([poses, held])


def _steps(moves: Sequence[Move]) -> Iterator[NDArray[np.float64]]:
    """The motion of every latent frame of a path."""
    for move in moves:
        yield from repeat(key_step(move.keys), move.frames)


def walked(steps: Iterable[NDArray[np.float64]], pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """`pose`, and where every step leads from there. -> [steps + 1, 4, 4]"""
    return np.stack([*accumulate(steps, np.matmul, initial=pose)])


def key_step(keys: Sequence[str], steps: Steps = WORLDPLAY) -> NDArray[np.float64]:
    """Where held keys lead at a time, in the camera's own axes. -> [4, 4]"""
    moves = np.sum([_STEPS[key] for key in keys], axis=0) if keys else np.zeros(4)
    forward, right, yaw, pitch = moves * (steps.move, steps.move, steps.turn, steps.turn)
    turn = _about_y(np.deg2rad(yaw)) @ _about_x(np.deg2rad(pitch))
    step = np.eye(4)
    step[:3, :3] = turn
    step[:3, 3] = turn @ (right, 0.0, forward)
    return step


def _about_x(angle: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(angle: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
