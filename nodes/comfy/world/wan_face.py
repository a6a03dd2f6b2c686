"""HY-WorldPlay's Wan as the sampler, the cache and the plan see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....qvg import ConfigError, GridRope
from ....qvg.models.worldplay_wan.checkpoint import LATENT_CHANNELS
from ....qvg.models.worldplay_wan.variants import WORLDPLAY_5B
from ....qvg.positions.rope import wan_rope
from .face import WorldFace
from .wan_walk import wan_world


class WorldPlay5B(WorldFace):
    """On Wan 2.2 5B."""

    name, network = "WorldPlay 5B", "worldplay-5b"
    variant = WORLDPLAY_5B
    channels = LATENT_CHANNELS
    token_pixels, patch = 32, 2
    checked_tokens = 880  # of 1280 x 704

    def head_dim(self, network: Any) -> int:
        """Of core's network."""
        return int(network.dim // network.num_heads)

    def blocks(self, network: Any) -> Any:
        """Of core's network."""
        return network.blocks

    def mlp(self, block: Any) -> Any:
        """Its first layer."""
        return block.ffn[0]

    def rope(self, base_model: Any, grid: tuple[int, int]) -> GridRope:
        """Wan's."""
        return wan_rope(*grid, self.head_dim(base_model.diffusion_model))

    def check_guider(self, cfg: float, conds: Mapping[str, Any], given: int) -> None:
        """It is distilled."""
        if cfg != 1.0:
            raise ConfigError(f"cfg is {cfg}, but {self.name} is distilled to need no guidance; use BasicGuider, or set cfg to 1")

    def walk(self, plan: Any, guider: Any, extra_args: dict[str, Any], progress: Any) -> tuple[Any, Any]:
        """One memory."""
        return wan_world(plan, guider, extra_args, progress)
