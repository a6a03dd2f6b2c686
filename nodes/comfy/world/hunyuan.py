"""HY-WorldPlay's HunyuanVideo as ComfyUI's own HunyuanVideo 1.5 network with the layers that were added to it.

The added layers become modules of core's network, made of its own kind of layers, so LoRA, casting to fewer bits and offloading
treat them as the rest. The passes are `qvg.models.worldplay_hunyuan`'s, over core's modules: a text alone, frames that see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ....qvg import CacheSpec, ConfigError, GridRope, QVGConfig, UnsupportedModelError
from ....qvg.camera.selection import HUNYUAN_MEMORY
from ....qvg.models.common.variants import CausalVariant
from ....qvg.models.worldplay_hunyuan.modules import HEAD_DIM
from ....qvg.positions.rope import hunyuan_rope

# What ComfyUI's guiders call the prompt that is to be kept away from.
UNWANTED = "negative"
ACTION, PROJECTION = "action_in", "img_attn_prope_proj"
_PARTS = ("img_in", "time_in", "txt_in", "byt5_in", "vision_in", "cond_type_embedding", "double_blocks", "final_layer")
_STREAM_PARTS = ("mod", "norm1", "attn", "norm2", "mlp")
_BLOCK_PARTS = tuple(f"{stream}_{part}" for stream in ("img", "txt") for part in _STREAM_PARTS)
# The most tokens of a frame for which settings are checked before the size of a video is known: those of 832 x 480.
_TOKENS = 1560


class WorldPlay8B:
    """What the sampler and the cache ask of this model, as `WorldPlay5B` for Wan."""

    name, shape = "WorldPlay 8B", "worldplay-8b"
    rule = HUNYUAN_MEMORY
    channels = 32
    # Of the video, per token along a side; of the latent.
    token_pixels, patch = 16, 1
    # Frames at the beginning that mode vendor always remembers besides.
    first_frames = HUNYUAN_MEMORY.first_frames

    def __init__(self, variant: CausalVariant):
        self.variant = variant

    def cache_spec(self, base_model: Any, grid: tuple[int, int], chunk_frames: int, batch: int, codec: str) -> CacheSpec:
        """What its memory is, `grid` rows and columns of tokens in a frame. Codec "none" keeps what the network computes."""
        network, compute = base_model.diffusion_model, base_model.get_dtype_inference()
        dtype = torch.bfloat16 if codec != "none" and compute.itemsize > 2 else compute
        return CacheSpec(len(network.double_blocks), network.num_heads, HEAD_DIM, grid[0] * grid[1], chunk_frames, batch, dtype)

    def blocks(self, network: Any) -> Any:
        """The network's layers."""
        return network.double_blocks

    def mlp(self, block: Any) -> Any:
        """What widens a layer's tokens."""
        return block.img_mlp[0]

    def check_config(self, base_model: Any, config: QVGConfig) -> None:
        """Raise ConfigError for settings that no world's memory can have."""
        if config.window_frames is not None:
            raise ConfigError(
                f"window_frames is {config.window_frames}, but which frames a world remembers is chosen on World Sampler; set it "
                "to 0"
            )
        self.cache_spec(base_model, (1, _TOKENS), self.variant.frames_per_block, 1, config.codec).check(config)

    def rope(self, base_model: Any, grid: tuple[int, int]) -> GridRope:
        """Positions of a frame's tokens."""
        return hunyuan_rope(*grid)


def attach_layers(network: Any, layers: Mapping[str, Tensor], assign: bool) -> None:
    """Give core's network WorldPlay's own layers. Raises UnsupportedModelError where it is not the network that we know."""
    missing = [name for name in _PARTS if getattr(network, name, None) is None]
    missing += [] if missing else [name for name in _BLOCK_PARTS if not hasattr(network.double_blocks[0], name)]
    if missing:
        raise UnsupportedModelError(
            f"this ComfyUI's HunyuanVideo 1.5 has no {', '.join(missing)}, which WorldPlay goes through; ComfyUI 0.21 to 0.33 "
            "have it: update QVG, or go back to one of these"
        )
    added = {
        f"double_blocks.{number}.{PROJECTION}": _twin(block.img_attn.proj) for number, block in enumerate(network.double_blocks)
    }
    added[ACTION] = torch.nn.Module()
    for part in ("in_layer", "out_layer"):
        added[ACTION].add_module(part, _twin(getattr(network.time_in, part)))
    for name, module in added.items():
        weights = {key.removeprefix(f"{name}."): weight for key, weight in layers.items() if key.startswith(f"{name}.")}
        # The types that the model is to have, as core notes its own: assigned weights keep those of the file until they are used.
        mm.archive_model_dtypes(module)
        module.load_state_dict(weights, assign=assign)
        place, _, last = name.rpartition(".")
        network.get_submodule(place).add_module(last, module.requires_grad_(False))


def _twin(layer: Any) -> Any:
    """A layer of the same class, so of the operations that ComfyUI chose for this model, of the same size and type."""
    # The weight may still be as it lies in the file, to become what the model is to have when it is used.
    dtype = getattr(layer, "weight_comfy_model_dtype", None) or layer.weight.dtype
    return type(layer)(layer.in_features, layer.out_features, bias=True, dtype=dtype, device=layer.weight.device)


def check_8b(cfg: float, conds: Mapping[str, Any], face: WorldPlay8B, given: int) -> None:
    """Raise ConfigError for guidance that the model does not have, or is missing, and for a world without a picture."""
    wanted = face.variant.guidance
    if wanted == 1 and cfg != 1:
        raise ConfigError(
            f"cfg is {cfg}, but {face.variant.name} is distilled to need no guidance; use BasicGuider, or set cfg to 1"
        )
    if cfg < 1 or (cfg > 1 and UNWANTED not in conds):
        raise ConfigError(
            f"{face.variant.name} is guided (cfg {wanted:g}), but the guider has cfg {cfg} and "
            f"{'a' if UNWANTED in conds else 'no'} negative prompt; use CFGGuider with cfg 1 or more"
        )
    if not given:
        raise ConfigError(f"{face.name} begins with a picture, and no frame is given; choose start image on 'World Start'")
