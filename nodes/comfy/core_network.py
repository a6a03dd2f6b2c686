"""Core's network of a file, with layers that core does not know in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sd
import torch

from ...qvg import UnsupportedModelError
from ...qvg.models.common.checkpoint import CausalCheckpoint


@dataclass(frozen=True)
class CoreNetwork:
    """Of core's: what to call it, whether a `BaseModel` is one, and names of the layers that a model adds to it."""

    title: str
    matches: Callable[[Any], bool]
    own: Sequence[str]
    attach_layers: Callable[..., None]


def require_metadata() -> None:
    """Raise UnsupportedModelError in a ComfyUI that is too old."""
    if "metadata" not in inspect.signature(comfy.sd.load_diffusion_model_state_dict).parameters:
        raise UnsupportedModelError("this ComfyUI loads no model with metadata; ComfyUI 0.21 or newer does: update it")


def core_patcher(checkpoint: CausalCheckpoint, core: CoreNetwork, options: dict[str, Any], **more: Any) -> Any:
    """Core's patcher of core's network, with the model's own layers in it."""
    base = {**checkpoint.tensors, **{name: torch.cat(parts) for name, parts in checkpoint.joined.items()}}
    own = {name: base.pop(name) for name in list(base) if any(part in f".{name}" for part in core.own)}
    model = comfy.sd.load_diffusion_model_state_dict(base, model_options=options, metadata=checkpoint.metadata, **more)
    if model is None or not core.matches(model.model):
        made = "nothing" if model is None else type(model.model).__name__
        raise UnsupportedModelError(
            f"this ComfyUI makes {made} of {checkpoint.path.name}, which QVG takes for a {core.title}; ComfyUI 0.21 to 0.33 make "
            "that of it: update QVG, or go back to one of these"
        )
    core.attach_layers(model.model.diffusion_model, own, assign=hasattr(model, "is_dynamic") and model.is_dynamic())
    # Counted when it is first asked for, and again with the layers.
    model.size = 0
    return model
