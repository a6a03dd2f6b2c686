"""Camera paths: one line of text says which keys are held for how many latent frames.

    d-12,s-10,a-12,w-10        four sides of a rectangle
    w+d-8, w+right-4           keys held together

A path is comma separated parts `keys-frames`. Keys are `w a s d` (move) and `up down left right` (look); frames is a whole
number of latent frames. Case and spaces do not matter. The grammar is that of the pose strings of HY-WorldPlay, less what it
lets pass in silence: empty parts, and fractions that it rounds down to nothing.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CameraPathError, ConfigError

# All keys, in the order in which they are written.
KEYS = ("w", "a", "s", "d", "up", "down", "left", "right")
# A typing mistake, not a walk: 100,000 latent frames are hours of video.
MAX_PATH_FRAMES = 100_000

_OPPOSITES = (("w", "s"), ("a", "d"), ("up", "down"), ("left", "right"))
_DELTAS = {"w": (-1, 0), "a": (0, -1), "s": (1, 0), "d": (0, 1)}
_GRAMMAR = "write comma separated parts keys-frames, such as 'd-12,s-10,w+a-8'"
_quoted = reprlib.Repr()
_quoted.maxstring = 60


@dataclass(frozen=True)
class Move:
    """Keys held together for a number of latent frames.

    `keys` may be given in any order and are kept in the order of `KEYS`. Raises `CameraPathError` for unknown, repeated or
    opposite keys and for a duration that is not in 1..MAX_PATH_FRAMES.
    """

    keys: tuple[str, ...]
    frames: int

    def __post_init__(self) -> None:
        complaint = _keys_complaint(self.keys) or _frames_complaint(self.frames)
        if complaint:
            raise CameraPathError(f"this camera move {complaint}; {_GRAMMAR}")
        object.__setattr__(self, "keys", tuple(sorted(self.keys, key=KEYS.index)))

    def __str__(self) -> str:
        return f"{'+'.join(self.keys)}-{self.frames}"


def parse_path(text: str) -> tuple[Move, ...]:
    """Reads a camera path. Raises `CameraPathError` naming the part that breaks the grammar and its position."""
    if not isinstance(text, str):
        raise CameraPathError(f"a camera path is text, not {type(text).__name__} ({_quoted.repr(text)}); {_GRAMMAR}")
    if not text.strip():
        raise CameraPathError(f"the camera path is empty; {_GRAMMAR}")
    moves: list[Move] = []
    total_frames = 0
    for number, part in enumerate(text.split(","), start=1):
        move = _parse_part(part.strip(), number)
        total_frames += move.frames
        if total_frames > MAX_PATH_FRAMES:
            raise _refusal(part.strip(), number, f"makes the path longer than {MAX_PATH_FRAMES} latent frames")
        moves.append(move)
    return tuple(moves)


def format_path(moves: Sequence[Move]) -> str:
    """The text of a path in its shortest form; `parse_path` of it gives the same moves."""
    return ",".join(str(move) for move in moves)


def walk(moves: Sequence[Move], frames: int, start: tuple[int, int] = (0, 0), step: int = 1) -> NDArray[np.int64]:
    """Camera positions in the demo world. -> [frames, 2], (row, column) of each latent frame.

    Frame 0 stands at `start`; every later frame has moved by `step` in the direction of its keys: w is up, s down, a left,
    d right, two keys are a diagonal. A path that ends before `frames` is walked again from its beginning, so a closed path of
    N latent frames comes back to frame 0 at frame N. Raises `CameraPathError` for a path without moves and for keys that the
    demo world does not know, `ConfigError` for frames < 1.
    """
    if frames < 1:
        raise ConfigError(f"a walk of {frames} latent frames is no walk; ask for 1 or more")
    if not moves:
        raise CameraPathError(f"the camera path has no moves; {_GRAMMAR}")
    for number, move in enumerate(moves, start=1):
        unknown = [key for key in move.keys if key not in _DELTAS]
        if unknown:
            complaint = f"holds {' and '.join(unknown)}, but the demo world looks straight down and knows only w, a, s and d"
            raise _refusal(str(move), number, complaint)
    deltas = np.array([np.sum([_DELTAS[key] for key in move.keys], axis=0) for move in moves], np.int64)
    path = np.repeat(deltas, [move.frames for move in moves], axis=0)
    steps = path[np.arange(frames - 1) % len(path)] * step
    origin = np.array([start], np.int64)
    return np.concatenate([origin, origin + np.cumsum(steps, axis=0)])


def visits(positions: ArrayLike, min_gap_frames: int) -> list[tuple[int, int]]:
    """Pairs (first, later) of frames that stand at the same place, for judging what a memory has kept.

    `positions` is [frames, 2]. `first` is the first frame ever at that place. A later frame there is paired with it if, at
    some time between the two, the camera was elsewhere for at least `min_gap_frames` frames in a row; so with a gap of 1 or
    more, standing still is no visit, and every frame of a second stay is one. Pairs are in the order of their later frame.
    Raises `ConfigError` for positions of another shape or a negative gap.
    """
    places = np.asarray(positions)
    if places.ndim != 2 or places.shape[1] != 2:
        raise ConfigError(f"positions have the shape {list(places.shape)}; give [frames, 2], a row and a column per frame")
    if min_gap_frames < 0:
        raise ConfigError(f"min_gap_frames {min_gap_frames} is negative; use 0 or more")
    first: dict[tuple[int, ...], int] = {}
    last: dict[tuple[int, ...], int] = {}
    longest_absence: dict[tuple[int, ...], int] = {}
    pairs: list[tuple[int, int]] = []
    for frame, place in enumerate(map(tuple, places.tolist())):
        if place in first:
            absence = frame - last[place] - 1
            longest_absence[place] = max(longest_absence.get(place, 0), absence)
            if longest_absence[place] >= min_gap_frames:
                pairs.append((first[place], frame))
        first.setdefault(place, frame)
        last[place] = frame
    return pairs


def _parse_part(part: str, number: int) -> Move:
    """One part, `keys-frames`, without surrounding spaces; `number` counts from 1."""
    if not part:
        raise _refusal(part, number, "is empty")
    held, _, duration = part.partition("-")
    keys = tuple(key.strip().lower() for key in held.split("+"))
    complaint = _keys_complaint(keys) or _duration_complaint(duration.strip())
    if complaint:
        raise _refusal(part, number, complaint)
    return Move(keys, int(duration))


def _refusal(part: str, number: int, complaint: str) -> CameraPathError:
    return CameraPathError(f"part {number} of the camera path, {_quoted.repr(part)}, {complaint}; {_GRAMMAR}")


def _keys_complaint(keys: Sequence[str]) -> str:
    """What is wrong with these keys, or nothing."""
    if not keys or not all(keys):
        return f"lacks a key; the keys are {', '.join(KEYS)}"
    for key in keys:
        if key not in KEYS:
            return f"has the unknown key {_quoted.repr(key)}; the keys are {', '.join(KEYS)}"
        if list(keys).count(key) > 1:
            return f"names the key {key} twice; once is enough"
    for one, other in _OPPOSITES:
        if one in keys and other in keys:
            return f"holds the opposite keys {one} and {other}, which cancel out; drop one or both"
    return ""


def _duration_complaint(text: str) -> str:
    """What is wrong with the text after the dash, or nothing."""
    if not text:
        return "has no duration; a dash and a whole number of latent frames follow the keys"
    if re.fullmatch("[0-9]+", text):
        # A number of thousands of digits is refused before it is converted: Python will not, and it is too long anyhow.
        digits = text.lstrip("0") or "0"
        return _frames_complaint(int(digits) if len(digits) < 10 else MAX_PATH_FRAMES + 1)
    if re.fullmatch("-\\s*[0-9.]+", text):
        return f"has the negative duration {_quoted.repr(text)}; a camera walks for 1 latent frame or more"
    return f"has the duration {_quoted.repr(text)}, which is not a whole number of latent frames"


def _frames_complaint(frames: object) -> str:
    """What is wrong with this number of latent frames, or nothing."""
    if not isinstance(frames, int):
        return f"has the duration {_quoted.repr(frames)}, which is not a whole number of latent frames"
    if frames < 1:
        return f"has a duration of {frames}; a camera walks for 1 latent frame or more"
    if frames > MAX_PATH_FRAMES:
        return f"is longer than {MAX_PATH_FRAMES} latent frames"
    return ""
