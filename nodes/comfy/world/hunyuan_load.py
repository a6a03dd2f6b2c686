"""HY-WorldPlay's files of HunyuanVideo 1.5 into ComfyUI's own model and the layers that are WorldPlay's own."""

from __future__ import annotations

from typing import Any

from ....qvg import UnsupportedModelError
from ....qvg.models.common.checkpoint import CausalCheckpoint
from ....qvg.models.worldplay_hunyuan.checkpoint import BIDIRECTIONAL
from ....qvg.models.worldplay_hunyuan.names import GET_8B
from ..core_network import CoreNetwork, require_metadata
from .hunyuan import ACTION, PROJECTION, attach_layers, is_hunyuan
from .hunyuan_face import WorldPlay8B
from .hunyuan_walk import hunyuan_forward
from .load import dress_world, world_patcher

_CORE = CoreNetwork("HunyuanVideo 1.5", is_hunyuan, (f".{ACTION}.", f".{PROJECTION}."), attach_layers)


def check(checkpoint: CausalCheckpoint) -> None:
    """Whether this ComfyUI has the model, and that it walks in chunks of four."""
    if checkpoint.variant and checkpoint.variant.name == BIDIRECTIONAL:
        raise UnsupportedModelError(
            f"{checkpoint.path.name} is the bidirectional model, which denoises 16 latent frames at once and cannot be walked "
            f"through chunk by chunk; {GET_8B}"
        )
    require_metadata()


def patcher(checkpoint: CausalCheckpoint, options: dict[str, Any], **more: Any) -> Any:
    """Of core's HunyuanVideo 1.5."""
    assert checkpoint.variant is not None
    return world_patcher(checkpoint, _CORE, WorldPlay8B(checkpoint.variant), options, **more)


def dress(model: Any) -> None:
    """With our pass."""
    dress_world(model, hunyuan_forward)


def text(checkpoint: CausalCheckpoint) -> str:
    """Its variant and how it is run."""
    variant = checkpoint.variant
    assert variant is not None
    steps = f"{len(variant.sigmas) - 1} steps, shift {variant.shift:g}"
    guided = "no guidance" if variant.guidance == 1 else f"cfg {variant.guidance:g}"
    count = len(checkpoint.tensors) + len(checkpoint.joined)
    return (
        f"{variant.name} (known by {checkpoint.found.how}), {count} tensors\n"
        f"chunks of {variant.frames_per_block} latent frames, {steps}, {guided}"
    )
