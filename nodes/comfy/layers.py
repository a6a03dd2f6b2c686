"""A model's own layers inside core's network, made of core's own kind of layers: LoRA, casting and offloading treat them as the
rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management as mm
from torch import Tensor

from ...qvg import UnsupportedModelError


def require_parts(what: str, parts: Mapping[str, Any], block: Any, block_parts: Sequence[str]) -> None:
    """Raise UnsupportedModelError unless core's network has what we go through: `parts` by name, and `block_parts` of a layer."""
    missing = [name for name, part in parts.items() if part is None]
    missing += [] if missing else [name for name in block_parts if not hasattr(block, name)]
    if missing:
        raise UnsupportedModelError(
            f"this ComfyUI's {what} has no {', '.join(missing)}, which QVG goes through; ComfyUI 0.21 to 0.33 have it: "
            "update QVG, or go back to one of these"
        )


def put_layers(network: Any, added: Mapping[str, Any], weights: Mapping[str, Tensor], assign: bool) -> None:
    """Make modules part of core's network, at their names, with their weights out of a file."""
    for name, module in added.items():
        own = {key.removeprefix(f"{name}."): weight for key, weight in weights.items() if key.startswith(f"{name}.")}
        # The types that the model is to have, as core notes its own: assigned weights keep those of the file until they are used.
        mm.archive_model_dtypes(module)
        module.load_state_dict(own, assign=assign)
        place, _, last = name.rpartition(".")
        network.get_submodule(place).add_module(last, module.requires_grad_(False))


def twin(layer: Any) -> Any:
    """A layer of the same class, so of the operations that ComfyUI chose for this model, of the same size and type."""
    if not hasattr(layer, "in_features"):
        return type(layer)()
    like = {"dtype": own_type(layer), "device": layer.weight.device}
    return type(layer)(layer.in_features, layer.out_features, bias=True, **like)


def own_type(layer: Any) -> Any:
    """What a layer's weight is to have when it is used: it may still be as it lies in the file."""
    return getattr(layer, "weight_comfy_model_dtype", None) or layer.weight.dtype
