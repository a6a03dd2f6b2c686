"""Between latents and pictures: what a video starts from, and what of a segment the next one is conditioned on."""

from __future__ import annotations

import logging
import math
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from torch import Tensor

from ....qvg import ConfigError
from ....qvg.models.longcat.config import SegmentFrames
from ..decode import decode_pieces, split_batch, tiles_to_try
from ..room import require_numbers, require_room
from .run import FRAMES_KEY

logger = logging.getLogger(__name__)

CHANNELS = 16  # of Wan 2.1's VAE
PIXELS = 8  # of a picture's side become one of the latent's


def with_frames(conditioning: Any, frames: SegmentFrames) -> list[Any]:
    """CONDITIONING that knows how long a segment is."""
    return [[tokens, {**rest, FRAMES_KEY: frames}] for tokens, rest in conditioning]


def start_latent(
    size: tuple[int, int], segments: int, frames: SegmentFrames, vae: Any = None, pictures: Tensor | None = None
) -> dict[str, Any]:
    """LATENT of a video of `segments`, `size` (width, height) in pixels; a noise mask keeps what is given. `pictures`
    [N, H, W, 3] are that: one that it begins with, or those that a video ends with. Raises ConfigError for what does not fit."""
    total = frames.latents + (segments - 1) * frames.new_latents
    shape = (1, CHANNELS, total, size[1] // PIXELS, size[0] // PIXELS)
    require_room(4 * math.prod(shape), f"a latent of {list(shape)}", "fewer segments or a smaller size")
    samples = torch.zeros(shape, device=mm.intermediate_device())
    if pictures is None:
        return {"samples": samples}
    given = _encoded(vae, pictures, size)
    samples[:, :, : given.shape[2]] = given
    mask = torch.ones(1, 1, *shape[2:])
    mask[:, :, : given.shape[2]] = 0
    return {"samples": samples, "noise_mask": mask}


def _encoded(vae: Any, pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures [N, H, W, 3], N = 1 + 4k, cut and scaled to the size, as 1 + k latent frames."""
    scaled = comfy.utils.common_upscale(pictures.movedim(-1, 1), *size, "bicubic", "center").movedim(1, -1).clamp(0, 1)
    latent: Tensor = vae.encode(scaled)
    expected = [1, CHANNELS, 1 + (len(pictures) - 1) // 4, size[1] // PIXELS, size[0] // PIXELS]
    if list(latent.shape) != expected:
        raise ConfigError(
            f"this VAE makes a latent of {list(latent.shape)} of {len(pictures)} pictures, but LongCat-Video needs {expected}; "
            "load Wan 2.1's VAE"
        )
    require_numbers("what the VAE makes of the given pictures", latent)
    return latent


def through_pictures(base_model: Any, vae: Any, latents: Tensor, frames: SegmentFrames) -> Tensor:
    """As released: a segment's latents [1, C, F, h, w], as the network knows them, become pictures, the last of which are encoded
    again. -> [1, C, f, h, w], as the network knows them."""
    (samples,) = split_batch(vae, base_model.process_latent_out(latents.float()))
    pictures = _last_pictures(vae, samples, frames.condition)
    height, width = pictures.shape[1:3]
    condition: Tensor = base_model.process_latent_in(_encoded(vae, pictures, (width, height)))
    return condition


def _last_pictures(vae: Any, samples: Tensor, count: int) -> Tensor:
    """[count, H, W, 3]; no more than these and one piece are there at once. In tiles where memory runs out."""
    tiles = tiles_to_try(vae, samples)
    for tile, smaller in zip(tiles, [*tiles[1:], None], strict=True):
        try:
            last: Tensor | None = None
            for _, decoded in decode_pieces(vae, samples, tile):
                piece = decoded[..., :3].float().cpu()
                last = (piece if last is None else torch.cat([last, piece]))[-count:]
            assert last is not None
            return last.clamp(0, 1)
        except Exception as error:
            mm.raise_non_oom(error)
            if smaller is None:
                raise
        mm.soft_empty_cache()
        logger.warning("QVG: no memory to decode a segment whole; begins again in tiles of %d pixels", smaller)
    raise AssertionError("there is always one way to try")
