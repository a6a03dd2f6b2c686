"""LongCat-Video's files into a MODEL. See `adapter.Loader`."""

from __future__ import annotations

import inspect
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....qvg import UnsupportedModelError
from ....qvg.models.common.checkpoint import CausalCheckpoint
from ....qvg.models.longcat.config import LongCatConfig
from ....qvg.models.longcat.schedule import guided
from ....qvg.models.longcat.variants import DISTILLED, REFINEMENT
from ..settings import CacheSettings, put_settings
from .model import LongCatModel, LongCatModelConfig
from .run import outer_sample, prepare_sampling

_KEY = "qvg_longcat"


def check(checkpoint: CausalCheckpoint) -> None:
    """Whether this ComfyUI unpacks what it holds, and that it makes videos."""
    if checkpoint.variant is REFINEMENT:
        raise UnsupportedModelError(
            f"{checkpoint.path.name} is LongCat-Video with its refinement LoRA, which makes 720p of a finished video; QVG makes "
            "videos and does not refine them: load the model without that LoRA"
        )
    if checkpoint.quantized and not hasattr(comfy.utils, "convert_old_quants"):
        raise UnsupportedModelError(
            f"{checkpoint.path.name} has weights in 8 bits with scales, which this ComfyUI does not unpack; update it, or take "
            "the model in 16 bits"
        )


def patcher(checkpoint: CausalCheckpoint, options: dict[str, Any], **more: Any) -> Any:
    """Our network in core's patcher, its weights kept and computed as core does it for its own models."""
    tensors = {**checkpoint.tensors, **{name: torch.cat(parts) for name, parts in checkpoint.joined.items()}}
    settings = LongCatModelConfig({"shape": LongCatConfig.of(tensors)})
    if checkpoint.quantized:
        tensors, _ = comfy.utils.convert_old_quants(tensors, "", metadata=dict(checkpoint.metadata))
        settings.quant_config = comfy.utils.detect_layer_quantization(tensors, "")
    _choose_dtypes(settings, tensors, options)
    model = LongCatModel(settings)
    plain = comfy.model_patcher.ModelPatcher
    made = (plain if more.get("disable_dynamic") else getattr(comfy.model_patcher, "CoreModelPatcher", plain))(
        model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
    )
    if not mm.is_device_cpu(made.offload_device):
        model.to(made.offload_device)
    dynamic = hasattr(made, "is_dynamic") and made.is_dynamic()
    if "assign" in inspect.signature(model.load_model_weights).parameters:
        model.load_model_weights(tensors, "", assign=dynamic)
    else:
        model.load_model_weights(tensors, "")
    return made


def _choose_dtypes(settings: LongCatModelConfig, tensors: dict[str, Tensor], options: dict[str, Any]) -> None:
    """What weights are kept in and computed in."""
    known, device = settings.supported_inference_dtypes, mm.get_torch_device()
    packed = settings.quant_config is not None
    stored = None if packed else comfy.utils.weight_dtype(tensors)
    count = comfy.utils.calculate_parameters(tensors)
    kept = options.get("dtype") or mm.unet_dtype(model_params=count, supported_dtypes=list(known), weight_dtype=stored)
    settings.set_inference_dtype(kept, mm.unet_manual_cast(None if packed else kept, device, list(known)))
    if options.get("fp8_optimizations"):
        settings.optimizations["fp8"] = True


def dress(model: Any) -> None:
    """With guidance by CFG-zero*, and the run's checks around sampling."""
    model.set_model_sampler_cfg_function(cfg_zero)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, outer_sample)
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, _KEY, prepare_sampling)
    put_settings(model, CacheSettings())


def cfg_zero(given: dict[str, Any]) -> Tensor:
    """Core asks for what is taken off x, which is the velocity times the noise level: guided as the network's own output is."""
    if given["cond_scale"] == 1:
        return torch.as_tensor(given["cond"])
    level = given["sigma"].view(-1, *[1] * (given["input"].ndim - 1)).to(given["input"])
    result: Tensor = level * guided(given["cond"] / level, given["uncond"] / level, given["cond_scale"])
    return result


def text(checkpoint: CausalCheckpoint) -> str:
    """Its variant and how it is run."""
    variant = checkpoint.variant
    assert variant is not None
    count = len(checkpoint.tensors) + len(checkpoint.joined)
    guidance = "no guidance" if variant is DISTILLED else f"cfg {variant.guidance:g}"
    return (
        f"{variant.name} (known by {checkpoint.found.how}), {count} tensors\n"
        f"segments of 93 pictures, {len(variant.sigmas) - 1} steps, shift {variant.shift:g}, {guidance}"
    )
