"""What a MODEL's weights take, what this machine has, and whether a run can fit. Nothing is loaded to the device.

Importing it needs no ComfyUI.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from ...qvg import CacheSpec, ConfigError, QVGConfig
from ...qvg.models.common.shape import NetworkShape
from ...qvg.plan import MOST_LATENT_FRAMES, Video, Weights, pictures, plan
from ...qvg.plan.advice import setting_that_fits
from ...qvg.plan.report import verdict


def weights_of(model: Any) -> Weights:
    """Of a MODEL: what they are kept in, take and are computed in."""
    base_model = model.model
    kept = {1: "fp8", 4: "fp32"}.get(getattr(base_model.get_dtype(), "itemsize", 2), "bf16")
    return Weights(kept, model.model_size(), base_model.get_dtype_inference())


def count(weight: Any) -> int:
    """Values of a tensor."""
    return int(weight.numel())


def device_bytes() -> int:
    """Memory of the device that models run on."""
    import comfy.model_management as mm

    return int(mm.get_total_memory(mm.get_torch_device()))


def device_type() -> str:
    """Of this machine: "cuda", "cpu" and so on."""
    import comfy.model_management as mm

    return str(mm.get_torch_device().type)


def known_memory(device: Any) -> int | None:
    """Of a graphics card on which a tensor that finds no room is an error. None: of devices that share main memory, and under
    Windows, whose drivers put there what does not fit."""
    import comfy.model_management as mm

    return int(mm.get_total_memory(device)) if device.type in ("cuda", "xpu") and os.name != "nt" else None


def refuse_what_cannot_fit(
    model: Any, network: NetworkShape, config: QVGConfig, spec: CacheSpec, frames: int, grid: tuple[int, int]
) -> None:
    """Raise ConfigError, with the plan's sentence, where cache and activations are more than the whole device, however little of
    the weights is left there. `frames` are latent ones, `grid` a frame's tokens by row and column."""
    room = known_memory(model.load_device)
    if room is None or frames > MOST_LATENT_FRAMES:
        return
    rows, cols = (side * network.token_pixels for side in grid)
    video = Video(cols, rows, pictures(frames, network), spec.batch, block_frames=spec.chunk_frames)
    make_plan = partial(plan, network, video, device_bytes=room, weights=weights_of(model))
    found = make_plan(config)
    # Activations are an upper bound, of which four fifths are certain; they are not at their worst when the cache is.
    end = found.cache_end_bytes - found.away_bytes
    if max(found.cache_peak_bytes - found.away_bytes, end + found.activation_bytes * 4 // 5) <= room:
        return
    setting = setting_that_fits(lambda other: make_plan(other), config, spec.chunk_frames)
    raise ConfigError(f"{verdict(found, room, setting)} See QVG Plan; settings are those of QVG KV Cache.")
