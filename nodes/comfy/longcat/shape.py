"""What LongCat-Video takes of memory, and settings that its memory can have. Importing it needs no ComfyUI."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....qvg import ConfigError, QVGConfig
from ....qvg.models.common.shape import NetworkShape
from ....qvg.models.longcat.config import CONDITION_PICTURES, latent_frames
from ....qvg.models.longcat.memory import condition_config
from ....qvg.models.longcat.variants import DISTILLED
from ....qvg.models.registry import networks
from ..model_plan import count
from ..settings import variant_of

NAME, NETWORK = "LongCat-Video", "longcat-13b"
# Latent rows and columns of 832 x 480, for which settings are checked before the size of a video is known.
_CHECKED = (60, 104)


def check_config(base_model: Any, config: QVGConfig) -> None:
    """Raise ConfigError for settings that do not fit it, as far as the size of a video does not matter."""
    if config.window_frames is not None:
        raise ConfigError(
            f"window_frames is {config.window_frames}, but what a segment of {NAME} remembers is what it is conditioned on; set "
            "it to 0, and condition_pictures on 'LongCat Start'"
        )
    if config.sparse:
        raise ConfigError(
            f"sparse is {config.sparse:g}, but {NAME} reads all of what a segment is conditioned on, which is made once; use "
            "sparse 0"
        )
    frames = latent_frames(CONDITION_PICTURES)
    shape = base_model.diffusion_model.config
    shape.condition_spec(*_CHECKED, frames).check(condition_config(config, frames))


def longcat_shape(model: Any) -> NetworkShape:
    """As the published one, in this one's sizes."""
    network = model.model.diffusion_model
    config = network.config
    return replace(
        networks()[NETWORK],
        title=NAME,
        layers=config.layers,
        heads=config.heads,
        head_dim=config.head_dim,
        mlp=config.mlp,
        text_channels=config.text_channels,
        branches=1 if variant_of(model.model_options) is DISTILLED else 2,
        parameters=sum(map(count, network.parameters())),
        layer_parameters=sum(count(weight) for weight in network.blocks.parameters() if weight.ndim == 2),
    )
