"""HY-WorldPlay's HunyuanVideo out of the files it is released in, one for each of four stages of its training.

Their tensors do not tell which is which, but their folders do, and the distilled one was the only one called model.safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...errors import ConfigError, UnsupportedModelError, quoted
from ..common.checkpoint import CausalCheckpoint
from ..common.found import AUTO, METADATA_KEY, Found
from ..common.packing import require_readable
from ..common.shards import whole_name
from ..common.tensor_names import some, without_buffers
from ..common.variants import CausalVariant
from ..common.weight_files import WeightFile, open_weights
from ..common.weight_sets import GENERATOR, choose_set, weight_sets
from .modules import HunyuanConfig, HunyuanNetwork
from .names import ANCHORS, GET_8B, hunyuan_parts, is_of_hunyuan
from .variants import WORLDPLAY_8B

LATENT_CHANNELS = 32
BIDIRECTIONAL = "worldplay-8b-bidirectional"
# Patterns over names without separators, most telling first.
_NAMES = (
    (r"bidirectional", BIDIRECTIONAL),
    (r"distill", "worldplay-8b-distilled"),
    (r"arrlmodel|8brl|worldplay.*rl$", "worldplay-8b-rl"),
    (r"armodel|worldplay8b$", "worldplay-8b"),
)
_NAMELESS = re.compile(r"diffusionpytorchmodel$|model$")


def is_worldplay_hunyuan(file: WeightFile) -> bool:
    """Whether these are HY-WorldPlay's weights of HunyuanVideo 1.5, or those of the network it was made of."""
    if file.metadata.get(METADATA_KEY) in WORLDPLAY_8B:
        return True
    try:
        return any(is_of_hunyuan(each.tensors) for each in weight_sets(file, ANCHORS).sets)
    except UnsupportedModelError:
        return False


def read_worldplay_hunyuan(
    path: Path, variant: str = AUTO, weights: str = AUTO, file: WeightFile | None = None
) -> CausalCheckpoint:
    """The model in `path`, or in `file`, what an own reader made of it; every name and shape has been looked at.

    ConfigError: a choice that is not there, or has to be made. UnsupportedModelError: truncated, foreign, or without WorldPlay's
    layers.
    """
    file = file or open_weights(path)
    chosen, remarks = choose_set(path.name, weight_sets(file, ANCHORS), weights, GENERATOR, "HY-WorldPlay")
    tensors, buffers = without_buffers(chosen.tensors)
    remarks += [f"of no use to the network and left out: {some(buffers, 5)}"] if buffers else []
    require_readable(tensors, file.metadata, path.name, packed=False)
    try:
        parted = hunyuan_parts(tensors)
        _check_shapes(parted)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path.name}: {error}") from error
    found = find_stage(path, variant, file.metadata)
    if found.variant and found.variant.name == BIDIRECTIONAL:
        remarks += [
            "the bidirectional model denoises 16 latent frames at once, with a text that sees them; QVG does not run it: "
            + GET_8B
        ]
    whole = {name: parts[0] for name, parts in parted.items() if len(parts) == 1}
    joined = {name: parts for name, parts in parted.items() if len(parts) > 1}
    return CausalCheckpoint(path, whole, dict(file.metadata), found, chosen.label, tuple(remarks), joined)


def find_stage(path: Path, wanted: str = AUTO, metadata: Mapping[str, str] | None = None) -> Found:
    """Which of the four a file is. ConfigError: another name than theirs was asked for, or nothing tells."""
    if wanted != AUTO:
        if wanted not in WORLDPLAY_8B:
            raise ConfigError(
                f"variant is {quoted(wanted)}, but {path.name} is HY-WorldPlay on HunyuanVideo 1.5; choose {AUTO} or one of "
                f"{', '.join(WORLDPLAY_8B)}"
            )
        return Found(WORLDPLAY_8B[wanted], "your choice")
    marked = (metadata or {}).get(METADATA_KEY)
    if marked in WORLDPLAY_8B:
        return Found(WORLDPLAY_8B[marked], "its metadata")
    stage = _named(path)
    if stage is None:
        raise ConfigError(
            f"{path.name} is HY-WorldPlay on HunyuanVideo 1.5, and its name does not say of which stage; choose one of "
            f"{', '.join(WORLDPLAY_8B)} as variant of qvg convert, or leave it in its folder (ar_distilled_action_model and so "
            "on)"
        )
    return Found(stage, "its name")


def _named(path: Path) -> CausalVariant | None:
    name, folder = (re.sub(r"[-_ .]", "", each.lower()) for each in (whole_name(path).stem, path.parent.name))
    for spoken in (name, folder):
        for pattern, stage in _NAMES:
            # "model" on its own is no name; a folder's "ar_model" is.
            if re.search(pattern, spoken) and not (spoken == name and _NAMELESS.fullmatch(spoken)):
                return WORLDPLAY_8B[stage]
    return WORLDPLAY_8B["worldplay-8b-distilled"] if name == "model" else None


def _check_shapes(parted: Mapping[str, tuple[Tensor, ...]]) -> None:
    try:
        config = HunyuanConfig.of({name: parts[0] for name, parts in parted.items()})
        if (
            min(
                config.heads,
                config.channels,
                config.text_channels,
                config.byt5_channels,
                config.byt5_hidden,
                config.vision_channels,
            )
            < 1
        ):
            raise ValueError("one of their sides is 0")
        expected = HunyuanNetwork(config, device="meta").state_dict()
    except (IndexError, ValueError, ZeroDivisionError, RuntimeError, OverflowError) as error:
        raise UnsupportedModelError(f"its first weights are of no HunyuanVideo's shape ({error}); {GET_8B}") from error
    for name, weight in expected.items():
        if name not in parted:
            raise UnsupportedModelError(f"the checkpoint lacks {name!r}, so it is incomplete, or one of several files; {GET_8B}")
        sides = [list(part.shape) for part in parted[name]]
        alike = all(sides) and all(each[1:] == sides[0][1:] for each in sides)
        shape = [sum(each[0] for each in sides), *sides[0][1:]] if alike else sides[0] if len(sides) == 1 else sides
        if shape != list(weight.shape):
            raise UnsupportedModelError(f"{name} is {shape}, but {list(weight.shape)} in a HunyuanVideo of these sizes; {GET_8B}")
    if config.channels != LATENT_CHANNELS:
        raise UnsupportedModelError(
            f"the checkpoint has {config.channels} latent channels, but HunyuanVideo 1.5 {LATENT_CHANNELS}; {GET_8B}"
        )
