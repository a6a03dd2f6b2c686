"""HY-WorldPlay's files into ComfyUI's own Wan 2.2 model and the layers that are WorldPlay's own. See `adapter.Loader`."""

from __future__ import annotations

import importlib.util
import inspect
from functools import partial
from typing import Any

import comfy.sd

from ....qvg import UnsupportedModelError
from ....qvg.models.common.checkpoint import CausalCheckpoint
from ....qvg.models.worldplay_wan.checkpoint import LATENT_CHANNELS
from ..adapter import is_wan
from ..core_network import CoreNetwork
from .load import dress_world, world_patcher
from .wan import ACTION, PROJECTION, attach_layers, world_forward
from .wan_face import WorldPlay5B

_CORE = CoreNetwork("Wan 2.2 5B", partial(is_wan, channels=LATENT_CHANNELS), (f".{ACTION}.", f".{PROJECTION}."), attach_layers)


def check(checkpoint: CausalCheckpoint) -> None:
    """Whether this ComfyUI has the model."""
    named = inspect.signature(comfy.sd.load_diffusion_model_state_dict).parameters
    if "metadata" not in named or importlib.util.find_spec("comfy.ldm.wan.vae2_2") is None:
        raise UnsupportedModelError("this ComfyUI has no Wan 2.2 model that QVG knows; ComfyUI 0.21 or newer has: update it")


def patcher(checkpoint: CausalCheckpoint, options: dict[str, Any], **more: Any) -> Any:
    """Of core's Wan 2.2."""
    return world_patcher(checkpoint, _CORE, WorldPlay5B(), options, **more)


def dress(model: Any) -> None:
    """With our pass."""
    dress_world(model, world_forward)


def text(checkpoint: CausalCheckpoint) -> str:
    """Its variant and how it is run."""
    variant = WorldPlay5B.variant
    sigmas = ", ".join(f"{sigma:.4g}" for sigma in variant.sigmas)
    return (
        f"{variant.name} (known by {checkpoint.found.how}), {len(checkpoint.tensors)} tensors\n"
        f"chunks of {variant.frames_per_block} latent frames, sigmas {sigmas}, shift {variant.shift:g}"
    )
