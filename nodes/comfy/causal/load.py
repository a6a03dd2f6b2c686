"""Files of the causal Wan family into ComfyUI's own causal Wan model. See `adapter.Loader`."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import comfy.sd
import torch
from torch import Tensor

from ....qvg import UnsupportedModelError
from ....qvg.models.common.checkpoint import CausalCheckpoint
from ..settings import variant_of
from . import wan as causal_wan
from .shape import CORE_NAME, is_causal


def check(checkpoint: CausalCheckpoint) -> None:
    """Whether this ComfyUI has the model."""
    named = inspect.signature(comfy.sd.load_diffusion_model_state_dict).parameters
    if "metadata" not in named or importlib.util.find_spec("comfy.ldm.wan.ar_model") is None:
        raise UnsupportedModelError("this ComfyUI has no causal Wan model; ComfyUI 0.21 or newer has: update it")


def patcher(checkpoint: CausalCheckpoint, options: dict[str, Any], **more: Any) -> Any:
    """Core's own."""
    model = comfy.sd.load_diffusion_model_state_dict(
        checkpoint.tensors, model_options=options, metadata=checkpoint.metadata, **more
    )
    if model is None or not is_causal(model.model):
        made = "nothing" if model is None else type(model.model).__name__
        raise UnsupportedModelError(
            f"this ComfyUI makes {made} of {checkpoint.path.name}, which QVG takes for a causal Wan; ComfyUI 0.21 to 0.33 make "
            "that of it: update QVG, or go back to one of these"
        )
    return model


def dress(model: Any) -> None:
    """With hooks that do nothing outside our own sampler, and the timesteps that the model was trained to be told."""
    causal_wan.attach(model)
    variant = variant_of(model.model_options)
    if variant is not None and variant.told_zero_sigma:
        model.add_object_patch("process_timestep", told_zero(variant.told_zero_sigma))


def told_zero(sigma: float) -> Callable[..., Tensor]:
    """Core's `process_timestep`, 0 where no more noise than `sigma` is left."""
    most = 1000 * sigma * (1 + 1e-4)  # levels come in float32

    def process_timestep(timestep: Tensor, **unused: Any) -> Tensor:
        return torch.where(timestep <= most, 0, timestep)

    return process_timestep


def text(checkpoint: CausalCheckpoint) -> str:
    """Its variant and what that was trained for."""
    variant = checkpoint.variant
    lines = [f"{variant.name if variant else CORE_NAME} (known by {checkpoint.found.how})"]
    if variant:
        sigmas = ", ".join(f"{sigma:.4g}" for sigma in variant.sigmas)
        lines += [f"blocks of {variant.frames_per_block} latent frame(s), sigmas {sigmas}, shift {variant.shift:g}"]
    if variant and variant.window_frames:
        window, sink = variant.window_frames, variant.sink_frames
        lines += [f"trained with window_frames {window} and sink_frames {sink}: set these on QVG KV Cache for long videos"]
    return "\n".join(lines)
