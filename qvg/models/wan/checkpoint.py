"""A causal Wan out of any of the files in which its family is handed around."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, UnsupportedModelError
from ..common.variants import CausalVariant
from ..common.weight_files import MOST_WRAPPINGS, WeightFile, causal_metadata, is_tensors, named_tensors, open_weights
from .names import is_quantized, plain_name, plain_names, require_text_to_video
from .which_variant import AUTO, Found, find_variant

WEIGHTS = ("generator", "generator_ema")
_WRAPPED_IN = ("state_dict", "model", "module", "generator_lora")
_NOT_THE_MODEL = ("critic", "optimizer")
_PLAIN = ""
_QUANTIZED_LAYERS = "_quantization_metadata"
# In the metadata of a file into which a LoRA was merged: the LoRA's name.
LORA_KEY = "qvg_lora"


@dataclass(frozen=True)
class CausalCheckpoint:
    """`tensors` have Wan's own names (a HunyuanVideo's ComfyUI's) and are mapped from disk. `weights` is the dictionary in the
    file that was taken, "" where there is but one. `metadata` marks the model as causal for ComfyUI. `remarks` are sentences for
    the user. `joined` are tensors of the model that the file has in parts, one behind another along the first axis."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    found: Found
    weights: str = _PLAIN
    remarks: tuple[str, ...] = ()
    joined: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def variant(self) -> CausalVariant | None:
        """How it was trained to be run."""
        return self.found.variant

    @property
    def quantized(self) -> bool:
        """Whether weights come with scales, in 8 bits or fewer; such are for ComfyUI to understand."""
        return is_quantized(self.tensors)

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of most values."""
        counts: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
        return max(counts, key=lambda dtype: counts[dtype])


def read_causal_wan(
    path: Path, variant: str = AUTO, weights: str = AUTO, file: WeightFile | None = None, has_lora: bool = False
) -> CausalCheckpoint:
    """The model in `path`, or in `file`, what an own reader made of it.

    ConfigError: a choice that is not there. UnsupportedModelError: truncated, foreign, or another model than a causal Wan.
    """
    file = file or open_weights(path)
    groups = {name: plain_names(named_tensors(group)) for name, group in weight_groups(file).items()}
    first = next(iter(groups.values()))
    unused = require_text_to_video(first, path.name)
    names = [name for name in groups if name != _PLAIN]
    found = find_variant(path, variant, file.metadata, names, first["patch_embedding.weight"].shape[0])
    chosen, remarks = choose_weights(path.name, groups, weights, found.variant)
    if groups[chosen] is not first:
        unused = require_text_to_video(groups[chosen], path.name)
    tensors = {name: tensor for name, tensor in groups[chosen].items() if name not in unused}
    remarks += [f"of no use to the network and left out: {', '.join(unused[:5])}"] if unused else []
    remarks += _remarks(found, has_lora or LORA_KEY in file.metadata)
    return CausalCheckpoint(path, tensors, _metadata(file.metadata, path.name), found, chosen, tuple(remarks))


def weight_groups(file: WeightFile) -> dict[str, dict[str, Tensor]]:
    """Dictionaries of weights in a file, by `generator` and `generator_ema`; or the only one, by ""."""
    content: dict[str, Any] = file.content
    for _ in range(MOST_WRAPPINGS + 1):
        named = {name: content[name] for name in WEIGHTS if is_tensors(content.get(name))}
        if named:
            return named
        if is_tensors(content):
            return {_PLAIN: content}
        inside = [name for name in content if isinstance(content[name], dict) and name not in _NOT_THE_MODEL]
        wrapped = next((name for name in _WRAPPED_IN if name in inside), inside[0] if len(inside) == 1 else None)
        if wrapped is None:
            raise UnsupportedModelError(
                f"{file.path.name} holds no weights that are known ({', '.join(map(str, content)) or 'nothing at all'}); a "
                f"checkpoint has {' or '.join(WEIGHTS)}, or its tensors by name"
            )
        content = content[wrapped]
    raise UnsupportedModelError(
        f"{file.path.name} has more than {MOST_WRAPPINGS} dictionaries in one another, or one in itself, and no weights on the "
        f"way; a checkpoint has {' or '.join(WEIGHTS)}, or its tensors by name"
    )


def choose_weights(file_name: str, groups: Iterable[str], wanted: str, variant: CausalVariant | None) -> tuple[str, list[str]]:
    """Which of the dictionaries `groups` to take, and what is to be said of that. ConfigError: `wanted` is not among them."""
    names = list(groups)
    if wanted not in (AUTO, *WEIGHTS):
        raise ConfigError(f"weights is {wanted!r}; choose {AUTO}, {' or '.join(WEIGHTS)}")
    if names == [_PLAIN]:
        # Repackaged: somebody has chosen before.
        unheard = [] if wanted == AUTO else [f"{file_name} has one set of weights, so the choice of {wanted} means nothing"]
        return _PLAIN, unheard
    if wanted != AUTO:
        if wanted not in names:
            raise ConfigError(f"{file_name} has no {wanted}; it has {', '.join(names)}: choose that, or {AUTO}")
        return wanted, []
    trained = variant.weights_key if variant else "generator_ema"
    if trained in names:
        return trained, []
    whose = variant.name if variant else "a trainer"
    return names[0], [f"{trained} is what {whose} releases, and {file_name} has {names[0]} alone"]


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
