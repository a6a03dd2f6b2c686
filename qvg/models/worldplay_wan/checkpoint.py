"""HY-WorldPlay's Wan out of the file it is released in, a pickle with two sets of weights, or out of one made of that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ...errors import ConfigError, UnsupportedModelError, quoted
from ..common.checkpoint import CausalCheckpoint
from ..common.found import AUTO, METADATA_KEY, Found
from ..common.packing import require_readable
from ..common.strangers import what_else
from ..common.tensor_names import some, without_buffers
from ..common.weight_files import WeightFile, open_weights
from ..common.weight_sets import GENERATOR, choose_set, weight_sets
from .names import GET_5B, wan_names
from .network import WorldPlay, WorldPlayConfig
from .variants import WORLDPLAY_5B

LATENT_CHANNELS = 48
# The network's own names, and those of its training: by these it is known, whatever stands in front of its names.
_ANCHORS = (
    *("head.modulation", "blocks.0.self_attn.norm_q.weight", "action_embedding.0.weight"),
    *("condition_embedder.action_embedder.linear_1.weight", "condition_embedder.time_proj.weight"),
    "blocks.0.attn1.norm_q.weight",
)
_OWN_LAYERS = re.compile(r"^(condition_embedder\.action_embedder|action_embedding)\.|\.o_prope\.|\.to_out_prope\.")


def is_worldplay(file: WeightFile) -> bool:
    """Whether these are HY-WorldPlay's weights on Wan 2.2 5B: 48 latent channels, and layers of its own."""
    if file.metadata.get(METADATA_KEY) == WORLDPLAY_5B.name:
        return True
    return any(_OWN_LAYERS.search(name) for names in _wans(file) for name in names)


def base_lacks(file: WeightFile) -> str | None:
    """What a Wan 2.2 5B is that has no layers of WorldPlay's; None for other files."""
    if not any(_wans(file)):
        return None
    return f"Wan 2.2 5B without HY-WorldPlay's layers; {GET_5B}. Is it LongLive 2.0, of the same tensors: name it longlive2_5b"


def _wans(file: WeightFile) -> Iterator[dict[str, Tensor]]:
    """Sets of weights of a Wan with 48 latent channels."""
    try:
        sets = weight_sets(file, _ANCHORS).sets
    except UnsupportedModelError:
        return
    for each in sets:
        embedding = each.tensors.get("patch_embedding.weight")
        if embedding is not None and embedding.ndim == 5 and embedding.shape[1] == LATENT_CHANNELS:
            yield each.tensors


def read_worldplay(path: Path, weights: str = AUTO, file: WeightFile | None = None) -> CausalCheckpoint:
    """The model in `path`, or in `file`, what an own reader made of it; every name and shape has been looked at.

    ConfigError: a choice that is not there. UnsupportedModelError: truncated, foreign, or the model without WorldPlay's layers.
    """
    file = file or open_weights(path)
    chosen, remarks = choose_set(path.name, weight_sets(file, _ANCHORS), weights, GENERATOR, "HY-WorldPlay")
    plain, buffers = without_buffers(chosen.tensors)
    remarks += [f"of no use to the network and left out: {some(buffers, 5)}"] if buffers else []
    _refuse_hunyuan(plain, path.name)
    other = what_else(plain)
    if other:
        raise UnsupportedModelError(f"{path.name} {other}")
    require_readable(plain, file.metadata, path.name, packed=False)
    try:
        tensors = wan_names(plain)
        _check_shapes(tensors)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path.name}: {error}") from error
    marked = file.metadata.get(METADATA_KEY) == WORLDPLAY_5B.name
    found = Found(WORLDPLAY_5B, "its metadata" if marked else "its layers")
    return CausalCheckpoint(path, tensors, dict(file.metadata), found, chosen.label, tuple(remarks))


def require_variant(wanted: str) -> None:
    """ConfigError where a variant was asked for that these weights are not."""
    if wanted not in (AUTO, WORLDPLAY_5B.name):
        raise ConfigError(f"variant is {quoted(wanted)}, but the file holds {WORLDPLAY_5B.name} or its base; choose {AUTO}")


def _refuse_hunyuan(names: Mapping[str, Tensor], file_name: str) -> None:
    walks = any("img_attn_prope_proj" in name or name.startswith("action_in.") for name in names)
    if not walks and not any(name.startswith("img_in.proj.") for name in names):
        return
    what = "HY-WorldPlay on HunyuanVideo 1.5 (8B)" if walks else "a HunyuanVideo without HY-WorldPlay's layers"
    raise UnsupportedModelError(f"{file_name} is {what}, and this is the place of HY-WorldPlay on Wan 2.2 (5B): {GET_5B}")


def _check_shapes(tensors: Mapping[str, Tensor]) -> None:
    try:
        config = WorldPlayConfig.of(tensors)
        if min(config.heads, config.mlp, config.channels, config.text_channels) < 1:
            raise ValueError("one of their sides is 0")
        expected = WorldPlay(config, device="meta").state_dict()
    except (IndexError, ValueError, RuntimeError, OverflowError) as error:
        raise UnsupportedModelError(f"its first weights are of no Wan's shape ({error}); {GET_5B}") from error
    for name, weight in expected.items():
        if name not in tensors:
            raise UnsupportedModelError(f"the checkpoint lacks {name!r}, so it is incomplete, or one of several files; {GET_5B}")
        if tensors[name].shape != weight.shape:
            raise UnsupportedModelError(
                f"{name} is {list(tensors[name].shape)}, but {list(weight.shape)} in a Wan of these sizes; {GET_5B}"
            )
    channels = expected["patch_embedding.weight"].shape[1]
    if channels != LATENT_CHANNELS:
        raise UnsupportedModelError(f"the checkpoint has {channels} latent channels, but Wan 2.2 5B {LATENT_CHANNELS}; {GET_5B}")
