"""Cameras of models that were trained with a pose for every picture of a video: keys held for pictures -> poses, and those of the
latent frames among them.

A latent frame is the video's first picture, and then four each. Their cameras are those of its first picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CameraPathError, shown
from .paths import KEYS, Move
from .poses import BEYOND, Steps, key_step, walked

PICTURES = 4  # of a latent frame, the first one aside
# Letters of the JSON files: i j k l look up, left, down and right.
_LETTERS = {**{key: key for key in "wasd"}, "i": "up", "k": "down", "j": "left", "l": "right"}
_MOST_ACTIONS = 10_000
_WRITE = 'write {"action_seq": ["w", "wj"], "action_speed_list": [4, 6]}'
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Action:
    """Keys held together for a share of the video's duration; none: the camera rests. Opposite keys cancel."""

    keys: tuple[str, ...]
    share: float


def read_actions(text: str) -> tuple[Action, ...]:
    """Of DreamX-World's JSON: one object, or a list that begins with one. Raises CameraPathError."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CameraPathError(f"the camera's actions are no JSON ({shown(str(error), 80)}); {_WRITE}") from error
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        raise CameraPathError(f"the camera's actions are no object; {_WRITE}")
    keys, shares = first.get("action_seq"), first.get("action_speed_list")
    if not isinstance(keys, list) or not isinstance(shares, list) or not keys or len(keys) != len(shares):
        raise CameraPathError(f"the camera's actions need lists action_seq and action_speed_list of one length; {_WRITE}")
    if len(keys) > _MOST_ACTIONS:
        raise CameraPathError(f"the camera has {len(keys)} actions, and {_MOST_ACTIONS} are the most; {_WRITE}")
    return tuple(_action(number, *each) for number, each in enumerate(zip(keys, shares, strict=True), 1))


def _action(number: int, keys: Any, share: Any) -> Action:
    if not isinstance(keys, str) or not all(letter in {*_LETTERS, " "} for letter in keys.lower()):
        raise CameraPathError(
            f"action {number} of the camera is {shown(repr(keys), 40)}; use letters of w a s d i j k l; {_WRITE}"
        )
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1e9:
        raise CameraPathError(
            f"action {number} of the camera lasts {shown(repr(share), 40)}, but its share of the duration is a number above 0"
        )
    held = {_LETTERS[letter] for letter in keys.lower() if letter != " "}
    return Action(tuple(key for key in KEYS if key in held), float(share))


def action_pictures(actions: Sequence[Action], pictures: int) -> list[tuple[str, ...]]:
    """The keys of every picture: each action has its share of them, one at least, and the last one what is left."""
    total, keys = sum(action.share for action in actions), list[tuple[str, ...]]()
    for number, action in enumerate(actions, 1):
        left = pictures - len(keys)
        count = left if number == len(actions) else min(left, max(1, round(pictures * action.share / total)))
        keys += [action.keys] * count
    return keys


def move_pictures(moves: Sequence[Move], frames: int, beyond: str = "refuse") -> list[tuple[str, ...]]:
    """The keys of every picture of so many latent frames, where a path holds them for latent frames; `beyond` as for
    `poses.camera_poses`, whose frame 0 is the start. Raises CameraPathError for a path that does not fit."""
    if beyond not in BEYOND:
        raise CameraPathError(f"beyond is {beyond!r}, but must be one of {', '.join(map(repr, BEYOND))}; choose one of these")
    held = [move.keys for move in moves for _ in range(move.frames)]
    if not held or frames < 1:
        raise CameraPathError("the camera path has no moves; write one such as 'w-8,right-8'")
    if beyond == "refuse" and len(held) + 1 != frames:
        raise CameraPathError(
            f"the camera path has {len(held) + 1} poses, but the video {frames} latent frames; make them equal, or let the path "
            "be fitted to the video"
        )
    by_frame = list(islice(cycle(held) if beyond == "again" else held, frames - 1))
    by_frame += [()] * (frames - 1 - len(by_frame))
    return [(), *(keys for keys in by_frame for _ in range(PICTURES))]


def picture_poses(keys: Sequence[tuple[str, ...]], steps: Steps) -> Array:
    """Camera-to-world of every picture, where the keys of each lead to it. -> [pictures, 4, 4]"""
    return walked((key_step(each, steps) for each in keys), np.eye(4))[1:]


def latent_poses(poses: Array) -> Array:
    """Of a video's pictures [P, 4, 4], those of its latent frames: picture 0, and then the first of every four."""
    return poses[[0, *range(1, len(poses), PICTURES)]]
