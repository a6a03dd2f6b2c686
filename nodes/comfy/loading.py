"""A file of any family into a MODEL: what all loaders share. What differs is the family's `Loader`."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_management as mm
import comfy.utils
import torch
from comfy.cli_args import args

from ...qvg import UnsupportedModelError
from ...qvg.models.common.checkpoint import CausalCheckpoint
from ...qvg.models.common.found import AUTO
from ...qvg.models.common.lora import read_lora
from ...qvg.models.common.lora_changes import Stacked
from ...qvg.models.common.lora_fit import FittedLora, fitted
from ...qvg.models.common.packing import packed_layers
from ...qvg.models.common.tensor_names import some
from ...qvg.models.common.variants import CausalVariant
from ...qvg.models.common.weight_files import is_safetensors, open_weights
from ...qvg.models.family import Family
from ...qvg.models.registry import read
from .adapter import Loader
from .attach import adapter_of_family
from .files import lora_path, model_path
from .settings import VARIANT_KEY

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


@dataclass(frozen=True)
class Source:
    """A file, the node that loads it, and what was chosen there."""

    path: Path
    node: str
    variant: str = AUTO
    weights: str = AUTO

    def read(self, has_lora: bool = False) -> tuple[Family, Loader, CausalCheckpoint]:
        """Names are looked at first, in sentences. ComfyUI then opens .safetensors itself: so it can page them in from the file.
        Raises ConfigError and UnsupportedModelError."""
        ours = open_weights(self.path)
        family, checkpoint = read(ours, self.variant, self.weights, has_lora, self.node)
        loader = adapter_of_family(family).loader()
        loader.check(checkpoint)
        _require_known_packing(checkpoint)
        parts = ours.parts or (self.path,)
        # By their names ComfyUI knows them; a .pt that was renamed it would not read.
        if all(part.suffix.lower() in (".safetensors", ".sft") and is_safetensors(part) for part in parts):
            theirs: dict[str, torch.Tensor] = {}
            for part in parts:
                theirs |= comfy.utils.load_torch_file(str(part), return_metadata=True)[0]
            _, checkpoint = read(replace(ours, content=theirs), self.variant, self.weights, has_lora, self.node)
        return family, loader, checkpoint


def _require_known_packing(checkpoint: CausalCheckpoint) -> None:
    """ComfyUI learns to unpack more with time. Raises UnsupportedModelError for what this one does not know."""
    known = getattr(importlib.import_module("comfy.quant_ops"), "QUANT_ALGOS", {}) if checkpoint.quantized else {}
    layers = packed_layers(checkpoint.tensors, checkpoint.metadata, checkpoint.path.name).values() if checkpoint.quantized else ()
    unknown = {str(how.get("format")) for how in layers if isinstance(how, dict)} - {*known}
    if unknown:
        raise UnsupportedModelError(
            f"{checkpoint.path.name} is packed as {some(sorted(unknown))}, which this ComfyUI does not unpack (it knows "
            f"{', '.join(known) or 'none'}): update it, or take the model in 16 bits"
        )


def load(file: str, node: str, variant: str = AUTO, weights: str = AUTO, dtype: str = AUTO, lora: str | None = None) -> Loaded:
    """`file` and `lora` as ComfyUI lists them. Raises ConfigError and UnsupportedModelError for what cannot be loaded."""
    source = Source(model_path(file), node, variant, weights)
    family, loader, checkpoint = source.read(has_lora=lora is not None)
    merged: FittedLora | None = None
    if lora:
        checkpoint, merged = _fitted(lora, family, checkpoint)
        loader.check(checkpoint)
    options, in_bf16 = dtype_options(checkpoint, dtype)
    # Before loading: ComfyUI takes the tensors out of the dictionary.
    text = f"{loader.text(checkpoint)}\n{_weights_text(checkpoint, merged)}"
    model = loader.patcher(checkpoint, options)
    if in_bf16:
        compute_in_bf16(model)
    if hasattr(model, "cached_patcher_init"):
        model.cached_patcher_init = (_load_again, (source, options, in_bf16))
    if checkpoint.variant is not None:
        put_variant(model, checkpoint.variant)
    if merged is not None:
        _put_lora(model, merged)
    loader.dress(model)
    text = f"{text}, computed in {short_dtype(model.model.get_dtype_inference())}"
    logger.info("QVG: %s", text.replace("\n", "; "))
    remarks = (*checkpoint.remarks, *(merged.remarks if merged else ()))
    for remark in remarks:
        logger.warning("QVG: %s: %s", source.path.name, remark)
    return Loaded(model, "\n".join([text, *(f"note: {remark}" for remark in remarks)]))


def _fitted(name: str, family: Family, checkpoint: CausalCheckpoint) -> tuple[CausalCheckpoint, FittedLora]:
    """The model as it is run with this LoRA, and that. Raises UnsupportedModelError."""
    assert family.files is not None, "it was read"
    lora = read_lora(lora_path(name))
    changed = fitted(lora, checkpoint.whole, family.files.in_loras)
    return family.files.with_lora(checkpoint, lora), changed


def _load_again(source: Source, options: dict[str, Any], in_bf16: bool, disable_dynamic: bool = False) -> Any:
    """The bare model once more, for ComfyUI's own needs; it carries wrappers and patches over itself."""
    _, loader, checkpoint = source.read(has_lora=True)
    model = loader.patcher(checkpoint, options, **({"disable_dynamic": True} if disable_dynamic else {}))
    if in_bf16:
        compute_in_bf16(model)
    return model


def dtype_options(checkpoint: CausalCheckpoint, dtype: str) -> tuple[dict[str, Any], bool]:
    """What UNETLoader would say for this dtype, where {} leaves it to ComfyUI; and whether weights of 8 bits are to be computed
    in bf16: what the families are trained in, where ComfyUI would take fp16 first, which overflows sooner."""
    has_bf16 = mm.should_use_bf16(mm.get_torch_device()) and not any(getattr(args, name, False) for name in _START_OPTIONS)
    if dtype in _DTYPES:
        options = {"dtype": _DTYPES[dtype], **({"fp8_optimizations": True} if dtype.endswith("_fast") else {})}
        return options, has_bf16 and _is_small(_DTYPES[dtype])
    if not has_bf16:
        return {}, False
    stored = checkpoint.stored_dtype
    if _is_small(stored) and not checkpoint.quantized and stored.is_floating_point:
        return {"dtype": stored}, True
    return {"dtype": torch.bfloat16}, checkpoint.quantized


def _is_small(dtype: torch.dtype) -> bool:
    return dtype.itemsize == 1


def compute_in_bf16(model: Any) -> None:
    """Of a model that nobody else holds yet: what its weights are cast to where they are used."""
    if model.model.get_dtype_inference() == torch.float16:
        model.model.manual_cast_dtype = torch.bfloat16


def put_variant(model: Any, variant: CausalVariant) -> None:
    """How it was trained to be run, and the shift of its noise levels."""
    model.model_options.setdefault("transformer_options", {})[VARIANT_KEY] = variant
    sampling = model.get_model_object("model_sampling")
    if sampling.shift != variant.shift:
        sampling = comfy.model_base.model_sampling(model.model.model_config, comfy.model_base.ModelType.FLOW)
        sampling.set_parameters(shift=variant.shift, multiplier=1000)
        model.add_object_patch("model_sampling", sampling)


def _put_lora(model: Any, lora: FittedLora) -> None:
    """As ComfyUI's LoRA nodes do, so that nothing is merged on disk or in memory."""
    patches: dict[Any, Any] = {}
    # A matrix that several layers were joined in has a LoRA for each: of some of its rows.
    changes = [
        (at, change)
        for name, whole in lora.changes.items()
        for at, change in (
            [((f"diffusion_model.{name}", (0, first, rows)), part) for first, rows, part in whole.rows]
            if isinstance(whole, Stacked)
            else [(f"diffusion_model.{name}", whole)]
        )
    ]
    for number, (at, change) in enumerate(changes):
        parts = {f"{number}.{part}": tensor for part, tensor in change.parts.items()}
        patches |= comfy.lora.load_lora(parts, {str(number): at})
    without = set(patches) - set(model.add_patches(patches, 1.0))
    if without or len(patches) < len(changes):
        raise UnsupportedModelError(
            f"this ComfyUI does not take what {lora.file_name} adds to {some(map(str, without or lora.changes))}; update "
            "ComfyUI, or merge it with 'qvg convert --lora'"
        )


def _weights_text(checkpoint: CausalCheckpoint, lora: FittedLora | None) -> str:
    of = f"{checkpoint.weights}, " if checkpoint.weights else ""
    stored = f"{short_dtype(checkpoint.stored_dtype)}{' with scales' if checkpoint.quantized else ''}"
    return f"weights {of}stored in {stored}{f', with {lora.said}' if lora else ''}"


def short_dtype(dtype: torch.dtype) -> str:
    """Its name without torch's."""
    return str(dtype).removeprefix("torch.")
