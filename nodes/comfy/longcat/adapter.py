"""LongCat-Video's cache. See `adapter.Adapter`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....qvg import ConfigError, QVGConfig
from ....qvg.models.common.shape import NetworkShape
from ....qvg.models.longcat.config import CONDITION_PICTURES, latent_frames
from ....qvg.models.longcat.memory import condition_config
from ....qvg.models.longcat.variants import DISTILLED
from ....qvg.models.registry import networks
from ..adapter import Adapter, Loader
from ..model_plan import count
from ..settings import variant_of

NAME, NETWORK = "LongCat-Video", "longcat-13b"
# Latent rows and columns of 832 x 480, for which settings are checked before the size of a video is known.
_CHECKED = (60, 104)


class LongCatAdapter:
    """Of the network that is ours."""

    def matches(self, base_model: Any) -> bool:
        """By its mark."""
        return bool(getattr(base_model, "qvg_longcat", False))

    def near(self, base_model: Any) -> str:
        """ComfyUI's own loader makes nothing of such files."""
        return ""

    def report_name(self, base_model: Any) -> str:
        """As published."""
        return NAME

    def require_counted(self, model: Any) -> None:
        """It always is."""

    def check_config(self, base_model: Any, config: QVGConfig) -> None:
        """As far as the size of a video does not matter."""
        if config.window_frames is not None:
            raise ConfigError(
                f"window_frames is {config.window_frames}, but what a segment of {NAME} remembers is what it is conditioned on; "
                "set it to 0, and condition_pictures on 'LongCat Start'"
            )
        frames = latent_frames(CONDITION_PICTURES)
        shape = base_model.diffusion_model.config
        shape.condition_spec(*_CHECKED, frames).check(condition_config(config, frames))

    def keeps_padding(self, base_model: Any, config: QVGConfig) -> str:
        """It attends to padding as it was trained to."""
        return f"{NAME} keeps nothing of a prompt between passes"

    def attach(self, clone: Any) -> None:
        """The run reads the settings."""

    def shape(self, model: Any) -> NetworkShape:
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

    def sampled_by(self, base_model: Any, sampler: str) -> str:
        """By its own sampler alone."""
        return f"{NAME} is sampled by 'LongCat Sampler', which knows its segments; connect that one"

    def loader(self) -> Loader:
        """Of its files."""
        from . import load

        return load


ADAPTER: Adapter = LongCatAdapter()
