"""What ComfyUI's causal Wan model tells of itself to a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....qvg.models.common.shape import NetworkShape
from ....qvg.models.common.video_decoder import WAN_2_1, WAN_2_2
from ....qvg.models.wan.shape import wan_shape
from ..model_plan import count
from ..settings import variant_of

# What ComfyUI's own causal Wan is called in reports.
CORE_NAME = "causal Wan"
_DECODERS = {16: WAN_2_1, 48: WAN_2_2}  # by channels of the latent


def is_causal(base_model: Any) -> bool:
    """Whether this is core's own causal Wan: such models have a function that allocates their cache."""
    return hasattr(getattr(base_model, "diffusion_model", None), "init_kv_caches")


def name_of(base_model: Any) -> str:
    """What reports call it: core's own alike, ours by their names."""
    return str(getattr(base_model.diffusion_model, "qvg_title", CORE_NAME))


def causal_shape(model: Any) -> NetworkShape:
    """Of a MODEL, by its own layers."""
    network, variant = model.model.diffusion_model, variant_of(model.model_options)
    width = network.num_heads * network.head_dim
    mlp = getattr(network.blocks[0].ffn[0], "out_features", 6 * width)  # packs that quantize weights bring layers of their own
    chunk = 3 if variant is None else variant.frames_per_block
    title = CORE_NAME if variant is None else variant.name
    channels = model.model.latent_format.latent_channels
    own = variant is not None and variant.sizes is not None  # no model whose VAE is Wan's
    decoder = None if own else _DECODERS.get(channels)
    return replace(
        wan_shape(title, len(network.blocks), network.num_heads, mlp, sum(map(count, network.parameters())), chunk),
        head_dim=network.head_dim,
        channels=channels,
        decoder=decoder,
        token_pixels=network.patch_size[-1] * (decoder.latent_pixels if decoder else 8),
        text_channels=getattr(network.text_embedding[0], "in_features", 4096),
        frame_pictures=4 if variant is None else variant.frame_pictures,
        sizes=None if variant is None else variant.sizes,
    )
