"""Files of the causal Wan family into ComfyUI's own causal Wan model."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_management as mm
import comfy.sd
import comfy.utils
import torch
from comfy.cli_args import args

from ....qvg import UnsupportedModelError
from ....qvg.models.common.checkpoint import CausalCheckpoint
from ....qvg.models.common.lora import LoraLayer, read_lora, require_fit
from ....qvg.models.common.weight_files import open_weights
from ....qvg.models.wan.checkpoint import read_causal_wan
from ..attach import VARIANT_KEY, has_cache_of_core
from ..files import lora_path, model_path
from . import wan as causal_wan

logger = logging.getLogger(__name__)

_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
# Start options by which the user has chosen for all models.
_START_OPTIONS = ("fp64_unet", "fp32_unet", "fp16_unet", "bf16_unet", "fp8_e4m3fn_unet", "fp8_e5m2_unet", "fp8_e8m0fnu_unet")


@dataclass(frozen=True)
class Loaded:
    """A MODEL, and what is to be said of it on the node."""

    model: Any
    text: str


def load_causal_wan(file: str, variant: str, weights: str, dtype: str, lora: str | None) -> Loaded:
    """`file` and `lora` as ComfyUI lists them. Raises ConfigError and UnsupportedModelError for what cannot be loaded."""
    _require_native()
    path = model_path(file)
    checkpoint = _read(path, variant, weights, has_lora=lora is not None)
    layers = read_lora(lora_path(lora)) if lora else {}
    require_fit(layers, checkpoint.tensors, str(lora))
    options = dtype_options(checkpoint, dtype)
    # Before loading: ComfyUI takes the tensors out of the dictionary.
    text = _text(checkpoint, lora)
    model = _patcher(checkpoint, options)
    if hasattr(model, "cached_patcher_init"):
        model.cached_patcher_init = (_load_again, (path, variant, weights, options))
    _put_variant(model, checkpoint)
    _put_lora(model, layers)
    causal_wan.attach(model)
    text = f"{text}, computed in {short_dtype(model.model.get_dtype_inference())}"
    logger.info("QVG: %s", text.replace("\n", "; "))
    for remark in checkpoint.remarks:
        logger.warning("QVG: %s: %s", path.name, remark)
    return Loaded(model, "\n".join([text, *(f"note: {remark}" for remark in checkpoint.remarks)]))


def _require_native() -> None:
    named = inspect.signature(comfy.sd.load_diffusion_model_state_dict).parameters
    if "metadata" not in named or importlib.util.find_spec("comfy.ldm.wan.ar_model") is None:
        raise UnsupportedModelError("this ComfyUI has no causal Wan model; ComfyUI 0.21 or newer has: update it")


def _read(path: Path, variant: str, weights: str, has_lora: bool) -> CausalCheckpoint:
    """Names are looked at first, in sentences. ComfyUI then opens .safetensors itself: so it can page them in from the file."""
    ours = open_weights(path)
    checkpoint = read_causal_wan(path, variant, weights, ours, has_lora)
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return checkpoint
    theirs, _ = comfy.utils.load_torch_file(str(path), return_metadata=True)
    return read_causal_wan(path, variant, weights, replace(ours, content=theirs), has_lora)


def dtype_options(checkpoint: CausalCheckpoint, dtype: str) -> dict[str, Any]:
    """What UNETLoader would say for this dtype; {} leaves it to ComfyUI."""
    if dtype in _DTYPES:
        return {"dtype": _DTYPES[dtype], **({"fp8_optimizations": True} if dtype == "fp8_e4m3fn_fast" else {})}
    # What the family is trained in. ComfyUI would take fp16 first, which overflows sooner.
    chosen = any(getattr(args, name, False) for name in _START_OPTIONS)
    eight_bits = checkpoint.quantized or checkpoint.stored_dtype.itemsize == 1
    return {} if chosen or eight_bits or not mm.should_use_bf16(mm.get_torch_device()) else {"dtype": torch.bfloat16}


def _patcher(checkpoint: CausalCheckpoint, options: dict[str, Any], **more: Any) -> Any:
    model = comfy.sd.load_diffusion_model_state_dict(
        checkpoint.tensors, model_options=options, metadata=checkpoint.metadata, **more
    )
    if model is None or not has_cache_of_core(model.model):
        made = "nothing" if model is None else type(model.model).__name__
        raise UnsupportedModelError(
            f"this ComfyUI makes {made} of {checkpoint.path.name}, which QVG takes for a causal Wan; ComfyUI 0.21 to 0.33 make "
            "that of it: update QVG, or go back to one of these"
        )
    return model


def _load_again(path: Path, variant: str, weights: str, options: dict[str, Any], disable_dynamic: bool = False) -> Any:
    """The bare model once more, for ComfyUI's own needs; it carries patches over itself."""
    return _patcher(_read(path, variant, weights, True), options, **({"disable_dynamic": True} if disable_dynamic else {}))


def _put_variant(model: Any, checkpoint: CausalCheckpoint) -> None:
    variant = checkpoint.variant
    if variant is None:
        return
    model.model_options.setdefault("transformer_options", {})[VARIANT_KEY] = variant
    sampling = model.get_model_object("model_sampling")
    if sampling.shift != variant.shift:
        sampling = comfy.model_base.model_sampling(model.model.model_config, comfy.model_base.ModelType.FLOW)
        sampling.set_parameters(shift=variant.shift, multiplier=1000)
        model.add_object_patch("model_sampling", sampling)


def _put_lora(model: Any, layers: dict[str, LoraLayer]) -> None:
    """As ComfyUI's LoRA nodes do, so that nothing is merged on disk or in memory."""
    tensors, names = {}, {}
    for layer, matrices in layers.items():
        name = f"diffusion_model.{layer}"
        names[name] = f"{name}.weight"
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = matrices.down, matrices.up
        tensors[f"{name}.alpha"] = torch.tensor(matrices.scale * len(matrices.down))
    if layers:
        model.add_patches(comfy.lora.load_lora(tensors, names), 1.0)


def _text(checkpoint: CausalCheckpoint, lora: str | None) -> str:
    variant = checkpoint.variant
    lines = [f"{variant.name if variant else 'causal Wan'} (known by {checkpoint.found.how})"]
    if variant:
        sigmas = ", ".join(f"{sigma:.4g}" for sigma in variant.sigmas)
        lines += [f"blocks of {variant.frames_per_block} latent frame(s), sigmas {sigmas}, shift {variant.shift:g}"]
    if variant and variant.window_frames:
        window, sink = variant.window_frames, variant.sink_frames
        lines += [f"trained with window_frames {window} and sink_frames {sink}: set these on QVG KV Cache for long videos"]
    of = f"{checkpoint.weights}, " if checkpoint.weights else ""
    stored = f"{short_dtype(checkpoint.stored_dtype)}{' with scales' if checkpoint.quantized else ''}"
    lines += [f"weights {of}stored in {stored}{f', with {lora}' if lora else ''}"]
    return "\n".join(lines)


def short_dtype(dtype: torch.dtype) -> str:
    """Its name without torch's."""
    return str(dtype).removeprefix("torch.")
