"""What layers of Wan's networks are called in LoRAs that Diffusers and its trainers have written."""

from __future__ import annotations

import re

_ATTENTIONS = {"self_attn": "attn1", "cross_attn": "attn2"}
_IN_BLOCK = {"norm3": "norm2", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2", "modulation": "scale_shift_table"}
_AROUND = {"time_projection.1": "condition_embedder.time_proj", "head.head": "proj_out", "head.modulation": "scale_shift_table"}
_EMBEDDING = re.compile(r"^(text|time|action)_embedding\.([02])$")
_IN_ATTENTION = re.compile(r"^(self_attn|cross_attn)\.(.+)$")
_BLOCK = re.compile(r"^(blocks\.\d+)\.(.+)$")


def other_names(layer: str) -> tuple[str, ...]:
    """Of a layer by Wan's own name, such as blocks.0.self_attn.o."""
    block = _BLOCK.match(layer)
    if block:
        return tuple(f"{block[1]}.{name}" for name in _in_block(block[2]))
    if embedding := _EMBEDDING.match(layer):
        return (f"condition_embedder.{embedding[1]}_embedder.linear_{1 if embedding[2] == '0' else 2}",)
    return (_AROUND[layer],) if layer in _AROUND else ()


def _in_block(layer: str) -> tuple[str, ...]:
    part = _IN_ATTENTION.match(layer)
    if part is None:
        return (_IN_BLOCK[layer],) if layer in _IN_BLOCK else ()
    attention, name = _ATTENTIONS[part[1]], part[2]
    if name in ("q", "k", "v"):
        return (f"{attention}.to_{name}",)
    if name in ("o", "o_prope"):
        out = f"{attention}.to_out{name.removeprefix('o')}"
        return (f"{out}.0", out)
    return (f"{attention}.{name}",)
