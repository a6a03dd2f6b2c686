"""A causal Wan out of any of the files in which its family is handed around."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...errors import UnsupportedModelError
from ..common.checkpoint import LORA_KEY, CausalCheckpoint
from ..common.found import AUTO, DOUBT_KEY, Found, Members
from ..common.packing import LAYERS_KEY, is_scalar_fp8, packed_layers, require_readable
from ..common.tensor_names import SCALED, is_quantized, plain_name, some, without_buffers
from ..common.weight_files import WeightFile, causal_metadata, open_weights
from ..common.weight_sets import AVERAGED, WEIGHTS, WeightSet, WeightSets, choose_set, weight_sets
from .diffusers_names import by_wans_names, wan_name
from .names import ANCHORS, is_text_to_video, require_text_to_video, require_whole
from .variants import MEMBERS
from .which_variant import find_variant


def is_wan(file: WeightFile) -> bool:
    """Whether these are weights of Wan 2.1's text-to-video network, by Wan's own names; causal or not."""
    try:
        return any(is_text_to_video(each.tensors) for each in sets_of(file).sets)
    except UnsupportedModelError:
        return False


def read_causal_wan(
    path: Path,
    variant: str = AUTO,
    weights: str = AUTO,
    file: WeightFile | None = None,
    has_lora: bool = False,
    members: Members = MEMBERS,
) -> CausalCheckpoint:
    """The model in `path`, or in `file`, what an own reader made of it; it is one of `members`.

    ConfigError: a choice that is not there. UnsupportedModelError: truncated, foreign, or another model than a causal Wan.
    """
    file = file or open_weights(path)
    sets = sets_of(file)
    first = next((each for each in sets.sets if is_text_to_video(each.tensors)), sets.first)
    require_text_to_video(first.tensors, path.name)
    width = first.tensors["patch_embedding.weight"].shape[0]
    found = find_variant(path, variant, file.metadata, sets.labels, width, members)
    released, whose = (found.variant.weights_key, found.variant.name) if found.variant else (AVERAGED, "a trainer")
    chosen, remarks = choose_set(path.name, sets, weights, released, whose)
    whole = [each.label for each in sets.sets if is_text_to_video(each.tensors) and each.label in WEIGHTS]
    if whole and not is_text_to_video(chosen.tensors):
        lacks = [name for name in first.tensors if name not in chosen.tensors]
        raise UnsupportedModelError(
            f"{path.name} has {len(lacks)} tensors less in its {chosen.label} than the network has ({some(lacks)}), and more in "
            f"its {whole[0]}; choose {whole[0]} as weights"
        )
    name = f"{path.name} ({chosen.label})" if len(sets.sets) > 1 and chosen.label else path.name
    require_text_to_video(chosen.tensors, name)
    tensors, buffers = without_buffers(chosen.tensors)
    metadata = plain_record(file.metadata, chosen, path.name)
    require_readable(tensors, metadata, name)
    unused = dict.fromkeys([*buffers, *require_whole(tensors, name)])
    tensors = {name: tensor for name, tensor in tensors.items() if name not in unused}
    remarks += [f"of no use to the network and left out: {some(unused, 5)}"] if unused else []
    remarks += _remarks(found, has_lora or LORA_KEY in file.metadata)
    tensors, metadata = with_marks(tensors, causal_metadata(metadata), path.name)
    metadata.pop(DOUBT_KEY, None)
    metadata |= {DOUBT_KEY: found.doubt} if found.doubt else {}
    return CausalCheckpoint(path, tensors, metadata, found, chosen.label, tuple(remarks))


def sets_of(file: WeightFile) -> WeightSets:
    """Sets of weights of a Wan in a file, by Wan's names."""
    found = weight_sets(file, ANCHORS)
    return replace(found, sets=tuple(replace(each, tensors=by_wans_names(each.tensors)) for each in found.sets))


def plain_record(metadata: Mapping[str, str], chosen: WeightSet, file_name: str) -> dict[str, str]:
    """With layers of quantized weights by their plain names."""
    if LAYERS_KEY not in metadata:
        return dict(metadata)
    layers = packed_layers({}, metadata, file_name, lambda name: wan_name(plain_name(name.removeprefix(chosen.prefix))))
    return {**metadata, LAYERS_KEY: json.dumps({**json.loads(metadata[LAYERS_KEY]), "layers": layers})}


def with_marks(tensors: dict[str, Tensor], metadata: dict[str, str], file_name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Where nobody has said how weights are packed but there is one way only, ComfyUI is told that way."""
    if not is_quantized(tensors) or SCALED in tensors or packed_layers(tensors, metadata, file_name):
        return tensors, metadata
    assert is_scalar_fp8(tensors), "it was looked at"
    renamed = {_new_name(name): tensor for name, tensor in tensors.items()}
    scaled = [name.removesuffix(".weight_scale") for name in renamed if name.endswith(".weight_scale")]
    formats = {name: str(renamed[f"{name}.weight"].dtype).removeprefix("torch.") for name in scaled}
    layers = {name: {"format": kind, "full_precision_matrix_mult": True} for name, kind in formats.items()}
    renamed |= {f"{name}.weight_scale": renamed[f"{name}.weight_scale"].to(torch.float32) for name in scaled}
    return renamed, {**metadata, LAYERS_KEY: json.dumps({"format_version": "1.0", "layers": layers})}


def _new_name(name: str) -> str:
    """Of a scale: as ComfyUI's records have it."""
    return name.replace(".scale_weight", ".weight_scale").replace(".scale_input", ".input_scale")


def _remarks(found: Found, has_lora: bool) -> list[str]:
    if found.variant is None:
        return ["which member of the family this is, nothing says; choose its variant to have its sigmas and block size"]
    said = [found.doubt] if found.doubt else []
    if found.variant.needs_lora and not has_lora:
        name = found.variant.name
        said += [f"{name} is this model and a LoRA; give its LoRA too, unless somebody has merged it into this file"]
    return said
