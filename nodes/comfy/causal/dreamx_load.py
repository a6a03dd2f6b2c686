"""DreamX-World's files into core's Wan 2.2 and the layers that are its own. See `adapter.Loader`."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

from ....qvg import UnsupportedModelError
from ....qvg.models.common.checkpoint import CausalCheckpoint
from ....qvg.models.dreamx.network import CHANNELS
from ..adapter import is_wan
from ..core_network import CoreNetwork, core_patcher, require_metadata
from . import wan as causal_wan
from .dreamx import CAMERA, attach_layers
from .own_steps import steps_text

_CORE = CoreNetwork("Wan 2.2 5B", partial(is_wan, channels=CHANNELS), (f".{CAMERA}.",), attach_layers)


def check(checkpoint: CausalCheckpoint) -> None:
    """Whether this ComfyUI has the model, and the classes that make it causal."""
    require_metadata()
    if any(importlib.util.find_spec(f"comfy.ldm.wan.{name}") is None for name in ("vae2_2", "ar_model")):
        raise UnsupportedModelError(
            "this ComfyUI has no Wan 2.2 or no causal Wan that QVG knows; ComfyUI 0.21 or newer has: update it"
        )


def patcher(checkpoint: CausalCheckpoint, options: dict[str, Any], **more: Any) -> Any:
    """Of core's Wan 2.2."""
    return core_patcher(checkpoint, _CORE, options, **more)


def dress(model: Any) -> None:
    """With hooks that do nothing outside our own sampler."""
    causal_wan.attach(model)


def text(checkpoint: CausalCheckpoint) -> str:
    """Its variant and how it is run."""
    assert checkpoint.variant is not None
    return steps_text(checkpoint.variant, checkpoint.found.how, len(checkpoint.tensors))
