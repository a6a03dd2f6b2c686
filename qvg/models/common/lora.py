"""LoRA files: what is added to which weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import UnsupportedModelError
from .tensor_names import plain_name
from .weight_files import MOST_WRAPPINGS, WeightFile, is_tensors, named_tensors, open_weights

_GROUPS = ("generator_lora", "state_dict")
# PEFT writes lora_A and lora_B, with the adapter's name or without; others lora_down and lora_up, and alpha beside them.
_DOWN = re.compile(r"\.(?:lora_A(?:\.default)?|lora_down)(?:\.weight)?$")
_UP = re.compile(r"\.(?:lora_B(?:\.default)?|lora_up)(?:\.weight)?$")
_ALPHA = re.compile(r"\.alpha$")
_PEFT = "base_model.model."


@dataclass(frozen=True)
class LoraLayer:
    """Adds `scale * up @ down` to a weight [out, in]. down [rank, in], up [out, rank]."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def added_to(self, weight: Tensor) -> Tensor:
        """A new tensor, in float32 whatever the weight is in."""
        return weight.float() + self.scale * (self.up.float() @ self.down.float())


def read_lora(path: Path) -> dict[str, LoraLayer]:
    """Layers by the name of what they change, such as blocks.0.self_attn.q. Scales are alpha / rank; without an alpha 1, as
    LongLive's is (256 / 256). UnsupportedModelError: not a LoRA, or not one that is two matrices for every layer."""
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    unknown = []
    for name, tensor in _tensors(open_weights(path)).items():
        plain = plain_name(plain_name(name).removeprefix(_PEFT))
        if found := _DOWN.search(plain):
            downs[plain[: found.start()]] = tensor
        elif found := _UP.search(plain):
            ups[plain[: found.start()]] = tensor
        elif found := _ALPHA.search(plain):
            alphas[plain[: found.start()]] = _number(tensor, name, path.name)
        else:
            unknown.append(name)
    if not downs or not ups:
        raise UnsupportedModelError(f"{path.name} is no LoRA: nothing in it is called lora_A or lora_down; leave it out")
    unpaired = sorted(downs.keys() ^ ups.keys())
    if unknown or unpaired:
        raise UnsupportedModelError(
            f"{path.name} has more than the two matrices of a LoRA for each layer ({', '.join((unknown + unpaired)[:3])}); load "
            "it with ComfyUI's 'LoraLoaderModelOnly' behind the model"
        )
    for name, down in downs.items():
        if not down.ndim == ups[name].ndim == 2 or not len(down):
            raise UnsupportedModelError(
                f"{path.name} has {list(down.shape)} and {list(ups[name].shape)} for {name}, which are no two matrices; load it "
                "with ComfyUI's 'LoraLoaderModelOnly' behind the model"
            )
    return {name: LoraLayer(down, ups[name], alphas.get(name, len(down)) / len(down)) for name, down in downs.items()}


def _number(tensor: Tensor, name: str, file_name: str) -> float:
    if tensor.numel() != 1 or not bool(tensor.isfinite().all()):
        raise UnsupportedModelError(f"{file_name} has a {name} that is no number; take another copy of this file")
    return float(tensor)


def require_fit(lora: Mapping[str, LoraLayer], tensors: Mapping[str, Tensor], lora_name: str) -> None:
    """Raise UnsupportedModelError unless every layer of the LoRA is one of the model's, and of its shape."""
    for name, layer in lora.items():
        weight = tensors.get(f"{name}.weight")
        made = [layer.up.shape[0], layer.down.shape[1]]
        if weight is None:
            raise UnsupportedModelError(
                f"{lora_name} changes {name}, which this model does not have; it is another model's LoRA, or has another tool's "
                "names: then load it with ComfyUI's 'LoraLoaderModelOnly' behind the model"
            )
        if list(weight.shape) != made or layer.up.shape[1] != layer.down.shape[0]:
            raise UnsupportedModelError(
                f"{lora_name} makes {made} of {name}, which is {list(weight.shape)} here; it is another model's LoRA"
            )


def _tensors(file: WeightFile) -> dict[str, Tensor]:
    content: dict[str, Any] = file.content
    for _ in range(MOST_WRAPPINGS + 1):
        if is_tensors(content):
            return named_tensors(content)
        inside = [name for name in content if isinstance(content[name], dict)]
        chosen = next((name for name in _GROUPS if name in inside), inside[0] if len(inside) == 1 else None)
        if chosen is None:
            raise UnsupportedModelError(
                f"{file.path.name} is no LoRA ({', '.join(map(str, content)) or 'nothing'} in it); leave it out"
            )
        content = content[chosen]
    raise UnsupportedModelError(
        f"{file.path.name} is no LoRA (more than {MOST_WRAPPINGS} dictionaries in one another, or one in itself); leave it out"
    )
