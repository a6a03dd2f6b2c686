"""HY-WorldPlay's Wan as ComfyUI's own Wan 2.2 network with the layers that were added to it, and one pass through it.

The added layers become modules of core's network, made of its own kind of layers, so LoRA, casting to fewer bits and offloading
treat them as the rest. A pass is ours: per frame a noise level and an action, and both self-attentions through a `WorldMemory`.
It runs inside core's `WanModel.forward`, as a wrapper on the MODEL, so what other nodes wrap around the network is still around.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ....qvg import ConfigError, UnsupportedModelError
from ....qvg.models.common.modulation import gated, modulated, sines
from ....qvg.models.wan.network import Attend
from ....qvg.models.worldplay_wan.network import Recording
from ....qvg.positions.rope import pairs_apart
from ..layers import put_layers, require_parts, twin
from .face import PASS_KEY

ACTION, PROJECTION = "action_embedding", "o_prope"
_PARTS = ("patch_embedding", "text_embedding", "time_embedding", "time_projection", "blocks", "head", "unpatchify")
_BLOCK_PARTS = ("norm1", "norm2", "norm3", "self_attn", "cross_attn", "ffn", "modulation")


@dataclass
class WorldPass:
    """One pass of the network. t, labels [B, F]; either `attend`, a denoise step, or `recording`, a context pass, which gives
    nothing back. `runs` counts how often the network was run."""

    t: Tensor
    labels: Tensor
    attend: Attend | None = None
    recording: Recording | None = None
    runs: int = field(default=0)


def attach_layers(network: Any, layers: Mapping[str, Tensor], assign: bool) -> None:
    """Give core's network WorldPlay's own layers. Raises UnsupportedModelError where it is not the network that we know."""
    parts = {name: getattr(network, name, None) for name in _PARTS}
    require_parts("Wan", parts, parts["blocks"] and network.blocks[0], _BLOCK_PARTS)
    added = {f"blocks.{number}.self_attn.{PROJECTION}": twin(block.self_attn.o) for number, block in enumerate(network.blocks)}
    added[ACTION] = torch.nn.Sequential(*(twin(layer) for layer in network.time_embedding))
    put_layers(network, added, layers, assign)


def world_forward(
    executor: Any,
    x: Tensor,
    timestep: Tensor,
    context: Tensor,
    clip_fea: Any = None,
    time_dim_concat: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **unused: Any,
) -> Tensor:
    """Core's wrapper around the network: one pass of ours in place of core's. x [B, C, F, h, w] -> velocity, the same shape."""
    options = transformer_options or {}
    coming: WorldPass | None = options.get(PASS_KEY)
    if coming is None:
        raise UnsupportedModelError(
            "WorldPlay paints a world chunk after chunk, and needs a sampler that does so and knows the camera; connect 'World "
            "Sampler' to SamplerCustomAdvanced"
        )
    if x.shape[0] != coming.t.shape[0]:
        raise ConfigError(
            f"the model was handed {x.shape[0]} videos at once, but the world has {coming.t.shape[0]}; use one prompt without "
            "areas or masks, and BasicGuider, or a guider at cfg 1"
        )
    coming.runs += 1
    # One moment's memory is no part of a compiled network. Who has not imported torch._dynamo does not compile.
    run = torch.compiler.disable(network_pass) if "torch._dynamo" in sys.modules else network_pass
    velocity: Tensor = run(executor.class_obj, x, context, coming, options)
    return velocity


def network_pass(network: Any, x: Tensor, context: Tensor, coming: WorldPass, options: dict[str, Any]) -> Tensor:
    """The pass itself, through core's modules. A context pass ends where nothing more is needed, and gives x back."""
    tokens = network.patch_embedding(x.float()).to(x.dtype)
    grid = tokens.shape[2:]
    tokens = tokens.flatten(2).transpose(1, 2).contiguous()
    t, labels = (numbers.to(x.device) for numbers in (coming.t, coming.labels))
    action = getattr(network, ACTION)
    level = network.time_embedding(sines(t).to(x.dtype)) + action(sines(labels).to(x.dtype))
    shared = network.time_projection(level).unflatten(2, (6, -1))
    # Longer prompts are cut, as the official code cuts them.
    text = network.text_embedding(context[:, : network.text_len])
    attend = coming.attend if coming.recording is None else coming.recording.attend_context
    assert attend is not None
    last = len(network.blocks) - 1
    for layer, block in enumerate(network.blocks):
        if layer == last and coming.recording is not None:
            shift, scale, *_ = _parts(block, tokens, shared)
            coming.recording.keep(layer, *_keys_values(block.self_attn, modulated(block.norm1(tokens), shift, scale)))
            return x
        tokens = _block(block, tokens, shared, text, layer, attend, options)
    velocity: Tensor = network.unpatchify(network.head(tokens, level), grid)
    return velocity


def _block(
    block: Any, tokens: Tensor, shared: Tensor, text: Tensor, layer: int, attend: Attend, options: dict[str, Any]
) -> Tensor:
    """tokens [B, F*S, W], shared [B, F, 6, W], text [B, T, W]."""
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = _parts(block, tokens, shared)
    attention = block.self_attn
    x = modulated(block.norm1(tokens), shift_a, scale_a)
    keys, values = _keys_values(attention, x)
    queries = pairs_apart(_heads(attention, attention.norm_q(attention.q(x))))
    along, by_cameras = (_joined(part) for part in attend(layer, queries, keys, values).to(x.dtype).chunk(2, -1))
    tokens = tokens + gated(attention.o(along) + getattr(attention, PROJECTION)(by_cameras), gate_a)
    tokens = tokens + block.cross_attn(block.norm3(tokens), text, transformer_options=options)
    update: Tensor = block.ffn(modulated(block.norm2(tokens), shift_m, scale_m))
    return tokens + gated(update, gate_m)


def _parts(block: Any, tokens: Tensor, shared: Tensor) -> tuple[Tensor, ...]:
    """Shift, scale and gate of attention, then of the MLP, each [B, F, 1, W]."""
    table = mm.cast_to(block.modulation, dtype=tokens.dtype, device=tokens.device)
    parts: tuple[Tensor, ...] = (table + shared).unsqueeze(3).unbind(2)
    return parts


def _keys_values(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return pairs_apart(_heads(attention, attention.norm_k(attention.k(x)))), _heads(attention, attention.v(x))


def _heads(attention: Any, x: Tensor) -> Tensor:
    heads: Tensor = x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
    return heads


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
