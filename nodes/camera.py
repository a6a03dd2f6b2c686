"""Where the camera goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..qvg.camera import Move, format_path, parse_path, walk
from ..qvg.demo import DEFAULT_PATH
from ..qvg.errors import CameraPathError
from .api import CATEGORY, Camera, io, ui
from .pictures import path_picture

_MOVING = ("w", "a", "s", "d")


@dataclass(frozen=True)
class CameraPath:
    """What travels along a QVG_CAMERA link."""

    moves: tuple[Move, ...]
    frames: int

    @property
    def path(self) -> str:
        """The pose string in its shortest form."""
        return format_path(self.moves)

    def from_above(self) -> NDArray[np.int64]:
        """Where each frame stands, (row, column), as far as moving keys tell. -> [frames, 2]"""
        moving = [_moving_part(move) for move in self.moves]
        if all(part is None for part in moving):
            return np.zeros((self.frames, 2), np.int64)
        return walk([part for part in moving if part is not None], self.frames)


def _moving_part(move: Move) -> Move | None:
    keys = tuple(key for key in move.keys if key in _MOVING)
    return Move(keys, move.frames) if keys else None


class QVGCameraPath(io.ComfyNode):
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
                    "with +, as in w+d-8. The demo world looks straight down and knows w a s d only.",
                ),
                io.Int.Input("frames", default=101, min=2, max=100_000, tooltip="Latent frames of the video."),
            ],
            outputs=[Camera.Output(display_name="camera", tooltip="For Demo World Start.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, path: str | None = None) -> bool | str:
        if path is None:
            # Linked: what will come is not known before the run, and `execute` checks it.
            return True
        try:
            parse_path(path)
        except CameraPathError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, path: str, frames: int) -> io.NodeOutput:
        camera = CameraPath(parse_path(path), frames)
        picture = torch.from_numpy(path_picture(camera.from_above()))[None].float() / 255
        return io.NodeOutput(camera, ui=ui.PreviewImage(picture, cls=cls))
