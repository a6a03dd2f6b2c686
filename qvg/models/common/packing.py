"""Packed weights: the formats that ComfyUI unpacks, and those that only a loader of their own does, told by names and types."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor

from ...errors import UnsupportedModelError
from .tensor_names import SCALED, is_quantized, shown, some

# In the metadata of a safetensors file: how ComfyUI is to unpack which layers.
LAYERS_KEY = "_quantization_metadata"
_INSTEAD = "take the .safetensors or .pt that it was made of (QVG reads 16 and 32 bits, fp8, and what ComfyUI packs itself)"
# What packed it, and endings of names that only such files have.
_FOREIGN = (
    ("bitsandbytes (NF4 or FP4, 4 bits)", r"\.(quant_state\.bitsandbytes__\w+|(nested_)?absmax|(nested_)?quant_map)$"),
    ("bitsandbytes (8 bits)", r"\.(SCB|CB|weight_format)$"),
    ("Nunchaku (SVDQuant, 4 bits)", r"\.(wscales|wzeros|wtscale|wcscales|smooth(_factor)?(_orig)?)$"),
    ("GPTQ or AWQ (4 or 8 bits)", r"\.(qweight|qzeros|g_idx)$"),
    ("Quanto", r"\.(weight\._(data|scale|packed|shift)|weight_qtype|output_scale)$"),
    ("HQQ", r"\.W_q$"),
    ("SDNQ", r"\.(zero_point|svd_up|svd_down)$"),
    ("torchao", r"[.:_]weight_(qdata|scale_and_zero)$|\.weight[.:](qdata|tensor_impl)"),
    ("a writer of fp8 with a scale for each block of a matrix", r"\.weight_scale_inv$"),
    ("LongLive (NVFP4)", r"quantized_weight_\w+$"),
    ("MLX", r"\.(scales|biases)$"),
    ("LightX2V or vLLM (NVFP4)", r"\.(weight_global_scale|input_global_scale|weight_packed)$"),
)
_LONGEST_ENDING = 80
_MODULES = {"torchao": "torchao", "bitsandbytes": "bitsandbytes", "optimum.quanto": "Quanto", "quanto": "Quanto", "hqq": "HQQ"}
_PIECES = re.compile(r"torch\.distributed\.(_tensor|tensor|_shard)\b")
# Endings of what stands beside a packed weight, and of what must be values of a network.
_OF_WEIGHTS = (".weight_scale", ".scale_weight", ".weight_s_rel")
_VALUES = (".weight", ".bias", "modulation", "scale_shift_table")
_FEW = 2
_RECORD = ".comfy_quant"
_MOST_RECORD = 1000  # bytes, of one layer
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def needs_loader(packer: str) -> str:
    """Of a file in a format that is not read here, a sentence's second half."""
    return f"is packed by {packer}, which only a loader of its own unpacks; {_INSTEAD}"


def unknown_packing(names: Iterable[str]) -> str:
    """The same of one that has `names` in place of its weights, or beside those of few bits, of which nothing is known."""
    return f"has {some(names)}, by which its weights are packed in a way that QVG does not know; {_INSTEAD}"


def other_loader(full_name: str) -> str | None:
    """The same of a file that holds its weights as objects of this class; None of a class that says nothing."""
    if _PIECES.match(full_name):
        return pieces_of_training()
    title = next((title for module, title in _MODULES.items() if full_name.startswith(f"{module}.")), None)
    return needs_loader(title) if title else None


def pieces_of_training(folder: str = "DIR") -> str:
    """Of a file with a part of every tensor."""
    return (
        "holds pieces of tensors, as several GPUs keep them in training; join them first: python -m "
        f"torch.distributed.checkpoint.format_utils dcp_to_torch {shown(folder)} whole.pt, or save the full state dict there"
    )


def foreign_packing(names: Iterable[str]) -> str | None:
    """What packed weights of these names, where ComfyUI does not unpack that."""
    listed = list({name[-_LONGEST_ENDING:] for name in names})
    return next((title for title, ending in _FOREIGN if any(re.search(ending, name) for name in listed)), None)


def require_readable(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file_name: str, packed: bool = True) -> None:
    """Raise UnsupportedModelError unless all weights are plain values, or packed as ComfyUI unpacks them. `packed`: whether the
    model's loader takes such."""
    title = foreign_packing(tensors)
    if title:
        raise UnsupportedModelError(f"{file_name} {needs_loader(title)}")
    absent = [name for name, tensor in tensors.items() if tensor.is_meta or tensor.layout != torch.strided]
    if absent:
        raise UnsupportedModelError(
            f"{file_name} has no plain values in {len(absent)} of its tensors ({some(absent)}); save it with whole, dense tensors"
        )
    scaled = {name.rpartition(".")[0] for name in tensors if name.endswith(_OF_WEIGHTS)}
    odd = [
        name
        for name, tensor in tensors.items()
        if name.endswith(_VALUES) and not tensor.is_floating_point() and name.rpartition(".")[0] not in scaled
    ]
    if odd:
        raise UnsupportedModelError(
            f"{file_name} has {tensors[odd[0]].dtype} in {len(odd)} of its weights ({some(odd)}) and no scales beside them, so "
            f"they are packed in a way that is not read here, or no weights; {_INSTEAD}"
        )
    if not is_quantized(tensors):
        _require_most_alike(tensors, file_name)
    elif packed:
        _require_known_scales(tensors, metadata, file_name, scaled)
    else:
        raise UnsupportedModelError(
            f"{file_name} has its weights in 8 bits or fewer with scales beside them, which QVG does not read for this model; "
            "take it in 16 or 32 bits, and choose an fp8 as dtype where it is loaded"
        )


def _require_most_alike(tensors: Mapping[str, Tensor], file_name: str) -> None:
    """Matrices in fp8 without scales are plain values, if that is how the file was made: then they are many, and the same ones of
    every block, or all of some blocks."""
    weights = {name: tensor for name, tensor in tensors.items() if name.endswith(".weight")}
    matrices = {name: tensor.dtype in _FP8 for name, tensor in weights.items() if tensor.ndim == 2}
    small = [name for name, is_small in matrices.items() if is_small]
    alike: dict[str, set[bool]] = {}
    for name, is_small in matrices.items():
        alike.setdefault(re.sub(r"\.\d+\.", ".", name, count=1), set()).add(is_small)
    uneven = any(len(kinds) > 1 for kinds in alike.values())
    if 0 < len(small) <= _FEW or (uneven and small and 4 * len(small) < len(matrices)):
        others = next(tensor.dtype for name, tensor in tensors.items() if not matrices.get(name, True))
        raise UnsupportedModelError(
            f"{file_name} has {len(small)} of its {len(matrices)} matrices in fp8 without a scale ({some(small)}) and the others "
            f"in {others}; a file of fp8 has most of them so: it is damaged, or was changed"
        )


def _require_known_scales(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file_name: str, scaled: Collection[str]
) -> None:
    """Scales are of use where something says which layers they belong to, and every packed weight has one."""
    layers = packed_layers(tensors, metadata, file_name)
    matrices = {name.removesuffix(".weight"): tensor for name, tensor in tensors.items() if name.endswith(".weight")}
    packed = {name for name, tensor in matrices.items() if tensor.dtype in _FP8 or name in layers}
    bare = sorted(packed - {*scaled})
    if bare:
        raise UnsupportedModelError(
            f"{file_name} has its weights packed with scales, and none for {len(bare)} of them ({some(bare)}); it is damaged, or "
            "was changed: start from the model that it was made of"
        )
    if SCALED in tensors or layers:
        return
    if not is_scalar_fp8(tensors):
        scales = some(name for name in tensors if is_quantized([name]))
        raise UnsupportedModelError(
            f"{file_name} has scales beside its weights ({scales}) and nothing that "
            f"tells ComfyUI what they are, as LightX2V and vLLM write them; {_INSTEAD}"
        )


def is_scalar_fp8(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every scale is one number beside a weight in fp8: then there is one way to read it, marked or not."""
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith((".weight_scale", ".scale_weight"))}
    weights = [tensors.get(f"{name.rpartition('.')[0]}.weight") for name in scales]
    are_single = all(tensor.numel() == 1 for tensor in scales.values())
    return bool(scales) and are_single and all(weight is not None and weight.dtype in _FP8 for weight in weights)


def packed_layers(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file_name: str, plain: Callable[[str], str] = str
) -> dict[str, object]:
    """How each layer is packed, by the layer's name as `plain` makes it: of the metadata, or of the tensors called comfy_quant.
    Raises UnsupportedModelError for a record that cannot be read."""
    where = f"its {LAYERS_KEY}"
    try:
        if LAYERS_KEY in metadata:
            layers = {plain(name): how for name, how in json.loads(metadata[LAYERS_KEY]).get("layers", {}).items()}
        else:
            layers = {}
            for name in (name for name in tensors if name.endswith(_RECORD)):
                where = f"its {shown(name)}"
                layers[name.removesuffix(_RECORD)] = json.loads(_text(tensors[name]))
        for name, how in layers.items():
            if not isinstance(how, dict) or not isinstance(how.get("format"), str):
                where = f"its {LAYERS_KEY if LAYERS_KEY in metadata else shown(name + _RECORD)}"
                raise ValueError(f"no format for {shown(name)}")
        return layers
    except (ValueError, AttributeError, RecursionError) as error:
        raise UnsupportedModelError(
            f"{file_name} does not say how its weights were packed: {where} cannot be read ({shown(str(error), 120)}); "
            "start from the model that it was made of"
        ) from error


def _text(tensor: Tensor) -> bytes:
    if tensor.numel() > _MOST_RECORD or tensor.dtype != torch.uint8:
        raise ValueError(f"{tensor.numel()} values in {tensor.dtype}")
    return bytes(tensor.flatten().tolist())
