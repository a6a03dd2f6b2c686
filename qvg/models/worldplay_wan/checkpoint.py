"""HY-WorldPlay's Wan out of the file it is released in, a pickle with two sets of weights, or out of one made of that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...errors import ConfigError, UnsupportedModelError
from ..common.checkpoint import CausalCheckpoint, choose_weights, weight_groups
from ..common.found import AUTO, METADATA_KEY, Found
from ..common.tensor_names import plain_names
from ..common.weight_files import WeightFile, open_weights
from .names import GET_5B, wan_names
from .network import WorldPlay, WorldPlayConfig
from .variants import WORLDPLAY_5B

LATENT_CHANNELS = 48
# The network's own names, and those of its training.
_OWN_LAYERS = re.compile(r"^(condition_embedder\.action_embedder|action_embedding)\.|\.o_prope\.|\.to_out_prope\.")
_OF_HUNYUAN = ("double_blocks.", "img_in.proj.")


def is_worldplay(file: WeightFile) -> bool:
    """Whether these are HY-WorldPlay's weights on Wan 2.2 5B: 48 latent channels, and layers of its own."""
    if file.metadata.get(METADATA_KEY) == WORLDPLAY_5B.name:
        return True
    names = _names_of_wan(file)
    return any(_OWN_LAYERS.search(name) for name in names)


def base_lacks(file: WeightFile) -> str | None:
    """What a Wan 2.2 5B is that has no layers of WorldPlay's; None for other files."""
    return f"Wan 2.2 5B without HY-WorldPlay's layers; {GET_5B}" if _names_of_wan(file) else None


def _names_of_wan(file: WeightFile) -> dict[str, Tensor]:
    """Weights of a Wan with 48 latent channels by name; none of other files."""
    try:
        names = plain_names(next(iter(weight_groups(file).values())))
    except UnsupportedModelError:
        return {}
    embedding = names.get("patch_embedding.weight")
    wan = embedding is not None and embedding.ndim == 5 and embedding.shape[1] == LATENT_CHANNELS
    return names if wan else {}


def read_worldplay(path: Path, weights: str = AUTO, file: WeightFile | None = None) -> CausalCheckpoint:
    """The model in `path`, or in `file`, what an own reader made of it; every name and shape has been looked at.

    ConfigError: a choice that is not there. UnsupportedModelError: truncated, foreign, or the model without WorldPlay's layers.
    """
    file = file or open_weights(path)
    groups = weight_groups(file)
    chosen, remarks = choose_weights(path.name, groups, weights, WORLDPLAY_5B)
    plain = plain_names(groups[chosen])
    _refuse_hunyuan(plain, path.name)
    try:
        tensors = wan_names(plain)
        _check_shapes(tensors)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path.name}: {error}") from error
    marked = file.metadata.get(METADATA_KEY) == WORLDPLAY_5B.name
    found = Found(WORLDPLAY_5B, "its metadata" if marked else "its layers")
    return CausalCheckpoint(path, tensors, dict(file.metadata), found, chosen, tuple(remarks))


def require_variant(wanted: str) -> None:
    """ConfigError where a variant was asked for that these weights are not."""
    if wanted not in (AUTO, WORLDPLAY_5B.name):
        raise ConfigError(f"variant is {wanted!r}, but the file holds {WORLDPLAY_5B.name} or its base; choose {AUTO}")


def _refuse_hunyuan(names: Mapping[str, Tensor], file_name: str) -> None:
    if not any(name.startswith(_OF_HUNYUAN) for name in names):
        return
    walks = any("img_attn_prope_proj" in name or name.startswith("action_in.") for name in names)
    what = "HY-WorldPlay on HunyuanVideo 1.5 (8B)" if walks else "a HunyuanVideo without HY-WorldPlay's layers"
    raise UnsupportedModelError(f"{file_name} is {what}, and this is the place of HY-WorldPlay on Wan 2.2 (5B): {GET_5B}")


def _check_shapes(tensors: Mapping[str, Tensor]) -> None:
    try:
        expected = WorldPlay(WorldPlayConfig.of(tensors), device="meta").state_dict()
    except (IndexError, ValueError) as error:
        raise UnsupportedModelError(f"its first weights are of no Wan's shape ({error}); {GET_5B}") from error
    for name, weight in expected.items():
        if name not in tensors:
            raise UnsupportedModelError(f"the checkpoint lacks {name!r}; {GET_5B}")
        if tensors[name].shape != weight.shape:
            raise UnsupportedModelError(
                f"{name} is {list(tensors[name].shape)}, but {list(weight.shape)} in a Wan of these sizes; {GET_5B}"
            )
    channels = expected["patch_embedding.weight"].shape[1]
    if channels != LATENT_CHANNELS:
        raise UnsupportedModelError(f"the checkpoint has {channels} latent channels, but Wan 2.2 5B {LATENT_CHANNELS}; {GET_5B}")
