"""Names of HY-WorldPlay's Wan weights: as its training saved them (diffusers' names, wrapped), and as ComfyUI knows Wan.

The two extra kinds of weights get names in the manner of the rest: `action_embedding` and `self_attn.o_prope`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import UnsupportedModelError
from ..common.tensor_names import count_blocks, uneven
from ..wan.diffusers_names import wan_name

_WRAPPING = re.compile(r"^model\.|_fsdp_wrapped_module\.|_orig_mod\.")
_PROJECTION = re.compile(r"\.attn1\.to_out_prope\.0\.")
_KNOWN = re.compile(
    r"^(blocks\.\d+\.((self|cross)_attn\.(q|k|v|o|o_prope|norm_[qk])|ffn\.[02]|norm3|modulation$)|patch_embedding|text_embedding\.[02]"
    r"|time_embedding\.[02]|action_embedding\.[02]|time_projection\.1|head\.(head|modulation$))"
)

# Of the checkpoint that the world was trained into: 27 + 2 per block, 15 + 4 around them.
PER_BLOCK, AROUND = 29, 19
GET_5B = (
    "get wan_distilled_model/model.pt of tencent/HY-WorldPlay, whose licence excludes the European Union, the United Kingdom and "
    "South Korea"
)


def wan_names(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same weights by ComfyUI's names; those that have them already stay as they are. Nothing is copied.

    Raises UnsupportedModelError for a Wan without WorldPlay's layers, and for one that lacks some or holds others.
    """
    nested = state.get("generator")
    if isinstance(nested, Mapping):
        state = nested
    renamed = {_renamed(name): weight for name, weight in state.items()}
    if len(renamed) != len(state):
        raise UnsupportedModelError(
            "the checkpoint names some weights twice, wrapped and plain; use the file as it was published"
        )
    blocks = count_blocks(renamed, "blocks.")
    own = _worldplay_layers(blocks)
    lacks = [name for name in own if name not in renamed]
    if not blocks or lacks:
        known = any(name.endswith(".self_attn.q.weight") for name in renamed)
        where = "" if len(lacks) == len(own) else " in some places"
        what = f"a Wan without HY-WorldPlay's layers{where} (it lacks {lacks[0]!r})" if known and lacks else "no Wan at all"
        raise UnsupportedModelError(f"the checkpoint is {what}; {GET_5B}")
    expected = PER_BLOCK * blocks + AROUND
    if len(renamed) != expected:
        raise UnsupportedModelError(
            f"the checkpoint holds {len(renamed)} weights, but HY-WorldPlay of {blocks} blocks has {expected}"
            f"{uneven(renamed, 'blocks.', _KNOWN)}; {GET_5B}"
        )
    return renamed


def _worldplay_layers(blocks: int) -> list[str]:
    kinds = ("weight", "bias")
    action = [f"action_embedding.{index}.{kind}" for index in (0, 2) for kind in kinds]
    return action + [f"blocks.{block}.self_attn.o_prope.{kind}" for block in range(blocks) for kind in kinds]


def _renamed(name: str) -> str:
    name = _WRAPPING.sub("", _WRAPPING.sub("", name))
    return wan_name(_PROJECTION.sub(".self_attn.o_prope.", name))
