"""HY-WorldPlay's files of HunyuanVideo 1.5 into ComfyUI's own model and the layers that are WorldPlay's own."""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.sd
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP

from ....qvg import UnsupportedModelError
from ....qvg.models.common.checkpoint import CausalCheckpoint
from ....qvg.models.common.found import AUTO
from ....qvg.models.common.weight_files import open_weights
from ....qvg.models.worldplay_hunyuan.checkpoint import BIDIRECTIONAL, read_worldplay_hunyuan
from ....qvg.models.worldplay_hunyuan.names import GET_8B
from ..attach import VARIANT_KEY, WORLD, CacheSettings, put_settings
from ..causal.load import Loaded, dtype_options, short_dtype
from .hunyuan import ACTION, PROJECTION, WorldPlay8B, attach_layers
from .hunyuan_walk import hunyuan_forward
from .run import outer_sample, prepare_sampling

logger = logging.getLogger(__name__)

_KEY = "qvg_world"
_WRAPPERS = {
    WrappersMP.DIFFUSION_MODEL: hunyuan_forward,
    WrappersMP.OUTER_SAMPLE: outer_sample,
    WrappersMP.PREPARE_SAMPLING: prepare_sampling,
}


def load_8b(path: Path, dtype: str) -> Loaded:
    """The file at `path` as a MODEL. Raises ConfigError and UnsupportedModelError for what cannot be loaded."""
    checkpoint = read_8b(path)
    options = dtype_options(checkpoint, dtype)
    # Before loading: ComfyUI takes the tensors out of the dictionary.
    text = _text(checkpoint)
    model = patcher_8b(checkpoint, options)
    if hasattr(model, "cached_patcher_init"):
        model.cached_patcher_init = (_load_again, (path, options))
    for kind, wrapper in _WRAPPERS.items():
        model.add_wrapper_with_key(kind, _KEY, wrapper)
    put_settings(model, CacheSettings())
    text = f"{text}, computed in {short_dtype(model.model.get_dtype_inference())}"
    logger.info("QVG: %s", text.replace("\n", "; "))
    for remark in checkpoint.remarks:
        logger.warning("QVG: %s: %s", path.name, remark)
    return Loaded(model, "\n".join([text, *(f"note: {remark}" for remark in checkpoint.remarks)]))


def _load_again(path: Path, options: dict[str, Any], disable_dynamic: bool = False) -> Any:
    """The bare model once more, for ComfyUI's own needs; it carries wrappers and patches over itself."""
    return patcher_8b(read_8b(path), options, **({"disable_dynamic": True} if disable_dynamic else {}))


def _text(checkpoint: CausalCheckpoint) -> str:
    variant = checkpoint.variant
    assert variant is not None
    steps = f"{len(variant.sigmas) - 1} steps, shift {variant.shift:g}"
    guided = "no guidance" if variant.guidance == 1 else f"cfg {variant.guidance:g}"
    count = len(checkpoint.tensors) + len(checkpoint.joined)
    return "\n".join(
        [
            f"{variant.name} (known by {checkpoint.found.how}), {count} tensors",
            f"chunks of {variant.frames_per_block} latent frames, {steps}, {guided}",
            f"weights stored in {short_dtype(checkpoint.stored_dtype)}",
        ]
    )


def read_8b(path: Path, variant: str = AUTO) -> CausalCheckpoint:
    """Names are looked at first, in sentences. ComfyUI then opens .safetensors itself: so it can page them in from the file.

    Raises UnsupportedModelError for the bidirectional model, too, which walks in no chunks of four.
    """
    ours = open_weights(path)
    checkpoint = read_worldplay_hunyuan(path, variant, file=ours)
    if checkpoint.variant and checkpoint.variant.name == BIDIRECTIONAL:
        raise UnsupportedModelError(
            f"{path.name} is the bidirectional model, which denoises 16 latent frames at once and cannot be walked through chunk "
            f"by chunk; {GET_8B}"
        )
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return checkpoint
    theirs, _ = comfy.utils.load_torch_file(str(path), return_metadata=True)
    return read_worldplay_hunyuan(path, variant, file=replace(ours, content=theirs))


def patcher_8b(checkpoint: CausalCheckpoint, options: dict[str, Any], **more: Any) -> Any:
    """Core's patcher of core's network, with WorldPlay's own layers in it, its face and its shift."""
    if "metadata" not in inspect.signature(comfy.sd.load_diffusion_model_state_dict).parameters:
        raise UnsupportedModelError("this ComfyUI loads no model with metadata; ComfyUI 0.21 or newer does: update it")
    whole = {**checkpoint.tensors, **{name: torch.cat(parts) for name, parts in checkpoint.joined.items()}}
    own = {name: whole.pop(name) for name in list(whole) if name.startswith(f"{ACTION}.") or f".{PROJECTION}." in name}
    model = comfy.sd.load_diffusion_model_state_dict(whole, model_options=options, metadata=checkpoint.metadata, **more)
    if model is None or type(model.model) is not getattr(comfy.model_base, "HunyuanVideo15", None):
        made = "nothing" if model is None else type(model.model).__name__
        raise UnsupportedModelError(
            f"this ComfyUI makes {made} of {checkpoint.path.name}, which QVG takes for a HunyuanVideo 1.5; ComfyUI 0.21 to 0.33 "
            "make that of it: update QVG, or go back to one of these"
        )
    attach_layers(model.model.diffusion_model, own, assign=hasattr(model, "is_dynamic") and model.is_dynamic())
    assert checkpoint.variant is not None
    face = WorldPlay8B(checkpoint.variant)
    setattr(model.model, WORLD, face)
    # Counted when it is first asked for, and again with the layers.
    model.size = 0
    _put_shift(model, face)
    return model


def _put_shift(model: Any, face: WorldPlay8B) -> None:
    """Core's HunyuanVideo 1.5 has a shift of 7, WorldPlay one of 5."""
    model.model_options.setdefault("transformer_options", {})[VARIANT_KEY] = face.variant
    sampling = comfy.model_base.model_sampling(model.model.model_config, comfy.model_base.ModelType.FLOW)
    sampling.set_parameters(shift=face.variant.shift, multiplier=1000)
    model.add_object_patch("model_sampling", sampling)
