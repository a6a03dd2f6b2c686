"""HY-WorldPlay's HunyuanVideo as the sampler, the cache and the plan see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....qvg import ConfigError, GridRope
from ....qvg.camera.selection import HUNYUAN_MEMORY
from ....qvg.models.common.variants import CausalVariant
from ....qvg.models.worldplay_hunyuan.checkpoint import LATENT_CHANNELS
from ....qvg.models.worldplay_hunyuan.modules import HEAD_DIM
from ....qvg.positions.rope import hunyuan_rope
from .face import WorldFace
from .hunyuan_walk import UNWANTED, hunyuan_world


class WorldPlay8B(WorldFace):
    """On HunyuanVideo 1.5; `variant` is the stage of its training."""

    name, network = "WorldPlay 8B", "worldplay-8b"
    channels = LATENT_CHANNELS
    token_pixels, patch = 16, 1
    first_frames = HUNYUAN_MEMORY.first_frames
    reads = frozenset({"conditioning_byt5small", "clip_vision_output", "guidance"})
    checked_tokens = 1560  # of 832 x 480

    def __init__(self, variant: CausalVariant):
        self.variant = variant

    def head_dim(self, network: Any) -> int:
        """Of all that there are."""
        return HEAD_DIM

    def blocks(self, network: Any) -> Any:
        """Of core's network."""
        return network.double_blocks

    def mlp(self, block: Any) -> Any:
        """Its first layer, of the frames' stream."""
        return block.img_mlp[0]

    def rope(self, base_model: Any, grid: tuple[int, int]) -> GridRope:
        """HunyuanVideo's."""
        return hunyuan_rope(*grid)

    def check_guider(self, cfg: float, conds: Mapping[str, Any], given: int) -> None:
        """Guided unless distilled, and with a picture."""
        wanted = self.variant.guidance
        if wanted == 1 and cfg != 1:
            raise ConfigError(
                f"cfg is {cfg}, but {self.variant.name} is distilled to need no guidance; use BasicGuider, or set cfg to 1"
            )
        if cfg < 1 or (cfg > 1 and UNWANTED not in conds):
            raise ConfigError(
                f"{self.variant.name} is guided (cfg {wanted:g}), but the guider has cfg {cfg} and "
                f"{'a' if UNWANTED in conds else 'no'} negative prompt; use CFGGuider with cfg 1 or more"
            )
        if not given:
            raise ConfigError(f"{self.name} begins with a picture, and no frame is given; choose start image on 'World Start'")

    def walk(self, plan: Any, guider: Any, extra_args: dict[str, Any], progress: Any) -> tuple[Any, Any]:
        """A memory for each text."""
        return hunyuan_world(plan, guider, extra_args, progress)
