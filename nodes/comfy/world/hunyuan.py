"""HY-WorldPlay's HunyuanVideo as ComfyUI's own HunyuanVideo 1.5 network with the layers that were added to it.

The added layers become modules of core's network, made of its own kind of layers, so LoRA, casting to fewer bits and offloading
treat them as the rest. The passes are `qvg.models.worldplay_hunyuan`'s, over core's modules: a text alone, frames that see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..layers import put_layers, require_parts, twin

ACTION, PROJECTION = "action_in", "img_attn_prope_proj"
_PARTS = ("img_in", "time_in", "txt_in", "byt5_in", "vision_in", "cond_type_embedding", "double_blocks", "final_layer")
_STREAM_PARTS = ("mod", "norm1", "attn", "norm2", "mlp")
_BLOCK_PARTS = tuple(f"{stream}_{part}" for stream in ("img", "txt") for part in _STREAM_PARTS)


def is_hunyuan(base_model: Any) -> bool:
    """Whether this is core's HunyuanVideo 1.5: of its predecessors none tells frames, text and picture apart."""
    network = getattr(base_model, "diffusion_model", None)
    return hasattr(network, "double_blocks") and getattr(network, "cond_type_embedding", None) is not None


def attach_layers(network: Any, layers: Mapping[str, Tensor], assign: bool) -> None:
    """Give core's network WorldPlay's own layers. Raises UnsupportedModelError where it is not the network that we know."""
    parts = {name: getattr(network, name, None) for name in _PARTS}
    require_parts("HunyuanVideo 1.5", parts, parts["double_blocks"] and network.double_blocks[0], _BLOCK_PARTS)
    added = {
        f"double_blocks.{number}.{PROJECTION}": twin(block.img_attn.proj) for number, block in enumerate(network.double_blocks)
    }
    added[ACTION] = torch.nn.Module()
    for part in ("in_layer", "out_layer"):
        added[ACTION].add_module(part, twin(getattr(network.time_in, part)))
    put_layers(network, added, layers, assign)
