"""Worlds on core's networks: what a `WorldFace` says of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....qvg import QVGConfig
from ....qvg.models.common.shape import NetworkShape
from ....qvg.models.registry import networks
from ..adapter import Loader
from ..model_plan import count
from .face import world_of


class WorldAdapter:
    """See `adapter.Adapter`; `network` is the name of the face that it is for."""

    network = ""

    def matches(self, base_model: Any) -> bool:
        """By its face."""
        world = world_of(base_model)
        return world is not None and world.network == self.network

    def near(self, base_model: Any) -> str:
        """Other networks look like none of ours."""
        return ""

    def report_name(self, base_model: Any) -> str:
        """Its own."""
        return str(world_of(base_model).name)

    def require_counted(self, model: Any) -> None:
        """It always is."""

    def check_config(self, base_model: Any, config: QVGConfig) -> None:
        """By its face."""
        world_of(base_model).check_config(base_model, config)

    def keeps_padding(self, base_model: Any, config: QVGConfig) -> str:
        """Its text is read by core, or as part of its own attention."""
        return f"{self.report_name(base_model)} has no prompt of ours"

    def attach(self, clone: Any) -> None:
        """The run reads the settings."""

    def shape(self, model: Any) -> NetworkShape:
        """As the published one, in this one's sizes."""
        base_model = model.model
        network, world = base_model.diffusion_model, world_of(base_model)
        blocks, published = world.blocks(network), networks()[world.network]
        spec = world.cache_spec(base_model, (1, 1), 1, 1, "none")
        return replace(
            published,
            title=world.name,
            layers=spec.layers,
            heads=spec.heads,
            head_dim=spec.head_dim,
            mlp=getattr(world.mlp(blocks[0]), "out_features", published.mlp),
            parameters=sum(map(count, network.parameters())),
            layer_parameters=sum(count(weight) for weight in blocks.parameters() if weight.ndim == 2),
        )

    def sampled_by(self, base_model: Any, sampler: str) -> str:
        """By World Sampler alone."""
        return f"{self.report_name(base_model)} is sampled by 'World Sampler', which knows its cameras; connect that one"

    def loader(self) -> Loader:
        """Of its files."""
        raise NotImplementedError
