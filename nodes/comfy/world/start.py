"""The latent that a walk through a world starts from, and cameras on its conditioning."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from torch import Tensor

from ....qvg import ConfigError
from ....qvg.camera.cameras import Cameras
from ....qvg.models.common.world_schedule import CHUNK_FRAMES, check_frames, video_frames
from ....qvg.models.family import Family
from ....qvg.models.registry import by_world, joined, worlds
from ..room import require_numbers, require_room
from ..settings import CAMERAS_KEY

PIXELS = 16  # of a picture's side become one of the latent's


def _channels(world: Family) -> int:
    """Of its latent."""
    return next(iter(world.networks.values())).channels


def with_cameras(conditioning: Any, cameras: Cameras) -> list[Any]:
    """CONDITIONING that knows where each frame is seen from."""
    return [[tokens, {**rest, CAMERAS_KEY: cameras}] for tokens, rest in conditioning]


def walk_text(frames: int) -> str:
    """How long a walk of so many latent frames is, for people."""
    return f"{frames // CHUNK_FRAMES} chunks, {frames} latent frames, {video_frames(frames)} video frames"


def start_latent(size: tuple[int, int], frames: int, vae: Any, image: Tensor | None, extend: Any) -> dict[str, Any]:
    """LATENT of `frames` latent frames, `size` (width, height) in pixels; a noise mask keeps given frames. `image` [1, H, W, 3];
    `extend` a LATENT. Raises ConfigError for what does not fit."""
    check_frames(frames)
    width, height = size
    # Where nothing is given, that of the first world: begun by the prompt alone.
    shape = (1, _channels(worlds()[0][0]), frames, height // PIXELS, width // PIXELS)
    given = _encoded(vae, image, size) if image is not None else None if extend is None else _checked(extend["samples"], shape)
    shape = shape if given is None else (1, given.shape[1], *shape[2:])
    require_room(4 * math.prod(shape), f"a latent of {list(shape)}", "a smaller size")
    if given is None:
        return {"samples": torch.zeros(shape, device=mm.intermediate_device())}
    samples = torch.zeros((given.shape[0], *shape[1:]), device=mm.intermediate_device())
    samples[:, :, : given.shape[2]] = given
    mask = torch.ones(1, 1, *shape[2:])
    mask[:, :, : given.shape[2]] = 0
    return {"samples": samples, "noise_mask": mask}


def _encoded(vae: Any, image: Tensor, size: tuple[int, int]) -> Tensor:
    """The picture as one latent frame."""
    picture = comfy.utils.common_upscale(image.movedim(-1, 1), *size, "lanczos", "center").movedim(1, -1)
    latent: Tensor = vae.encode(picture)
    rows, cols = size[1] // PIXELS, size[0] // PIXELS
    needed = {world.title: [1, _channels(world), 1, rows, cols] for world, _ in worlds()}
    if list(latent.shape) not in needed.values():
        raise ConfigError(
            f"this VAE makes a latent of {list(latent.shape)} of the first picture, but needed is "
            f"{joined([f'{shape} ({title})' for title, shape in needed.items()], 'or')}; load the VAE of "
            f"{by_world(lambda rule: rule.vae)}"
        )
    return latent


def _checked(given: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A sampled world of whole chunks, shorter than the walk."""
    known = [_channels(world) for world, _ in worlds()]
    if given.ndim != 5 or given.shape[1] not in known or given.shape[3:] != shape[3:]:
        channels = joined(list(map(str, known)), "or")
        raise ConfigError(
            f"the world to extend is {list(given.shape)}, but [batch, channels, frames, height, width] must be [any, {channels}, "
            f"any, {shape[3]}, {shape[4]}]; set width and height to those of the world to extend"
        )
    frames = given.shape[2]
    if frames % CHUNK_FRAMES:
        raise ConfigError(
            f"the world to extend has {frames} latent frames, which are not whole chunks of {CHUNK_FRAMES}; cut it to "
            f"{frames // CHUNK_FRAMES * CHUNK_FRAMES}"
        )
    if frames >= shape[2]:
        raise ConfigError(
            f"the world to extend has {frames} latent frames and the camera walks for {shape[2]} in all, these included; let it "
            f"walk for {frames + CHUNK_FRAMES} or more"
        )
    require_numbers("the world to extend", given)
    return given
