"""Room for the cache in ComfyUI's memory manager, which knows of weights and activations only."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch

from ...qvg import CacheSpec, QVGConfig


def cache_bytes_needed(spec: CacheSpec, config: QVGConfig, frames: int) -> int:
    """At most: the history at the end, a span of frames that wait for encoding, and what encoding and attention work in."""
    waiting = spec.exact_bytes(min(frames, config.span_frames + spec.chunk_frames))
    workspace = min(config.workspace_mb << 20, 2 * spec.exact_bytes(frames))
    return spec.predict(config, frames).total + 2 * waiting + workspace


def make_room(needed_bytes: int, device: torch.device, base_model: Any) -> None:
    """Ask ComfyUI to unload other models until so much is free; the one that is about to run stays."""
    keep = [loaded for loaded in mm.current_loaded_models if getattr(loaded.model, "model", None) is base_model]
    mm.free_memory(needed_bytes + mm.minimum_inference_memory(), device, keep_loaded=keep)


def give_back() -> None:
    """After the cache is freed: let the allocator return its blocks, so that others on the device can have them."""
    mm.soft_empty_cache()
