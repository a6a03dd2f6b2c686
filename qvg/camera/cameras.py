"""Cameras as a model wants them: view matrices, normalised intrinsics, and a world that is centred where they are needed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import CameraPathError

Array = NDArray[np.float64]

# Pixels of a picture of 1920 x 1080, as the official pose files have it.
DEFAULT_INTRINSICS: Array = np.array([[969.6969696969696, 0.0, 960.0], [0.0, 969.6969696969696, 540.0], [0.0, 0.0, 1.0]])

# Pose files are often rounded to four digits.
_RIGID_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Cameras:
    """One camera per latent frame. `poses` [F, 4, 4] camera-to-world; `intrinsics` [F, 3, 3] in pixels, or one [3, 3] for all.

    Raises `CameraPathError` for a shape, a pose or intrinsics that no camera has, and names the frame.
    """

    poses: Array
    intrinsics: Array = field(default_factory=lambda: DEFAULT_INTRINSICS)

    def __post_init__(self) -> None:
        poses, intrinsics = np.asarray(self.poses, np.float64), np.asarray(self.intrinsics, np.float64)
        if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not len(poses):
            raise CameraPathError(f"camera poses have the shape {list(poses.shape)}; give [frames, 4, 4], one matrix per frame")
        if intrinsics.shape == (3, 3):
            intrinsics = np.broadcast_to(intrinsics, (len(poses), 3, 3))
        if intrinsics.shape != (len(poses), 3, 3):
            raise CameraPathError(
                f"intrinsics have the shape {list(intrinsics.shape)} for {len(poses)} poses; give [3, 3], or one such per pose"
            )
        for frame in np.flatnonzero(_odd_poses(poses) | _odd_intrinsics(intrinsics)).tolist():
            complaint = pose_complaint(poses[frame]) or intrinsics_complaint(intrinsics[frame])
            if complaint:
                raise CameraPathError(f"frame {frame} of the camera's poses {complaint}")
        object.__setattr__(self, "poses", poses)
        object.__setattr__(self, "intrinsics", intrinsics)

    def __len__(self) -> int:
        return len(self.poses)

    def first(self, frames: int) -> Cameras:
        """Those of the first frames."""
        return Cameras(self.poses[:frames], self.intrinsics[:frames])

    def views(self) -> Array:
        """World-to-camera matrices. -> [F, 4, 4]"""
        return invert_rigid(self.poses)

    def normalised_intrinsics(self) -> Array:
        """Focal lengths in units of the picture's width and height, the principal point in its middle. -> [F, 3, 3]"""
        result = np.zeros_like(self.intrinsics)
        for axis in (0, 1):
            result[:, axis, axis] = self.intrinsics[:, axis, axis] / (2 * self.intrinsics[:, axis, 2])
            result[:, axis, 2] = 0.5
        result[:, 2, 2] = 1.0
        return result

    def recentred(self, frame: int) -> Cameras:
        """The same cameras in a world whose origin is the camera of `frame`: that one's view becomes the identity.

        Attention with the projective encoding does not notice, but 16-bit matrices of a camera far from the origin would.
        """
        return Cameras(invert_rigid(self.poses[frame]) @ self.poses, self.intrinsics)


def invert_rigid(matrices: Array) -> Array:
    """Inverse of rotations with translations, [..., 4, 4], from the transposed rotation: exact where a general one is not."""
    turn = np.swapaxes(matrices[..., :3, :3], -1, -2)
    result = np.zeros_like(matrices)
    result[..., :3, :3] = turn
    result[..., :3, 3] = -np.einsum("...ij,...j->...i", turn, matrices[..., :3, 3])
    result[..., 3, 3] = 1.0
    return result


def _odd_poses(poses: Array) -> NDArray[np.bool_]:
    """Of [F, 4, 4] all at once: which may have a `pose_complaint`."""
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(poses).all((1, 2)))
    poses = np.asarray(np.where(finite[:, None, None], poses, np.eye(4)))
    turns: Array = poses[:, :3, :3]
    stretched = np.abs(np.swapaxes(turns, 1, 2) @ turns - np.eye(3)).max((1, 2)) > _RIGID_TOLERANCE / 2
    bottom = np.abs(poses[:, 3] - (0, 0, 0, 1)).max(1) > _RIGID_TOLERANCE / 2
    odd: NDArray[np.bool_] = ~finite | stretched | bottom | (np.linalg.det(turns) < 0.5)
    return odd


def _odd_intrinsics(intrinsics: Array) -> NDArray[np.bool_]:
    """Of [F, 3, 3] all at once: which may have an `intrinsics_complaint`."""
    sides = intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]]
    bottom = np.abs(intrinsics[:, 2] - (0, 0, 1)).max(1) > _RIGID_TOLERANCE / 2
    odd: NDArray[np.bool_] = ~np.isfinite(intrinsics).all((1, 2)) | (sides <= 0).any(1) | bottom
    return odd


def pose_complaint(pose: Array) -> str:
    """What is wrong with this [4, 4] as a camera-to-world matrix, or nothing."""
    if not np.isfinite(pose).all():
        return "holds NaN or infinity; write finite numbers"
    turn = pose[:3, :3]
    if abs(np.linalg.det(turn)) < _RIGID_TOLERANCE:
        return "is singular; a camera-to-world matrix is a rotation and a translation"
    off = float(np.abs(turn.T @ turn - np.eye(3)).max())
    if off > _RIGID_TOLERANCE or np.linalg.det(turn) < 0 or np.abs(pose[3] - (0, 0, 0, 1)).max() > _RIGID_TOLERANCE:
        return (
            "is not rigid (it stretches, mirrors, or its last row is not 0 0 0 1); a camera-to-world matrix is a rotation and a "
            "translation"
        )
    return ""


def intrinsics_complaint(intrinsics: Array) -> str:
    """What is wrong with this [3, 3] as a camera matrix in pixels, or nothing."""
    if not np.isfinite(intrinsics).all():
        return "has a K with NaN or infinity; write finite numbers"
    if min(intrinsics[0, 0], intrinsics[1, 1]) <= 0:
        return "has a singular K; its focal lengths K[0][0] and K[1][1] must be above 0"
    if np.abs(intrinsics[2] - (0, 0, 1)).max() > _RIGID_TOLERANCE:
        return "has a K that is no camera's, and may be singular; its last row must be 0 0 1"
    if min(intrinsics[0, 2], intrinsics[1, 2]) <= 0:
        return "has a K without a principal point; K[0][2] and K[1][2] are half the picture's width and height in pixels"
    return ""
