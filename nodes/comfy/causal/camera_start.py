"""The latent that a walk starts from, and cameras on its conditioning, for a model that is told of cameras."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....qvg import ConfigError
from ....qvg.models.common.variants import CausalVariant
from ....qvg.models.registry import joined, loaders
from ..settings import CAMERAS_KEY, variant_of
from .own_steps import check_frames
from .video_start import KINDS, WAN_2_2, LatentKind, start_latent

TOKEN = 2  # latent pixels of a token's side


def start(
    model: Any, conditioning: Any, camera: Any, size: tuple[int, int], vae: Any, image: Tensor | None, extend: Any
) -> tuple[list[Any], dict[str, Any], str]:
    """Conditioning with cameras, the LATENT, and how long it is, for people. `image` [1, H, W, 3]. Raises ConfigError for what
    does not fit, and for a MODEL that is told of no cameras."""
    variant, kind = _camera_variant(model), _kind(model)
    _check_size(variant, kind, size)
    frames = camera.frames
    given = 1 if image is not None else 0 if extend is None else extend["samples"].shape[2]
    check_frames(variant, frames, given, variant.frames_per_block)
    assert variant.cameras is not None
    cameras = camera.by_pictures(variant.cameras)
    latent = start_latent(size, frames, 1, vae, image, extend, kind)
    conditioned = [[tokens, {**rest, CAMERAS_KEY: cameras}] for tokens, rest in conditioning]
    said = f"{frames // variant.frames_per_block} blocks, {frames} latent frames, {4 * frames - 3} pictures"
    return conditioned, latent, said


def _camera_variant(model: Any) -> CausalVariant:
    variant = variant_of(model.model_options)
    if variant is None or variant.cameras is None:
        names = joined(loaders(lambda family: any(each.cameras for each in family.variants.values())), "or")
        raise ConfigError(
            f"this MODEL is told of no cameras in the way of 'Camera Video Start'; connect one of {names}, or take 'World "
            "Start' for "
            "WorldPlay"
        )
    return variant


def _kind(model: Any) -> LatentKind:
    return KINDS.get(model.model.latent_format.latent_channels, WAN_2_2)


def _check_size(variant: CausalVariant, kind: LatentKind, size: tuple[int, int]) -> None:
    side = TOKEN * kind.pixels
    if size[0] % side or size[1] % side:
        fitting = " x ".join(str(max(1, round(each / side)) * side) for each in size)
        raise ConfigError(
            f"the video is {size[0]} x {size[1]}, but {variant.name} makes tokens of {side} x {side} pixels; use {fitting}"
        )
