"""Names of HY-WorldPlay's HunyuanVideo weights: as they are released (queries, keys and values apart), and as ComfyUI has them.

The extra layers get names in the manner of the rest: `action_in` and `double_blocks.N.img_attn_prope_proj`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ...errors import UnsupportedModelError
from ..common.tensor_names import count_blocks, shown, uneven

# By these the network is known, whatever stands in front of its names.
ANCHORS = ("cond_type_embedding.weight", "double_blocks.0.img_attn_q.weight", "double_blocks.0.img_attn.qkv.weight")
_PREFIX = re.compile(r"^(model\.diffusion_model\.|diffusion_model\.|transformer\.|module\.)")
_RENAMED = (
    (re.compile(r"^(time_in|action_in|txt_in\.t_embedder)\.mlp\.0\."), r"\1.in_layer."),
    (re.compile(r"^(time_in|action_in|txt_in\.t_embedder)\.mlp\.2\."), r"\1.out_layer."),
    (re.compile(r"^txt_in\.c_embedder\.linear_1\."), "txt_in.c_embedder.in_layer."),
    (re.compile(r"^txt_in\.c_embedder\.linear_2\."), "txt_in.c_embedder.out_layer."),
    (re.compile(r"_mod\.linear\."), "_mod.lin."),
    (re.compile(r"_attn_(qkv|proj)\."), r"_attn.\1."),
    (re.compile(r"_attn_q_norm\."), "_attn.norm.query_norm."),
    (re.compile(r"_attn_k_norm\."), "_attn.norm.key_norm."),
    (re.compile(r"mlp\.fc1\."), "mlp.0."),
    (re.compile(r"mlp\.fc2\."), "mlp.2."),
)
_PART = re.compile(r"^(double_blocks\.\d+\.(?:img|txt))_attn_([qkv])\.(weight|bias)$")
_KNOWN = re.compile(
    r"^(double_blocks\.\d+\.((img|txt)_(mod\.lin|attn\.(qkv|proj|norm\.(query|key)_norm)|mlp\.[02])|img_attn_prope_proj)|img_in|time_in"
    r"|txt_in|byt5_in|vision_in|action_in|final_layer|cond_type_embedding)\."
)

# Of a checkpoint that the world was trained into, by ComfyUI's names.
PER_BLOCK, AROUND = 26, 69
FOLDERS = ("ar_distilled_action_model", "ar_model", "ar_rl_model", "bidirectional_model")
GET_8B = (
    "get the file in ar_distilled_action_model of tencent/HY-WorldPlay (or in ar_model), whose licence excludes the European "
    "Union, the United Kingdom and South Korea"
)


def hunyuan_parts(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """The same weights by ComfyUI's names, each as the tensors that are put together along their first axis: one, or three where
    queries, keys and values were apart. Names of ComfyUI's stay as they are. Nothing is copied.

    Raises UnsupportedModelError for a HunyuanVideo without WorldPlay's layers, and for one that lacks some or holds others.
    """
    parted: dict[str, dict[str, Tensor]] = {}
    for name, weight in state.items():
        where, which = _renamed(_PREFIX.sub("", name))
        if which in parted.setdefault(where, {}):
            raise UnsupportedModelError(f"the checkpoint names {shown(where)!r} twice; use the file as it was published")
        parted[where][which] = weight
    _check_layers(parted)
    made = {}
    for name, weights in parted.items():
        if (len(weights) > 1 and set(weights) != set("qkv")) or (len(weights) == 1 and "" not in weights):
            raise UnsupportedModelError(f"the checkpoint has {', '.join(sorted(weights))} alone of {shown(name)!r}; {GET_8B}")
        made[name] = tuple(weights[which] for which in ("q", "k", "v")) if len(weights) > 1 else (weights[""],)
    return made


def is_of_hunyuan(names: Mapping[str, Tensor]) -> bool:
    """Whether these weights are HunyuanVideo 1.5's, with WorldPlay's layers or without them."""
    plain = {_PREFIX.sub("", name) for name in names}
    return "cond_type_embedding.weight" in plain and any(name.startswith("double_blocks.") for name in plain)


def _renamed(name: str) -> tuple[str, str]:
    """ComfyUI's name, and which part of it this is, "" for all."""
    part = _PART.match(name)
    if part:
        return f"{part[1]}_attn.qkv.{part[3]}", part[2]
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name, ""


def _check_layers(names: Mapping[str, object]) -> None:
    blocks = count_blocks(names, "double_blocks.")
    if not blocks or "img_in.proj.weight" not in names:
        raise UnsupportedModelError(f"the checkpoint is no HunyuanVideo at all; {GET_8B}")
    own = _worldplay_layers(blocks)
    lacks = [name for name in own if name not in names]
    if lacks:
        where = "" if len(lacks) == len(own) else " in some places"
        raise UnsupportedModelError(
            f"the checkpoint is a HunyuanVideo without HY-WorldPlay's layers{where} (it lacks {lacks[0]!r}); {GET_8B}"
        )
    expected = PER_BLOCK * blocks + AROUND
    if len(names) != expected:
        raise UnsupportedModelError(
            f"the checkpoint holds {len(names)} weights, but HY-WorldPlay of {blocks} blocks has {expected}"
            f"{uneven(names, 'double_blocks.', _KNOWN)}; {GET_8B}"
        )


def _worldplay_layers(blocks: int) -> list[str]:
    kinds = ("weight", "bias")
    action = [f"action_in.{layer}.{kind}" for layer in ("in_layer", "out_layer") for kind in kinds]
    return action + [f"double_blocks.{block}.img_attn_prope_proj.{kind}" for block in range(blocks) for kind in kinds]
