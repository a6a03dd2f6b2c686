"""What a MODEL tells of itself to a plan, and what this machine has. Nothing is loaded to the device."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management as mm

from ...qvg import CacheSpec, ConfigError, QVGConfig
from ...qvg.models.common.video_decoder import WAN_2_1, WAN_2_2
from ...qvg.models.shapes import SHAPES, NetworkShape, wan_shape
from ...qvg.plan import MOST_LATENT_FRAMES, Video, Weights, pictures, plan
from ...qvg.plan.advice import setting_that_fits
from ...qvg.plan.report import verdict
from .attach import CORE_NAME, SETTINGS_KEY, has_cache_of_core, require_cache, settings_of, variant_of, world_of

_DECODERS = {16: WAN_2_1, 48: WAN_2_2}  # by channels of the latent


def describe(model: Any) -> tuple[NetworkShape, Weights, QVGConfig | None]:
    """Shape and weights of a MODEL with a KV cache, and how QVG KV Cache is to keep it, None where that node is not in its way.
    Raises UnsupportedModelError for other models."""
    base_model = model.model
    if world_of(base_model) is not None:
        shape = _world(base_model)
    else:
        shape = _causal_wan(model) if has_cache_of_core(base_model) else _own(require_cache(base_model))
    has_settings = SETTINGS_KEY in model.model_options.get("transformer_options", {})
    compute = base_model.get_dtype_inference()
    kept = {1: "fp8", 4: "fp32"}.get(getattr(base_model.get_dtype(), "itemsize", 2), "bf16")
    return shape, Weights(kept, model.model_size(), compute), settings_of(model.model_options).config if has_settings else None


def device_bytes() -> int:
    """Memory of the device that models run on."""
    return int(mm.get_total_memory(mm.get_torch_device()))


def device_type() -> str:
    """Of this machine: "cuda", "cpu" and so on."""
    return str(mm.get_torch_device().type)


def known_memory(device: Any) -> int | None:
    """Of a graphics card on which a tensor that finds no room is an error. None: of devices that share main memory, and under
    Windows, whose drivers put there what does not fit."""
    return int(mm.get_total_memory(device)) if device.type in ("cuda", "xpu") and os.name != "nt" else None


def refuse_what_cannot_fit(model: Any, config: QVGConfig, spec: CacheSpec, frames: int, grid: tuple[int, int]) -> None:
    """Raise ConfigError, with the plan's sentence, where cache and activations are more than the whole device, however little of
    the weights is left there. `frames` are latent ones, `grid` a frame's tokens by row and column."""
    room = known_memory(model.load_device)
    if room is None or frames > MOST_LATENT_FRAMES:
        return
    network, weights, _ = describe(model)
    rows, cols = (side * network.token_pixels for side in grid)
    video = Video(cols, rows, pictures(frames, network), spec.batch, block_frames=spec.chunk_frames)
    make_plan = partial(plan, network, video, device_bytes=room, weights=weights)
    found = make_plan(config)
    # Activations are an upper bound, of which four fifths are certain; they are not at their worst when the cache is.
    end = found.cache_end_bytes - found.away_bytes
    if max(found.cache_peak_bytes - found.away_bytes, end + found.activation_bytes * 4 // 5) <= room:
        return
    setting = setting_that_fits(lambda other: make_plan(other), config, spec.chunk_frames)
    raise ConfigError(f"{verdict(found, room, setting)} See QVG Plan; settings are those of QVG KV Cache.")


def _causal_wan(model: Any) -> NetworkShape:
    network, variant = model.model.diffusion_model, variant_of(model.model_options)
    width = network.num_heads * network.head_dim
    mlp = getattr(network.blocks[0].ffn[0], "out_features", 6 * width)  # packs that quantize weights bring layers of their own
    chunk = 3 if variant is None else variant.frames_per_block
    title = CORE_NAME if variant is None else variant.name
    channels = model.model.latent_format.latent_channels
    decoder = _DECODERS.get(channels)
    return replace(
        wan_shape(title, len(network.blocks), network.num_heads, mlp, sum(map(_count, network.parameters())), chunk),
        head_dim=network.head_dim,
        channels=channels,
        decoder=decoder,
        token_pixels=network.patch_size[-1] * (decoder.latent_pixels if decoder else 8),
        text_channels=getattr(network.text_embedding[0], "in_features", 4096),
    )


def _world(base_model: Any) -> NetworkShape:
    """As the published one, in this one's sizes."""
    network, world = base_model.diffusion_model, world_of(base_model)
    parameters = sum(map(_count, network.parameters()))
    blocks, published = world.blocks(network), SHAPES[world.shape]
    in_layers = sum(_count(weight) for weight in blocks.parameters() if weight.ndim == 2)
    spec = world.cache_spec(base_model, (1, 1), 1, 1, "none")
    sizes = {"layers": spec.layers, "heads": spec.heads, "head_dim": spec.head_dim}
    mlp = getattr(world.mlp(blocks[0]), "out_features", published.mlp)
    return replace(published, title=world.name, **sizes, mlp=mlp, parameters=parameters, layer_parameters=in_layers)


def _own(base_model: Any) -> NetworkShape:
    """A model of ours: one latent frame is one picture, and all layers commit at once."""
    spec: CacheSpec = base_model.qvg_cache_spec(1)
    config = base_model.world_config
    parameters = sum(map(_count, base_model.diffusion_model.parameters()))
    return NetworkShape(
        base_model.qvg_name,
        spec.layers,
        spec.heads,
        config.mlp_ratio * config.width,
        parameters,
        parameters,
        decoder=None,
        head_dim=spec.head_dim,
        token_pixels=config.patch_pixels,
        chunk_frames=spec.chunk_frames,
        frame_pictures=1,
        channels=base_model.latent_format.latent_channels,
        text_tokens=0,
        by_layer=False,
        sizes=(config.picture_pixels, config.picture_pixels),
    )


def _count(weight: Any) -> int:
    return int(weight.numel())
