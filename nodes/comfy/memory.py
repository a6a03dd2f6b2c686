"""Room for the cache in ComfyUI's memory manager, which knows of weights and activations only."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management as mm

from ...qvg import CacheSpec, QVGConfig

logger = logging.getLogger(__name__)


def cache_bytes_needed(spec: CacheSpec, config: QVGConfig, frames: int) -> int:
    """At most, on the device: what is kept there of the history at the end, a span of frames that wait for encoding, and what
    encoding and attention work in."""
    if mm.get_torch_device().type == "cpu":
        config = config.with_changes(offload="gpu")  # nothing is away from it
    waiting = spec.exact_bytes(min(frames, spec.check(config).span_frames + spec.chunk_frames))
    workspace = min(config.workspace_mb << 20, 2 * spec.exact_bytes(frames))
    return spec.device_bytes(config, frames) + 2 * waiting + workspace


def make_room(needed_bytes: int, patcher: Any) -> None:
    """Have ComfyUI unload other models until so much is free on the device of `patcher`, the model that is about to run; where
    that is not enough, its own weights leave as far as needed and are streamed in. What is still missing is said in the log."""
    device = patcher.load_device
    running = [loaded for loaded in mm.current_loaded_models if getattr(loaded.model, "model", None) is patcher.model]
    wanted = needed_bytes + mm.minimum_inference_memory()
    mm.free_memory(wanted, device, keep_loaded=running)
    missing = wanted - mm.get_free_memory(device)
    if missing > 0 and patcher.offload_device != device:
        patcher.partially_unload(patcher.offload_device, missing)
    free = mm.get_free_memory(device)
    if free < needed_bytes:
        logger.warning(
            "QVG: the cache may take %.0f MB, but %s has only %.0f MB free; if the run ends for want of memory, make fewer "
            "frames or set window_frames on QVG KV Cache",
            needed_bytes / 1e6,
            device,
            free / 1e6,
        )


def give_back() -> None:
    """After the cache is freed: let the allocator return its blocks, so that others on the device can have them."""
    mm.soft_empty_cache()
