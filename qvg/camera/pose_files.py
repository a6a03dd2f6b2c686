"""Pose files, as the official tools write them: an object of "0", "1", ... each {"extrinsic": 4 x 4, "K": 3 x 3}."""

from __future__ import annotations

import json
import reprlib
from typing import Any

import numpy as np

from ..errors import CameraPathError
from .cameras import Array, Cameras

_FORM = 'a pose file is an object of "0", "1", ... each {"extrinsic": 4 x 4 camera-to-world, "K": 3 x 3 in pixels}'


def read_poses(text: str) -> Cameras:
    """Cameras of a pose file's text. Raises `CameraPathError` in one sentence that names the frame."""
    try:
        data = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise CameraPathError(f"the camera poses are not JSON ({error}); {_FORM}") from error
    if not isinstance(data, dict) or not data:
        raise CameraPathError(f"the camera poses are {_kind(data)}; {_FORM}")
    missing = next((str(frame) for frame in range(len(data)) if str(frame) not in data), None)
    if missing is not None:
        raise CameraPathError(f"the camera poses name {len(data)} frames, but not {missing!r}; {_FORM}")
    poses, intrinsics = zip(*(_frame(frame, data[str(frame)]) for frame in range(len(data))), strict=True)
    return Cameras(np.stack(poses), np.stack(intrinsics))


def write_poses(cameras: Cameras) -> str:
    """Text that `read_poses` reads back as the same cameras."""
    pairs = zip(cameras.poses.tolist(), cameras.intrinsics.tolist(), strict=True)
    return json.dumps({str(frame): {"extrinsic": pose, "K": intrinsics} for frame, (pose, intrinsics) in enumerate(pairs)})


def _frame(frame: int, entry: Any) -> tuple[Array, Array]:
    if not isinstance(entry, dict):
        raise CameraPathError(f"frame {frame} of the camera's poses is {_kind(entry)}; {_FORM}")
    for name in ("extrinsic", "K"):
        if name not in entry:
            raise CameraPathError(f"frame {frame} of the camera's poses lacks {name!r}; {_FORM}")
    return _matrix(frame, "extrinsic", entry["extrinsic"], 4), _matrix(frame, "K", entry["K"], 3)


def _matrix(frame: int, name: str, value: Any, size: int) -> Array:
    try:
        matrix = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape != (size, size):
        raise CameraPathError(f"frame {frame} of the camera's poses has {name!r} that is no {size} x {size} of numbers; {_FORM}")
    return matrix


def _kind(value: Any) -> str:
    return f"{type(value).__name__} ({reprlib.repr(value)})"
