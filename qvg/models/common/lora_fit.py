"""A LoRA on a model: whether its layers are the model's, and what it adds to which tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ...errors import UnsupportedModelError
from .lora import Lora
from .lora_changes import Change, fits
from .lora_names import LayerNames, without_words
from .tensor_names import shown, some

_FOR_PICTURES = re.compile(r"(^|[._])((k|v|norm_k)_img|img_emb)([._]|$)|add_[kv]_proj|norm_added_k|image_embedder")


@dataclass(frozen=True)
class FittedLora:
    """`changes` by the model's names of its tensors. `remarks` are sentences for the user. `said`: the file's name, and the scale
    where that is not 1."""

    file_name: str
    changes: dict[str, Change]
    remarks: tuple[str, ...] = ()
    said: str = ""


def fitted(lora: Lora, tensors: Mapping[str, Tensor], others: Callable[[str], Iterable[str]] = lambda layer: ()) -> FittedLora:
    """What `lora` adds to a model of these tensors. `others`: further names of a layer, such as Diffusers'.

    UnsupportedModelError: a layer is not the model's, or of another shape, or stands in the file twice.
    """
    names = LayerNames(dict.fromkeys(layer for name in tensors for layer in _layers_of(name)), others)
    found = {layer: names.find(layer) for layer in lora.layers}
    prefix = names.strange_prefix(lora.layers) if not any(found.values()) else ""
    if prefix:
        found = {layer: names.find(layer.removeprefix(prefix)) for layer in lora.layers}
    known = {layer: own for layer, own in found.items() if own is not None}
    absent = [layer for layer in found if layer not in known]
    if absent and not (known and all(map(_is_for_pictures, absent))):
        raise _foreign(lora.file_name, absent, len(found))
    changes: dict[str, Change] = {}
    for layer, own in known.items():
        for what, change in lora.layers[layer].items():
            name = _target(own, what, tensors)
            if name is None:
                raise _foreign(lora.file_name, [f"{layer}.{what}"], len(found))
            if name in changes:
                raise UnsupportedModelError(f"{lora.file_name} changes {name} twice; use the file as it was published")
            _require_fit(lora.file_name, change, name, tensors[name])
            changes[name] = change
    scale = "" if lora.scale in (None, 1.0) else f" at scale {lora.scale:.4g}"
    return FittedLora(lora.file_name, changes, (*lora.remarks, *_said(lora, prefix, absent)), lora.file_name + scale)


def _said(lora: Lora, prefix: str, left_out: list[str]) -> Iterator[str]:
    if prefix:
        yield (
            f"{lora.file_name} has {shown(prefix)!r} in front of its names, which no trainer that QVG knows puts there; what "
            "follows fits"
        )
    if left_out:
        yield (
            f"{lora.file_name} was made for an image-to-video Wan; {len(left_out)} of its layers are for a picture "
            f"({some(map(without_words, left_out))}), have no place in this model and were left out"
        )


def _is_for_pictures(layer: str) -> bool:
    """Whether a layer is one of those that only image-to-video Wans have."""
    return _FOR_PICTURES.search(layer) is not None


def _target(own: str, what: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The tensor that is `what` of a layer; a parameter that is a layer of its own is its weight."""
    name = f"{own}.{what}"
    return name if name in tensors else own if own in tensors and what == "weight" else None


def _layers_of(name: str) -> tuple[str, ...]:
    """What LoRAs call the layer that a tensor belongs to."""
    layer = _layer_of(name)
    return (layer, layer.removesuffix(".modulation")) if layer.endswith(".modulation") else (layer,)


def _layer_of(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".bias")


def _require_fit(file_name: str, change: Change, name: str, tensor: Tensor) -> None:
    packed = not tensor.is_floating_point()  # of 4 bits and fewer, in a shape of their own
    if not packed and not fits(change, tensor):
        raise UnsupportedModelError(
            f"{file_name} makes {change.made()} of {_layer_of(name)}, which is {list(tensor.shape)} here; it is another model's "
            "LoRA, or of another size of it"
        )


def _foreign(file_name: str, layers: list[str], count: int) -> UnsupportedModelError:
    """It changes what the model does not have."""
    plain = [without_words(layer) for layer in layers]
    which = shown(plain[0]) if len(plain) == 1 else f"{len(plain)} of its {count} layers ({some(plain)})"
    if all(map(_is_for_pictures, layers)):
        why = "it was made for an image-to-video Wan, whose further layers text-to-video networks lack"
    else:
        why = "it is another model's LoRA, or has another tool's names, which that tool may convert to ComfyUI's"
    return UnsupportedModelError(f"{file_name} changes {which}, which this model does not have; {why}")
