"""LongCat-Video out of the folder it is released in, or out of one file that was made of that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import ConfigError, UnsupportedModelError, quoted
from ..common.checkpoint import CausalCheckpoint
from ..common.found import AUTO, METADATA_KEY, Found
from ..common.packing import LAYERS_KEY, packed_layers, require_readable
from ..common.strangers import what_else
from ..common.tensor_names import is_quantized, shown, some, without_buffers
from ..common.variants import CausalVariant
from ..common.weight_files import WeightFile, open_weights
from ..common.weight_sets import GENERATOR, choose_set, weight_sets
from .names import ANCHORS, GET_LONGCAT, is_avatar, is_of_longcat, longcat_parts, require_shapes
from .variants import LONGCAT, VARIANTS

CONFIG, FOLDER = "config.json", "dit"
_CLASS = "LongCatVideoTransformer3DModel"
_MOST_CONFIG = 1 << 20
LATENT_CHANNELS = 16


def is_longcat(file: WeightFile) -> bool:
    """Whether these are weights of LongCat-Video's network."""
    if file.metadata.get(METADATA_KEY) in VARIANTS:
        return True
    try:
        return any(is_of_longcat(each.tensors) for each in weight_sets(file, ANCHORS).sets)
    except UnsupportedModelError:
        return False


def read_longcat(path: Path, variant: str = AUTO, weights: str = AUTO, file: WeightFile | None = None) -> CausalCheckpoint:
    """The model in `path`, or in `file`, what an own reader made of it; every name and shape has been looked at.

    ConfigError: a choice that is not there. UnsupportedModelError: truncated, foreign, or another LongCat.
    """
    file = file or open_weights(path)
    chosen, remarks = choose_set(path.name, weight_sets(file, ANCHORS), weights, GENERATOR, "LongCat-Video")
    tensors, buffers = without_buffers(chosen.tensors)
    remarks += [f"of no use to the network and left out: {some(buffers, 5)}"] if buffers else []
    if is_avatar(tensors):
        raise UnsupportedModelError(
            f"{path.name} is LongCat-Video-Avatar, which listens to audio; QVG runs LongCat-Video: {GET_LONGCAT}"
        )
    other = what_else(tensors)
    if other:
        raise UnsupportedModelError(f"{path.name} {other}")
    require_config(path)
    require_readable(tensors, file.metadata, path.name)
    try:
        parted = longcat_parts(tensors)
        _refuse_scaled_parts(parted)
        require_shapes(parted)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path.name}: {error}") from error
    metadata = dict(file.metadata)
    if LAYERS_KEY in metadata:
        layers = packed_layers({}, metadata, path.name, lambda name: name.removeprefix(chosen.prefix))
        metadata[LAYERS_KEY] = json.dumps({**json.loads(metadata[LAYERS_KEY]), "layers": layers})
    whole = {name: parts[0] for name, parts in parted.items() if len(parts) == 1}
    joined = {name: parts for name, parts in parted.items() if len(parts) > 1}
    return CausalCheckpoint(path, whole, metadata, _found(variant, metadata, path), chosen.label, tuple(remarks), joined)


def _found(wanted: str, metadata: Mapping[str, str], path: Path) -> Found:
    if wanted != AUTO:
        if wanted not in VARIANTS:
            raise ConfigError(
                f"variant is {quoted(wanted)}, but {path.name} is LongCat-Video; choose {AUTO} or one of {', '.join(VARIANTS)}"
            )
        return Found(VARIANTS[wanted], "your choice")
    marked: CausalVariant | None = VARIANTS.get(metadata.get(METADATA_KEY, ""))
    return Found(marked, "its metadata") if marked else Found(LONGCAT, "its layers")


def _refuse_scaled_parts(parted: Mapping[str, tuple[Tensor, ...]]) -> None:
    """Each part of a matrix has its scale, and joined they would need one."""
    if is_quantized(parted) and any(len(parts) > 1 for parts in parted.values()):
        raise UnsupportedModelError(
            "it has queries, keys and values apart and in 8 bits, each with a scale of its own, and QVG needs them in one "
            "matrix; take the same model in 16 bits, or let 'qvg convert --dtype fp8' make one file of the release"
        )


def released_file(folder: Path) -> Path | None:
    """What a folder that is the release, or its `dit`, is opened by; None of other folders. UnsupportedModelError where it says
    that it is the release and is not whole."""
    inner = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    is_release = inner.name == FOLDER or inner != folder
    if not (inner / CONFIG).is_file():
        if not is_release:
            return None
        raise UnsupportedModelError(
            f"{inner} has no {CONFIG}, by which LongCat-Video's weights say what they are, so they are of another model or were "
            f"not downloaded whole; {GET_LONGCAT}"
        )
    said = _config(inner)
    if said.get("_class_name") != _CLASS and not is_release:
        return None
    names = sorted(path.name for path in inner.iterdir())
    found = [name for name in names if name.endswith(".index.json")] or [name for name in names if name.endswith(".safetensors")]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{inner} holds {len(found) or 'no'} {'models' if found else 'weights'}{f' ({some(found)})' if found else ''}, but "
            f"one index with its parts, or one .safetensors, was expected; {'give one of them' if found else GET_LONGCAT}"
        )
    return inner / found[0]


def require_config(path: Path) -> None:
    """Raise UnsupportedModelError where a config.json beside the weights says that they are not LongCat-Video as released. Of
    other files' settings it says nothing."""
    said = _config(path.parent)
    name = said.get("_class_name", "")
    if not isinstance(name, str) or not name.startswith("LongCat"):
        return
    if name != _CLASS:
        raise UnsupportedModelError(
            f"{path.name} is {shown(name)}, as the {CONFIG} beside it says, and QVG runs {_CLASS}; {GET_LONGCAT}"
        )
    if said.get("text_tokens_zero_pad") is not True:
        value = shown(str(said.get("text_tokens_zero_pad")), 40)
        raise UnsupportedModelError(
            f"the {CONFIG} beside {path.name} says text_tokens_zero_pad {value}, but QVG reads prompts as the release does "
            f"(true); {GET_LONGCAT}"
        )


def _config(folder: Path) -> dict[str, Any]:
    """Of a folder; {} where there is none, or none that can be read."""
    path = folder / CONFIG
    try:
        if not path.is_file() or path.stat().st_size > _MOST_CONFIG:
            return {}
        said = json.loads(path.read_text("utf-8-sig", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
