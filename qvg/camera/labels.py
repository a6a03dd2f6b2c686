"""Action labels: what the camera did to arrive at each latent frame, as one of 81 numbers, 9 * movement + turn.

    movement  0 none, 1 forward, 2 back, 3 right, 4 left, 5 forward right, 6 forward left, 7 back right, 8 back left
    turn      0 none, 1 right, 2 left, 3 up, 4 down, 5 right up, 6 right down, 7 left up, 8 left down

Labels are read from the poses, so that a pose file and a path of keys mean the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .cameras import Array, invert_rigid

LABELS = 81

# Below these the camera stands still; within this angle of an axis it moves along it.
_LEAST_UNITS = 1e-4
_LEAST_DEGREES = 0.05
_AXIS_DEGREES = 60.0

# Number of (first of the main axis, second of it, first of the other, second of it); opposite keys never meet.
_NUMBERS = {
    (0, 0, 0, 0): 0,
    (1, 0, 0, 0): 1,
    (0, 1, 0, 0): 2,
    (0, 0, 1, 0): 3,
    (0, 0, 0, 1): 4,
    (1, 0, 1, 0): 5,
    (1, 0, 0, 1): 6,
    (0, 1, 1, 0): 7,
    (0, 1, 0, 1): 8,
}


def action_labels(poses: Array, third_person: bool = False) -> NDArray[np.int64]:
    """Camera-to-world poses [F, 4, 4] -> labels [F] in 0..80; the first frame has arrived from nowhere and gets 0.

    third_person  a camera that orbits its hero moves whenever it turns; such movement is not an action
    """
    steps = invert_rigid(poses[:-1]) @ poses[1:]
    return np.array([0, *(_label(step, third_person) for step in steps)], np.int64)


def _label(step: Array, third_person: bool) -> int:
    """The label of one motion [4, 4] in the axes of the camera before it."""
    pitch, yaw, _ = Rotation.from_matrix(step[:3, :3]).as_euler("xyz", degrees=True)
    turn = (*_sides(yaw, _LEAST_DEGREES), *_sides(pitch, _LEAST_DEGREES))
    turns = max(abs(pitch), abs(yaw)) >= _LEAST_DEGREES
    movement = (0, 0, 0, 0) if third_person and turns else _movement(step[:3, 3])
    return 9 * _NUMBERS[movement] + _NUMBERS[turn]


def _movement(translation: Array) -> tuple[int, int, int, int]:
    """(forward, back, right, left): an axis counts if it is nearer than 60 degrees to where the camera goes."""
    distance = float(np.linalg.norm(translation))
    if distance <= _LEAST_UNITS:
        return (0, 0, 0, 0)
    right, _, forward = translation / distance
    near = float(np.cos(np.deg2rad(_AXIS_DEGREES)))
    return (*_sides(forward, near), *_sides(right, near))


def _sides(value: float, dead_zone: float) -> tuple[int, int]:
    return int(value > dead_zone), int(value < -dead_zone)
