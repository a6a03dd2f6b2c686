"""Where the camera goes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..qvg.camera import Move, format_path, parse_path, walk
from ..qvg.camera.cameras import Cameras
from ..qvg.camera.overlap import FieldOfView
from ..qvg.camera.pictures import PICTURES, Action, action_pictures, latent_poses, move_pictures, picture_poses, read_actions
from ..qvg.camera.pose_files import read_poses, write_poses
from ..qvg.camera.poses import DEGREES_PER_FRAME, UNITS_PER_FRAME, Steps, camera_poses
from ..qvg.camera.selection import select_context
from ..qvg.demo.walk import DEFAULT_PATH
from ..qvg.errors import CameraPathError, ConfigError
from ..qvg.models.common.world_schedule import CHUNK_FRAMES, check_frames, chunks_of, plan_chunk
from ..qvg.models.registry import memories
from .api import CATEGORY, Camera, io, ui
from .pictures import Picture, path_picture, remembered_picture
from .widgets import Node

logger = logging.getLogger(__name__)

_MOVING = ("w", "a", "s", "d")
AGAIN, NO_MEMORY = "again", "none"


@dataclass(frozen=True)
class CameraPath:
    """What travels along a QVG_CAMERA link: keys held for latent frames; `beyond` as in `qvg.camera.poses`."""

    moves: tuple[Move, ...]
    frames: int
    beyond: str = AGAIN

    @property
    def path(self) -> str:
        """The pose string in its shortest form."""
        return format_path(self.moves)

    def keys(self) -> str:
        """The pose string for a world that walks it again when it ends. Raises ConfigError where that was not wanted."""
        if self.beyond == "stay" and sum(move.frames for move in self.moves) + 1 < self.frames:
            raise ConfigError(
                "the camera is to stay where its path ends, but the demo world walks its path again; choose again, or lengthen it"
            )
        return self.path

    def cameras(self) -> Cameras:
        """A camera per latent frame, in space."""
        return Cameras(camera_poses(self.moves, self.frames, self.beyond))

    def by_pictures(self, steps: Steps) -> Cameras:
        """The same for a model that was trained with a pose for every picture, where a held key leads as `steps` say."""
        return Cameras(latent_poses(picture_poses(move_pictures(self.moves, self.frames, self.beyond), steps)))

    def from_above(self) -> NDArray[np.float64]:
        """Where each frame stands, (row, column) in steps. -> [frames, 2]"""
        if self.beyond == AGAIN and all(key in _MOVING for move in self.moves for key in move.keys):
            return walk(self.moves, self.frames).astype(np.float64)
        return _from_above(self.cameras())


@dataclass(frozen=True)
class CameraActions:
    """What travels along a QVG_CAMERA link: keys held for shares of the video's duration."""

    actions: tuple[Action, ...]
    frames: int

    def keys(self) -> str:
        """Raises ConfigError: there are none for whole latent frames."""
        raise ConfigError(
            "this camera is given by shares of the duration, but the demo world walks by keys and frames: d-14,s-11"
        )

    def cameras(self) -> Cameras:
        """A camera per latent frame, in space."""
        return self.by_pictures(Steps(UNITS_PER_FRAME / PICTURES, DEGREES_PER_FRAME / PICTURES))

    def by_pictures(self, steps: Steps) -> Cameras:
        """A camera per latent frame, where a held key leads with every picture as `steps` say."""
        return Cameras(latent_poses(picture_poses(action_pictures(self.actions, PICTURES * (self.frames - 1) + 1), steps)))

    def from_above(self) -> NDArray[np.float64]:
        """Where each frame stands, (row, column) in steps. -> [frames, 2]"""
        return _from_above(self.cameras())


@dataclass(frozen=True, eq=False)
class CameraPoses:
    """What travels along a QVG_CAMERA link: poses, whatever keys may lead along them."""

    poses: Cameras

    @property
    def frames(self) -> int:
        """Latent frames of the video."""
        return len(self.poses)

    def keys(self) -> str:
        """Raises ConfigError: there are none."""
        raise ConfigError("this camera is given by poses, but the demo world walks by keys; connect 'QVG Camera Path' to it")

    def cameras(self) -> Cameras:
        """A camera per latent frame, in space."""
        return self.poses

    def by_pictures(self, steps: Steps) -> Cameras:
        """The same: poses are what they are."""
        return self.poses

    def from_above(self) -> NDArray[np.float64]:
        """Where each frame stands, (row, column) in steps. -> [frames, 2]"""
        return _from_above(self.poses)


AnyCamera = CameraPath | CameraActions | CameraPoses


def read_camera(text: str, frames: int, beyond: str = AGAIN) -> CameraPath | CameraActions:
    """A path of keys and frames, or actions in JSON. Raises CameraPathError."""
    if text.lstrip()[:1] in ("{", "["):
        return CameraActions(read_actions(text), frames)
    return CameraPath(parse_path(text), frames, beyond)


def _from_above(cameras: Cameras) -> NDArray[np.float64]:
    """x to the right, z up the picture."""
    return cameras.poses[:, (2, 0), 3] * (-1.0, 1.0) / UNITS_PER_FRAME


def _looking(cameras: Cameras) -> NDArray[np.float64]:
    """Which way each frame looks, from above. -> [frames, 2], (row, column), shorter where it looks up or down"""
    return cameras.poses[:, (2, 0), 2] * (-1.0, 1.0)


def remembered(cameras: Cameras, memory: str) -> list[tuple[int, ...]]:
    """The frames that each chunk will see, as the sampler's vendor mode chooses them. Raises ConfigError for a broken chunk, and
    for more frames than a session has: what is looked through grows with their square."""
    check_frames(len(cameras))
    world = memories()[memory]
    field, views = FieldOfView(dtype=world.dtype), torch.from_numpy(cameras.views())

    def select(current: int) -> list[int]:
        return select_context(world.frames, views[: current + CHUNK_FRAMES], current, field)

    return [plan_chunk(index, "vendor", select).context for index in range(chunks_of(len(cameras)))]


def _picture(camera: AnyCamera, memory: str = NO_MEMORY) -> Any:
    """For the page: the path from above, beside it what is remembered. -> [1, H, W, 3]"""
    looks = not isinstance(camera, CameraPath) or any(key not in _MOVING for move in camera.moves for key in move.keys)
    pictures: list[Picture] = [path_picture(camera.from_above(), _looking(camera.cameras()) if looks else None)]
    if memory != NO_MEMORY:
        pictures.append(remembered_picture(remembered(camera.cameras(), memory), camera.frames))
    return torch.from_numpy(np.concatenate(pictures, 1))[None].float() / 255


class QVGCameraPath(Node):
    """Pose string to camera, drawn from above."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGCameraPath",
            display_name="QVG Camera Path",
            category=CATEGORY,
            description="Which keys the camera holds for how many latent frames, such as d-14,s-11,a-14,w-11: once around a "
            "rectangle. A path that ends before the video is walked again, so a closed path visits every place again.",
            search_aliases=["qvg", "pose string", "camera trajectory", "wasd"],
            inputs=[
                io.String.Input(
                    "path",
                    default=DEFAULT_PATH,
                    tooltip="Comma separated parts keys-frames. Keys: w a s d move, up down left right look; hold several "
                    "with +, as in w+d-8. The demo world looks straight down and knows w a s d only. Or DreamX-World's JSON: "
                    "action_seq, and action_speed_list as shares of the duration.",
                ),
                io.Int.Input("frames", default=101, min=2, max=100_000, tooltip="Latent frames of the video."),
                io.Combo.Input(
                    "beyond",
                    options=["again", "stay", "refuse"],
                    default=AGAIN,
                    tooltip="When the path ends before the video. again: walk it again from where the camera is. stay: stand "
                    "still. refuse: path and video must be of one length, a frame more than the keys are held.",
                    optional=True,
                ),
                io.Combo.Input(
                    "memory",
                    options=[NO_MEMORY, *memories()],
                    default=NO_MEMORY,
                    tooltip="Also draw which earlier frames each chunk of four will see, as this model chooses them by where the "
                    "camera looks. Changes nothing but the picture.",
                    optional=True,
                ),
            ],
            outputs=[Camera.Output(display_name="camera", tooltip="For Demo World Start, World Start and Camera Video Start.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, path: Any = None) -> bool | str:
        if not isinstance(path, str):
            # Linked: what will come is not known before the run, and `execute` checks it. Or no text, which ComfyUI has said.
            return True
        try:
            read_camera(path, 2)
        except CameraPathError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, path: str, frames: int, beyond: str = AGAIN, memory: str = NO_MEMORY) -> io.NodeOutput:
        camera = read_camera(path, frames, beyond)
        if beyond == "refuse":
            camera.cameras()
        return io.NodeOutput(camera, ui=ui.PreviewImage(_picture(camera, memory), cls=cls))


class QVGCameraPoses(Node):
    """Pose file to camera, and camera to pose file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGCameraPoses",
            display_name="QVG Camera Poses",
            category=CATEGORY,
            description="A camera from the text of a pose file, as HY-WorldPlay's tools write them, or the text of one from a "
            "camera of keys. One pose per latent frame: a camera-to-world matrix and the camera's own.",
            search_aliases=["qvg", "camera json", "pose file", "camera trajectory", "extrinsics"],
            inputs=[
                io.String.Input(
                    "poses",
                    default="",
                    multiline=True,
                    tooltip="JSON: an object of 0, 1, ... each with extrinsic (4 x 4 camera-to-world) and K (3 x 3 in pixels). "
                    "Paste it, or connect a node that reads a text file. Empty where a camera is connected.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Latent frames of the video; further poses are left out. 0: as many as there are poses, in whole "
                    "chunks of 4.",
                ),
                Camera.Input("camera", tooltip="A camera to write down as poses, in place of the text.", optional=True),
            ],
            outputs=[
                Camera.Output(display_name="camera", tooltip="For World Start and Camera Video Start."),
                io.String.Output(display_name="poses", tooltip="The text of a pose file, for a node that saves text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, poses: Any = None) -> bool | str:
        if not isinstance(poses, str) or not poses.strip():
            return True
        try:
            read_poses(poses)
        except CameraPathError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, poses: str, frames: int, camera: AnyCamera | None = None) -> io.NodeOutput:
        if bool(poses.strip()) == (camera is not None):
            both = "both a text and a camera are given" if camera is not None else "neither a text nor a camera is given"
            raise ConfigError(f"{both}, but poses come from one of them; paste the text of a pose file, or connect a camera")
        cameras = read_poses(poses) if camera is None else camera.cameras()
        if frames > len(cameras):
            raise CameraPathError(
                f"there are {len(cameras)} camera poses, but the video has {frames} latent frames; add "
                f"{frames - len(cameras)}, or set frames to 0"
            )
        cut, wanted = "", frames or max(CHUNK_FRAMES, len(cameras) // CHUNK_FRAMES * CHUNK_FRAMES)
        if wanted < len(cameras):
            # HY-WorldPlay's own files have one pose more than frames, and its own tools take the first ones.
            cut = f"{len(cameras)} camera poses: the first {wanted} are taken, {len(cameras) - wanted} left out"
            logger.info("QVG: %s", cut)
        given = CameraPoses(cameras.first(wanted))
        shown = ui.PreviewImage(_picture(given), cls=cls).as_dict()
        return io.NodeOutput(given, write_poses(given.poses), ui={**shown, "text": (cut,)} if cut else shown)
