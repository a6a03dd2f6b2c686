"""HY-WorldPlay's files into ComfyUI's own Wan 2.2 model and the layers that are WorldPlay's own."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.sd
import comfy.utils
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....qvg import UnsupportedModelError
from ....qvg.models.common.checkpoint import CausalCheckpoint
from ....qvg.models.common.weight_files import open_weights
from ....qvg.models.worldplay_hunyuan.checkpoint import is_worldplay_hunyuan
from ....qvg.models.worldplay_wan.checkpoint import read_worldplay
from ..attach import VARIANT_KEY, WORLD, CacheSettings, put_settings
from ..causal.load import Loaded, dtype_options, short_dtype
from ..files import model_path
from .hunyuan_load import load_8b
from .run import outer_sample, prepare_sampling
from .wan import ACTION, PROJECTION, WorldPlay5B, attach_layers, world_forward

logger = logging.getLogger(__name__)

_KEY = "qvg_world"
_WRAPPERS = {
    WrappersMP.DIFFUSION_MODEL: world_forward,
    WrappersMP.OUTER_SAMPLE: outer_sample,
    WrappersMP.PREPARE_SAMPLING: prepare_sampling,
}


def load_worldplay(file: str, dtype: str) -> Loaded:
    """`file` as ComfyUI lists it. Raises UnsupportedModelError for what cannot be loaded."""
    _require_native()
    path = model_path(file)
    if is_worldplay_hunyuan(open_weights(path)):
        return load_8b(path, dtype)
    checkpoint = _read(path)
    options = dtype_options(checkpoint, dtype)
    # Before loading: ComfyUI takes the tensors out of the dictionary.
    text = _text(checkpoint)
    model = _patcher(checkpoint, options)
    if hasattr(model, "cached_patcher_init"):
        model.cached_patcher_init = (_load_again, (path, options))
    for kind, wrapper in _WRAPPERS.items():
        model.add_wrapper_with_key(kind, _KEY, wrapper)
    put_settings(model, CacheSettings())
    _put_shift(model)
    text = f"{text}, computed in {short_dtype(model.model.get_dtype_inference())}"
    logger.info("QVG: %s", text.replace("\n", "; "))
    for remark in checkpoint.remarks:
        logger.warning("QVG: %s: %s", path.name, remark)
    return Loaded(model, "\n".join([text, *(f"note: {remark}" for remark in checkpoint.remarks)]))


def _require_native() -> None:
    named = inspect.signature(comfy.sd.load_diffusion_model_state_dict).parameters
    if "metadata" not in named or importlib.util.find_spec("comfy.ldm.wan.vae2_2") is None:
        raise UnsupportedModelError("this ComfyUI has no Wan 2.2 model that QVG knows; ComfyUI 0.21 or newer has: update it")


def _read(path: Path) -> CausalCheckpoint:
    """Names are looked at first, in sentences. ComfyUI then opens .safetensors itself: so it can page them in from the file."""
    ours = open_weights(path)
    checkpoint = read_worldplay(path, file=ours)
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return checkpoint
    theirs, _ = comfy.utils.load_torch_file(str(path), return_metadata=True)
    return read_worldplay(path, file=replace(ours, content=theirs))


def _patcher(checkpoint: CausalCheckpoint, options: dict[str, Any], **more: Any) -> Any:
    """Core's patcher of core's network, with WorldPlay's own layers in it."""
    own: dict[str, Tensor] = {
        name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(f"{ACTION}.") or f".{PROJECTION}." in name
    }
    base = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in own}
    model = comfy.sd.load_diffusion_model_state_dict(base, model_options=options, metadata=checkpoint.metadata, **more)
    if model is None or type(model.model) is not getattr(comfy.model_base, "WAN22", None):
        made = "nothing" if model is None else type(model.model).__name__
        raise UnsupportedModelError(
            f"this ComfyUI makes {made} of {checkpoint.path.name}, which QVG takes for a Wan 2.2 5B; ComfyUI 0.21 to 0.33 make "
            "that of it: update QVG, or go back to one of these"
        )
    attach_layers(model.model.diffusion_model, own, assign=hasattr(model, "is_dynamic") and model.is_dynamic())
    setattr(model.model, WORLD, WorldPlay5B())
    # Counted when it is first asked for, and again with the layers.
    model.size = 0
    return model


def _load_again(path: Path, options: dict[str, Any], disable_dynamic: bool = False) -> Any:
    """The bare model once more, for ComfyUI's own needs; it carries wrappers and patches over itself."""
    return _patcher(_read(path), options, **({"disable_dynamic": True} if disable_dynamic else {}))


def _put_shift(model: Any) -> None:
    variant = WorldPlay5B.variant
    model.model_options.setdefault("transformer_options", {})[VARIANT_KEY] = variant
    sampling = model.get_model_object("model_sampling")
    if sampling.shift != variant.shift:
        sampling = comfy.model_base.model_sampling(model.model.model_config, comfy.model_base.ModelType.FLOW)
        sampling.set_parameters(shift=variant.shift, multiplier=1000)
        model.add_object_patch("model_sampling", sampling)


def _text(checkpoint: CausalCheckpoint) -> str:
    variant = WorldPlay5B.variant
    sigmas = ", ".join(f"{sigma:.4g}" for sigma in variant.sigmas)
    of = f"{checkpoint.weights}, " if checkpoint.weights else ""
    return "\n".join(
        [
            f"{variant.name} (known by {checkpoint.found.how}), {len(checkpoint.tensors)} tensors",
            f"chunks of {variant.frames_per_block} latent frames, sigmas {sigmas}, shift {variant.shift:g}",
            f"weights {of}stored in {short_dtype(checkpoint.stored_dtype)}",
        ]
    )
