"""A LoRA on a model: whether its layers are the model's, and what it adds to which tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ...errors import UnsupportedModelError
from .lora import Lora
from .lora_changes import Change, fits
from .lora_names import LayerNames, without_words
from .tensor_names import shown, some


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
    names = LayerNames(dict.fromkeys(_layer_of(name) for name in tensors), others)
    found = {layer: names.find(layer) for layer in lora.layers}
    prefix = names.strange_prefix(lora.layers) if not any(found.values()) else ""
    if prefix:
        found = {layer: names.find(layer.removeprefix(prefix)) for layer in lora.layers}
    absent = [layer for layer, own in found.items() if own is None]
    if absent:
        raise _foreign(lora.file_name, absent, len(found))
    changes: dict[str, Change] = {}
    for layer, own in found.items():
        assert own is not None
        for what, change in lora.layers[layer].items():
            name = next((name for name in (f"{own}.{what}", own) if name in tensors), None)
            if name is None or (name == own and what == "bias"):
                raise _foreign(lora.file_name, [f"{layer}.{what}"], len(found))
            if name in changes:
                raise UnsupportedModelError(f"{lora.file_name} changes {name} twice; use the file as it was published")
            _require_fit(lora.file_name, change, name, tensors[name])
            changes[name] = change
    remarks = list(lora.remarks)
    if prefix:
        remarks.append(
            f"{lora.file_name} has {shown(prefix)!r} in front of its names, which no trainer that QVG knows puts there; what "
            "follows fits"
        )
    scale = "" if lora.scale in (None, 1.0) else f" at scale {lora.scale:.4g}"
    return FittedLora(lora.file_name, changes, tuple(remarks), lora.file_name + scale)


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
    if any(".k_img" in layer or ".v_img" in layer or layer.startswith("img_emb") for layer in plain):
        why = "it was made for an image-to-video Wan, whose further layers text-to-video networks lack"
    else:
        why = "it is another model's LoRA, or has another tool's names, which that tool may convert to ComfyUI's"
    return UnsupportedModelError(f"{file_name} changes {which}, which this model does not have; {why}")
