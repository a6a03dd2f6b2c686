"""The latent that a causal Wan video starts from: room for its frames, and those that are given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from torch import Tensor

from ....qvg import ConfigError
from ..room import require_numbers, require_room


@dataclass(frozen=True)
class LatentKind:
    """Latents of a VAE, which `vae` names: their channels, and pixels of a picture's side that become one of theirs."""

    channels: int = 16
    pixels: int = 8
    vae: str = "Wan 2.1's VAE"


WAN_2_1, WAN_2_2 = LatentKind(), LatentKind(48, 16, "Wan 2.2's VAE")
KINDS = {kind.channels: kind for kind in (WAN_2_1, WAN_2_2)}


def kind_of(model: Any) -> LatentKind:
    """Latents of a MODEL; Wan 2.1's of none."""
    if model is None:
        return WAN_2_1
    channels = model.model.latent_format.latent_channels
    if channels not in KINDS:
        raise ConfigError(
            f"this MODEL's latents have {channels} channels, and 'Causal Video Start' makes {' or '.join(map(str, KINDS))}; "
            "take the "
            "latent from the model's own start node"
        )
    return KINDS[channels]


def start_latent(
    size: tuple[int, int],
    frames: int,
    batch: int,
    vae: Any,
    image: Tensor | None,
    extend: Any,
    kind: LatentKind = WAN_2_1,
) -> dict[str, Any]:
    """LATENT of `frames` latent frames, `size` (width, height) in pixels; a noise mask keeps given frames. `image` [1, H, W, 3];
    `extend` a LATENT. Raises ConfigError for what does not fit."""
    width, height = size
    shape = (batch, kind.channels, frames, height // kind.pixels, width // kind.pixels)
    require_room(4 * math.prod(shape), f"a latent of {list(shape)}", "fewer frames, a smaller size or a smaller batch")
    samples = torch.zeros(shape, device=mm.intermediate_device())
    given = (
        _encoded(vae, image, size, kind) if image is not None else None if extend is None else _checked(extend["samples"], shape)
    )
    if given is None:
        return {"samples": samples}
    if given.shape[2] >= frames:
        raise ConfigError(
            f"{given.shape[2]} latent frames are given, but frames asks for {frames} in all, given ones included; raise frames "
            f"above {4 * given.shape[2] - 3}"
        )
    samples[:, :, : given.shape[2]] = given
    mask = torch.ones(1, 1, *shape[2:])
    mask[:, :, : given.shape[2]] = 0
    return {"samples": samples, "noise_mask": mask}


def _encoded(vae: Any, image: Tensor, size: tuple[int, int], kind: LatentKind) -> Tensor:
    """The picture as one latent frame."""
    picture = comfy.utils.common_upscale(image.movedim(-1, 1), *size, "bilinear", "center").movedim(1, -1)
    latent: Tensor = vae.encode(picture)
    expected = [1, kind.channels, 1, size[1] // kind.pixels, size[0] // kind.pixels]
    if list(latent.shape) != expected:
        raise ConfigError(
            f"this VAE makes a latent of {list(latent.shape)} of the start image, but causal Wan needs {expected}; "
            f"load {kind.vae}"
        )
    return latent


def _checked(given: Tensor, shape: tuple[int, ...]) -> Tensor:
    fits = given.ndim == 5 and given.shape[1] == shape[1] and given.shape[3:] == shape[3:]
    if not fits or given.shape[0] not in (1, shape[0]):
        batch = "1" if shape[0] == 1 else f"1 or {shape[0]}"
        raise ConfigError(
            f"the latent to extend is {list(given.shape)}, but [batch, channels, frames, height, width] must be "
            f"[{batch}, {shape[1]}, any, {shape[3]}, {shape[4]}]; set width, height and batch_size to those of the video to "
            "extend"
        )
    require_numbers("the latent to extend", given)
    return given
