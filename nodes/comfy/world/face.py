"""A world as its sampler, its cache and its plan see it: what differs between networks, on core's `BaseModel`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from ....qvg import CacheSpec, ConfigError, GridRope, QVGConfig
from ....qvg.models.common.variants import CausalVariant

# Attribute of a `BaseModel` of core's that is a world.
WORLD = "qvg_world"
# Where a pass finds what it is to do, in transformer_options.
PASS_KEY = "qvg_world_pass"


def world_of(base_model: Any) -> Any:
    """The `WorldFace` of a model that is a world; None for others."""
    return getattr(base_model, WORLD, None)


class WorldFace(ABC):
    """Holds no tensors, as ComfyUI may make the model anew. `network`: its name in plans; `token_pixels` of the video and `patch`
    of the latent along a token's side; `first_frames`: at the beginning, which mode vendor always remembers besides; `reads`:
    what of a conditioning the network looks at beside the prompt; `checked_tokens`: the most of a frame for which settings are
    checked before the size of a video is known."""

    name: str
    network: str
    channels: int
    token_pixels: int
    patch: int
    checked_tokens: int
    first_frames = 0
    reads: frozenset[str] = frozenset()
    variant: CausalVariant

    def cache_spec(self, base_model: Any, grid: tuple[int, int], chunk_frames: int, batch: int, codec: str) -> CacheSpec:
        """What its memory is, `grid` rows and columns of tokens in a frame. Codec "none" keeps what the network computes."""
        network, compute = base_model.diffusion_model, base_model.get_dtype_inference()
        dtype = torch.bfloat16 if codec != "none" and compute.itemsize > 2 else compute
        layers, heads = len(self.blocks(network)), network.num_heads
        return CacheSpec(layers, heads, self.head_dim(network), grid[0] * grid[1], chunk_frames, batch, dtype)

    def check_config(self, base_model: Any, config: QVGConfig) -> None:
        """Raise ConfigError for settings that no world's memory can have."""
        if config.window_frames is not None:
            raise ConfigError(
                f"window_frames is {config.window_frames}, but which frames a world remembers is chosen on World Sampler; set it "
                "to 0"
            )
        self.cache_spec(base_model, (1, self.checked_tokens), self.variant.frames_per_block, 1, config.codec).check(config)

    @abstractmethod
    def head_dim(self, network: Any) -> int:
        """Channels of a head."""

    @abstractmethod
    def blocks(self, network: Any) -> Any:
        """The network's layers."""

    @abstractmethod
    def mlp(self, block: Any) -> Any:
        """What widens a layer's tokens."""

    @abstractmethod
    def rope(self, base_model: Any, grid: tuple[int, int]) -> GridRope:
        """Positions of a frame's tokens."""

    @abstractmethod
    def check_guider(self, cfg: float, conds: Mapping[str, Any], given: int) -> None:
        """Raise ConfigError for guidance that the model does not have, or is missing; `given` frames are there already."""

    @abstractmethod
    def walk(self, plan: Any, guider: Any, extra_args: dict[str, Any], progress: Any) -> tuple[Any, Any]:
        """The network behind the guider, and the `World` that is walked through; `plan` is a `WorldPlan`."""
