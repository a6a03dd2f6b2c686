"""A causal Wan out of any of the files in which its family is handed around."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import UnsupportedModelError
from ..common.checkpoint import LORA_KEY, PLAIN, CausalCheckpoint, choose_weights, weight_groups
from ..common.found import AUTO, Found, Members
from ..common.tensor_names import plain_name, plain_names
from ..common.weight_files import WeightFile, causal_metadata, named_tensors, open_weights
from .names import LATENT_CHANNELS, require_text_to_video
from .variants import MEMBERS
from .which_variant import find_variant

_QUANTIZED_LAYERS = "_quantization_metadata"


def is_wan(file: WeightFile) -> bool:
    """Whether these are weights of Wan 2.1's text-to-video network, by Wan's own names; causal or not."""
    try:
        names = plain_names(named_tensors(next(iter(weight_groups(file).values()))))
    except UnsupportedModelError:
        return False
    embedding = names.get("patch_embedding.weight")
    if embedding is None or not {"blocks.0.self_attn.q.weight", "head.modulation"} <= names.keys():
        return False
    return embedding.ndim == 5 and embedding.shape[1] == LATENT_CHANNELS


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
    groups = {name: plain_names(named_tensors(group)) for name, group in weight_groups(file).items()}
    first = next(iter(groups.values()))
    unused = require_text_to_video(first, path.name)
    names = [name for name in groups if name != PLAIN]
    found = find_variant(path, variant, file.metadata, names, first["patch_embedding.weight"].shape[0], members)
    chosen, remarks = choose_weights(path.name, groups, weights, found.variant)
    if groups[chosen] is not first:
        unused = require_text_to_video(groups[chosen], path.name)
    tensors = {name: tensor for name, tensor in groups[chosen].items() if name not in unused}
    remarks += [f"of no use to the network and left out: {', '.join(unused[:5])}"] if unused else []
    remarks += _remarks(found, has_lora or LORA_KEY in file.metadata)
    return CausalCheckpoint(path, tensors, _metadata(file.metadata, path.name), found, chosen, tuple(remarks))


def _metadata(metadata: dict[str, str], file_name: str) -> dict[str, str]:
    """With ComfyUI's mark, and layers of quantized weights by their plain names."""
    marked = causal_metadata(metadata)
    if _QUANTIZED_LAYERS in metadata:
        marked[_QUANTIZED_LAYERS] = _plain_record(metadata[_QUANTIZED_LAYERS], file_name)
    return marked


def _plain_record(text: str, file_name: str) -> str:
    try:
        record = json.loads(text)
        layers = {plain_name(name): how for name, how in record.get("layers", {}).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise UnsupportedModelError(
            f"{file_name} does not say how its weights were packed: its {_QUANTIZED_LAYERS} cannot be read ({error}); take "
            "another copy of this file"
        ) from error
    return json.dumps({**record, "layers": layers})


def _remarks(found: Found, has_lora: bool) -> list[str]:
    if found.variant is None:
        return ["which member of the family this is, nothing says; choose its variant to have its sigmas and block size"]
    if found.variant.needs_lora and not has_lora:
        return [f"{found.variant.name} is this model and a LoRA; give its LoRA too, unless somebody has merged it into this file"]
    return []
