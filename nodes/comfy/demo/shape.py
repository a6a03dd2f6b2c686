"""What the demo world tells of itself to a plan."""

from __future__ import annotations

from typing import Any

from ....qvg import CacheSpec
from ....qvg.models.common.shape import NetworkShape
from ..model_plan import count


def demo_shape(base_model: Any) -> NetworkShape:
    """A model of ours: one latent frame is one picture, and all layers commit at once."""
    spec: CacheSpec = base_model.qvg_cache_spec(1)
    config = base_model.world_config
    parameters = sum(map(count, base_model.diffusion_model.parameters()))
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
