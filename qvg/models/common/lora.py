"""LoRA files: what they add to which layer, by the names that they have for layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedModelError
from .lora_changes import Change, Difference, Hadamard, Kronecker, LowRank, Stacked
from .lora_names import (
    ALPHA,
    COMFYUIS,
    DOWN,
    SCALE,
    UP,
    UP_BIAS,
    UP_OF,
    is_beside,
    is_text_encoders,
    no_sum,
    part_of,
)
from .lora_scale import records_of, scales
from .tensor_names import shown, some, without_buffers, without_wrappers
from .weight_files import MOST_WRAPPINGS, WeightFile, named_tensors, open_weights

# Where trainers keep a LoRA, the likeliest first.
_GROUPS = ("generator_lora", "lora", "lora_state_dict", "generator", "state_dict", "model", "module")
_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOKR = tuple(f"lokr_w{factor}{half}" for factor in "12" for half in ("", "_a", "_b"))
_DIFFERENCES = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias", "diff_m": "modulation"}


@dataclass(frozen=True)
class Lora:
    """`layers` by the names that the file has for them: what is added to a layer's "weight", "bias" and "modulation". `remarks`
    are sentences for the user. `scale`: of all layers, None where they differ."""

    file_name: str
    layers: dict[str, dict[str, Change]]
    remarks: tuple[str, ...] = ()
    scale: float | None = 1.0


def read_lora(path: Path) -> Lora:
    """Reads names and shapes, no values but alphas. UnsupportedModelError: no LoRA, or one of a kind that is not added."""
    file = open_weights(path)
    tensors, pickled = _tensors(file)
    tensors, _ = without_buffers({without_wrappers(name): tensor for name, tensor in tensors.items()})
    parts, remarks = _parts(tensors, path.name)
    ranks = {layer: rank for layer, of in parts.items() if (rank := _rank(of))}
    own = {layer: _number(parts[layer][ALPHA], f"{layer}.{ALPHA}", path.name) for layer in ranks if ALPHA in parts[layer]}
    own |= {
        layer: _number(parts[layer][SCALE], f"{layer}.{SCALE}", path.name) * rank
        for layer, rank in ranks.items()
        if SCALE in parts[layer]
    }
    word = next(iter(parts)).partition(".")[0]
    found = scales(ranks, own, records_of(file.metadata, pickled, path), word)
    layers = {layer: _changes(layer, of, found.by_layer.get(layer, 1.0), path.name) for layer, of in parts.items()}
    different = set(found.by_layer.values()) or {1.0}
    scale = next(iter(different)) if len(different) == 1 else None
    return Lora(path.name, layers, (*remarks, *(f"{path.name} {remark}" for remark in found.remarks)), scale)


def _parts(tensors: Mapping[str, Tensor], file_name: str) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Tensors by layer and by what of it they are, without those of other networks; and what is to be said of these."""
    if found := no_sum(tensors):
        raise _not_merged(file_name, *found, tensors)
    parts: dict[str, dict[str, Tensor]] = {}
    adapters, unknown, left_out = set(), [], []
    for name, tensor in tensors.items():
        part = part_of(name)
        if part is None:
            unknown.append(name)
        elif is_text_encoders(part.layer) or is_beside(part.layer):
            left_out.append(part.layer)
        elif part.what in parts.setdefault(part.layer, {}):
            raise UnsupportedModelError(f"{file_name} has two {part.what} for {shown(part.layer)}; give a file with one LoRA")
        else:
            parts[part.layer][part.what] = tensor
            adapters.add(part.adapter)
    if not parts:
        raise _no_lora(file_name, tensors, left_out)
    if len(adapters - {""}) > 1:
        raise UnsupportedModelError(
            f"{file_name} holds {len(adapters)} LoRAs ({some(sorted(adapters))}); give a file with one of them"
        )
    if unknown:
        raise UnsupportedModelError(
            f"{file_name} has more in it than a LoRA adds ({some(unknown)}), and it would be lost; merge it with the tool that "
            "made it, or take a file with the LoRA alone"
        )
    said = f"{file_name} changes other networks, too ({some(dict.fromkeys(left_out))}); that part was left out"
    return parts, [said] if left_out else []


def _not_merged(file_name: str, what: str, name: str, tensors: Mapping[str, Tensor]) -> UnsupportedModelError:
    if all(each.startswith(COMFYUIS) for each in tensors):
        way_out = "leave it out here, and put ComfyUI's 'LoraLoaderModelOnly' with this file behind the model"
    else:
        way_out = "have the tool that trained it write a plain LoRA, or merge it there"
    return UnsupportedModelError(f"{file_name} is {what} ({shown(name)}), and merging that is not done here; {way_out}")


def _no_lora(file_name: str, tensors: Mapping[str, Tensor], left_out: list[str]) -> UnsupportedModelError:
    if left_out:
        return UnsupportedModelError(
            f"{file_name} is a LoRA for other networks alone ({some(dict.fromkeys(left_out))}), and none for the model"
        )
    if any(name.endswith("patch_embedding.weight") for name in tensors):
        return UnsupportedModelError(f"{file_name} is no LoRA but a whole model; give it as the model's file")
    return UnsupportedModelError(
        f"{file_name} is no LoRA: nothing in it is called lora_A, lora_down or as other LoRAs call what they add "
        f"({some(tensors)}); choose a LoRA's file"
    )


def _changes(layer: str, parts: Mapping[str, Tensor], scale: float, file_name: str) -> dict[str, Change]:
    """What a layer's tensors add, and to what of it. UnsupportedModelError: half of something, or two things."""
    left = {what for what in parts if what not in (ALPHA, SCALE)}
    found: list[tuple[str, Change]] = []
    stacked = _stacked(parts, scale)
    if stacked is not None:
        found.append(("weight", stacked))
        left = {what for what in left if what != DOWN and not what.startswith(UP_OF)}
    if {DOWN, UP} <= left:
        found.append(("weight", LowRank(parts[DOWN], parts[UP], scale)))
        left -= {DOWN, UP}
        if UP_BIAS in left:
            found.append(("bias", Difference(parts[UP_BIAS] * scale)))
            left.remove(UP_BIAS)
    if left.issuperset(_HADAMARD):
        a1, b1, a2, b2 = (parts[what] for what in _HADAMARD)
        found.append(("weight", Hadamard(a1, b1, a2, b2, scale)))
        left -= {*_HADAMARD}
    factors = [_factor(parts, f"lokr_w{which}") for which in "12"]
    if all(factors):
        found.append(("weight", Kronecker(factors[0], factors[1], scale)))
        left -= {*_LOKR}
    found += [(_DIFFERENCES[what], Difference(parts[what])) for what in _DIFFERENCES if what in left]
    left -= _DIFFERENCES.keys()
    if left or not found:
        raise UnsupportedModelError(
            f"{file_name} has half of what is added to {shown(layer)} ({some(sorted(parts))}); take another copy of this file"
        )
    if len({target for target, _ in found}) < len(found):
        raise UnsupportedModelError(f"{file_name} changes {shown(layer)} in two ways; give a file with one LoRA")
    if any(change.made() is None for _, change in found):
        sides = " and ".join(str(list(tensor.shape)) for what, tensor in parts.items() if what not in (ALPHA, SCALE))
        raise UnsupportedModelError(
            f"{file_name} has {sides} for {shown(layer)}, which make no product; take another copy of this file"
        )
    return dict(found)


def _stacked(parts: Mapping[str, Tensor], scale: float) -> Stacked | None:
    """Of a matrix that several layers were joined in; None: it is no such, or some of it are not there. Rows of `down` are shared
    out evenly."""
    names = [f"{UP_OF}{number}" for number in range(sum(what.startswith(UP_OF) for what in parts))]
    ups, down = [parts[name] for name in names if name in parts], parts.get(DOWN)
    if not ups or len(ups) < len(names) or down is None or down.ndim < 2 or down.shape[0] % len(ups):
        return None
    return Stacked(tuple(LowRank(rows, up, scale) for rows, up in zip(down.chunk(len(ups)), ups, strict=True)))


def _factor(parts: Mapping[str, Tensor], name: str) -> tuple[Tensor, ...]:
    """A factor as it is, or as the two halves of a product; () where that is not there, or both are."""
    whole, *halves = (parts.get(f"{name}{half}") for half in ("", "_a", "_b"))
    there = tuple(half for half in halves if half is not None)
    if whole is not None:
        return () if there else (whole,)
    return there if len(there) == 2 else ()


def _rank(parts: Mapping[str, Tensor]) -> int | None:
    """Rows of what alpha is divided by, if anything is; 0 of what is no matrix."""
    matrix = next((parts[what] for what in (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if what in parts), None)
    return None if matrix is None else (matrix.shape[0] if matrix.ndim else 0)


def _number(tensor: Tensor, name: str, file_name: str) -> float:
    if tensor.numel() != 1 or tensor.is_complex() or not bool(tensor.float().isfinite().all()):
        raise UnsupportedModelError(f"{file_name} has a {shown(name)} that is no number; take another copy of this file")
    return float(tensor)


def _tensors(file: WeightFile) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The LoRA's tensors, and what else stands in the dictionaries around them."""
    content, said = file.content, dict[str, Any]()
    for _ in range(MOST_WRAPPINGS + 1):
        tensors = named_tensors(content)
        said |= {name: each for name, each in content.items() if isinstance(name, str) and not isinstance(each, Tensor)}
        if tensors:
            numbers = {name: each for name, each in said.items() if name.endswith(f".{ALPHA}") and isinstance(each, (int, float))}
            return tensors | {name: torch.tensor(float(each)) for name, each in numbers.items()}, said
        inside = _inside(content)
        direct = [*_those(inside, named_tensors)]
        only = next((names[0] for names in ([*inside], direct) if len(names) == 1), None)
        chosen = next((name for name in _GROUPS if name in inside), only)
        if chosen is None and direct:
            raise UnsupportedModelError(
                f"{file.path.name} holds several sets of tensors ({some(direct)}), and nothing says which is the LoRA; save the "
                "one that is to a file of its own"
            )
        if chosen is None:
            raise UnsupportedModelError(f"{file.path.name} is no LoRA ({some(content) or 'nothing'} in it); choose a LoRA's file")
        said.pop(chosen, None)
        content = content[chosen]
    nested = f"more than {MOST_WRAPPINGS} dictionaries in one another, or one in itself"
    raise UnsupportedModelError(f"{file.path.name} is no LoRA ({nested}); choose a LoRA's file")


def _inside(content: Mapping[Any, Any]) -> dict[str, dict[Any, Any]]:
    """Dictionaries that may hold the LoRA. Settings are dictionaries, too, but of numbers and texts."""
    inside = {name: each for name, each in content.items() if isinstance(name, str) and not _is_of_training(name)}
    dictionaries = {name: each for name, each in inside.items() if isinstance(each, dict)}
    return _those(dictionaries, lambda each: any(isinstance(value, (Tensor, dict)) for value in each.values()))


def _those(named: dict[str, dict[Any, Any]], wanted: Callable[[dict[Any, Any]], object]) -> dict[str, dict[Any, Any]]:
    """The wanted ones. A hostile file has one large dictionary under many names: each is looked at once."""
    found = {key for key, each in {id(each): each for each in named.values()}.items() if wanted(each)}
    return {name: each for name, each in named.items() if id(each) in found}


def _is_of_training(name: str) -> bool:
    return is_beside(f"{name}.") or is_text_encoders(f"{name}.") or "optim" in name.lower()
