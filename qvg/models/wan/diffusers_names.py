"""Names that Diffusers gives to the weights of Wan's networks, and Wan's own, which are ComfyUI's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Names of a whole network; the first has only Diffusers'.
_TELLING = ("condition_embedder.time_proj.weight", "patch_embedding.weight", "blocks.0.attn1.to_q.weight")
_LINEARS = {"1": "0", "2": "2"}
_WHOLE = {"scale_shift_table": "head.modulation"}
_STARTS = {"proj_out": "head.head", "condition_embedder.time_proj": "time_projection.1"}
_EMBEDDER = re.compile(r"^condition_embedder\.([a-z]+)_embedder\.linear_([12])\.")
_BLOCK = re.compile(r"^(blocks\.\d+)\.(.+)$")
# What comes after `blocks.N.`; the affine norm is the second of Diffusers' and the third of Wan's.
_IN_BLOCK = (
    (re.compile(r"^scale_shift_table$"), "modulation"),
    (re.compile(r"^norm2\."), "norm3."),
    (re.compile(r"^ffn\.net\.0\.proj\."), "ffn.0."),
    (re.compile(r"^ffn\.net\.2\."), "ffn.2."),
    (re.compile(r"^attn1\.(?:to_)?"), "self_attn."),
    (re.compile(r"^attn2\.(?:to_)?"), "cross_attn."),
)
_OUT = re.compile(r"_attn\.out\.0\.")
# The other way round, as LoRAs name layers.
_ATTENTIONS = {"self_attn": "attn1", "cross_attn": "attn2"}
_OTHERS_IN_BLOCK = {"norm3": "norm2", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2", "modulation": "scale_shift_table"}
_OTHERS_AROUND = {
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_OWN_EMBEDDING = re.compile(r"^(text|time|action)_embedding\.([02])$")
_OWN_ATTENTION = re.compile(r"^(self_attn|cross_attn)\.(.+)$")


def wan_name(name: str) -> str:
    """One name as Wan has it; those that Wan has stay as they are."""
    if name in _WHOLE:
        return _WHOLE[name]
    block = _BLOCK.match(name)
    if block:
        rest = block[2]
        for pattern, replacement in _IN_BLOCK:
            rest, count = pattern.subn(replacement, rest)
            if count:
                break
        return f"{block[1]}.{_OUT.sub('_attn.o.', rest)}"
    for start, replacement in _STARTS.items():
        if name.startswith(f"{start}."):
            return replacement + name[len(start) :]
    return _EMBEDDER.sub(lambda match: f"{match[1]}_embedding.{_LINEARS[match[2]]}.", name)


def by_wans_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` by Wan's names, where they are a network by Diffusers'; two of one name stay as they are."""
    if not all(name in tensors for name in _TELLING):
        return dict(tensors)
    renamed = {wan_name(name): tensor for name, tensor in tensors.items()}
    return renamed if len(renamed) == len(tensors) else dict(tensors)


def diffusers_names(layer: str) -> tuple[str, ...]:
    """The other way round: further names of a layer by Wan's own, such as blocks.0.self_attn.o; () where there are none."""
    block = _BLOCK.match(layer)
    if block:
        return tuple(f"{block[1]}.{name}" for name in _in_block(block[2]))
    if embedding := _OWN_EMBEDDING.match(layer):
        return (f"condition_embedder.{embedding[1]}_embedder.linear_{1 if embedding[2] == '0' else 2}",)
    return (_OTHERS_AROUND[layer],) if layer in _OTHERS_AROUND else ()


def _in_block(layer: str) -> tuple[str, ...]:
    part = _OWN_ATTENTION.match(layer)
    if part is None:
        return (_OTHERS_IN_BLOCK[layer],) if layer in _OTHERS_IN_BLOCK else ()
    attention, name = _ATTENTIONS[part[1]], part[2]
    if name in ("q", "k", "v"):
        return (f"{attention}.to_{name}",)
    if name in ("o", "o_prope"):
        out = f"{attention}.to_out{name.removeprefix('o')}"
        return (f"{out}.0", out)
    return (f"{attention}.{name}",)
