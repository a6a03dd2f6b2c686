"""The text of HunyuanVideo 1.5 as HY-WorldPlay reads it: once per prompt, by itself, at timestep 0.

Three kinds of tokens come together, those of a picture, of letters to be shown, and of the prompt; all layers' keys and values
of them are kept, exact, and whatever is painted attends to them. `network` is any with the names of `hunyuan_modules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ...attention.joint import JointKV
from ...cache import KVCache
from ...errors import ConfigError
from ...positions.rope import pairs_apart
from ..common.modulation import gated, modulated, sines
from .modules import HEAD_DIM

# Rows of cond_type_embedding.
_TEXT, _BYT5, _VISION = range(3)


@dataclass(frozen=True)
class Words:
    """What the encoders make of a prompt and a picture, without padding.

    text    [1, n, C] of Qwen2.5-VL, n at least 1
    byt5    [1, m, 1472] of the letters within quotation marks; None where there are none
    vision  [1, v, 1152] of SigLIP; None without a picture
    """

    text: Tensor
    byt5: Tensor | None = None
    vision: Tensor | None = None


@dataclass(frozen=True)
class TextRows:
    """Keys (pairs apart) and values of one prompt, [1, H, L, D] each, layer by layer."""

    layers: Sequence[JointKV]

    @property
    def tokens(self) -> int:
        """Of text, letters and picture together."""
        return self.layers[0][0].shape[2]

    @property
    def nbytes(self) -> int:
        """Counted from the storages that are there."""
        return sum(x.untyped_storage().nbytes() for rows in self.layers for x in rows)

    def check(self, cache: KVCache) -> None:
        """See `sampling.world`: these are the model's own numbers, whatever the cache is."""


def without_padding(states: Tensor, mask: Tensor | None) -> Tensor | None:
    """Tokens [1, n, C] that a mask [1, n] (1, or True, for tokens) lets through; None where there is none of them."""
    if mask is None:
        return states if states.shape[1] else None
    kept = states[:, mask.reshape(-1).bool()]
    return kept if kept.shape[1] else None


@torch.inference_mode()
def read_words(network: Any, words: Words, dtype: torch.dtype) -> TextRows:
    """The text pass. Raises ConfigError for words of another shape."""
    _check(network, words)
    tokens = _tokens(network, words, dtype)
    level = embedded(network.time_in, torch.zeros(1, 1, device=tokens.device), dtype)
    *blocks, last = network.double_blocks
    rows = []
    for block in blocks:
        tokens, keys_values = _block(block, tokens, level)
        rows.append(keys_values)
    _, k, v = _queries_keys_values(last, tokens, parts(last.txt_mod, level))
    return TextRows([*rows, _kept(k, v)])


def embedded(embedder: Any, numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Timesteps or labels [B, F] -> [B, F, W]."""
    return _two_layers(embedder, sines(numbers).to(dtype))


def parts(modulation: Any, level: Tensor) -> tuple[Tensor, ...]:
    """Shift, scale and gate of attention, then of the MLP, each [B, F, 1, W]; level [B, F, W]."""
    return modulation.lin(F.silu(level)).unsqueeze(2).chunk(6, -1)  # type: ignore[no-any-return]


def queries_keys_values(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, S, W] -> three of [B, H, S, D], of normalised queries and keys."""
    norms = attention.norm
    q, k, v = rearrange(attention.qkv(x), "b s (three h d) -> three b h s d", three=3, d=HEAD_DIM)
    return norms.query_norm(q).to(v), norms.key_norm(k).to(v), v


def joined(x: Tensor) -> Tensor:
    """[B, H, S, D] -> [B, S, W]."""
    heads: Tensor = rearrange(x, "b h s d -> b s (h d)")
    return heads


def _check(network: Any, words: Words) -> None:
    wanted = {
        "text": network.txt_in.input_embedder.in_features,
        "byt5": network.byt5_in.fc1.in_features,
        "vision": network.vision_in.proj[1].in_features,
    }
    for name, channels in wanted.items():
        states = getattr(words, name)
        if states is None and name != "text":
            continue
        shape = None if states is None else list(states.shape)
        if shape is None or len(shape) != 3 or shape[0] != 1 or not shape[1] or shape[2] != channels:
            raise ConfigError(
                f"the {name} states are {shape}, but this model reads [1, at least 1 token, {channels} channels]; take them from "
                "HunyuanVideo 1.5's own encoders, one prompt at a time"
            )


def _tokens(network: Any, words: Words, dtype: torch.dtype) -> Tensor:
    """[1, L, W]: picture, letters, text."""
    # ComfyUI leaves this one where it was loaded.
    kinds = network.cond_type_embedding.weight.to(words.text.device, dtype)
    made = [_refined(network.txt_in, words.text.to(dtype)) + kinds[_TEXT]]
    if words.byt5 is not None:
        made.insert(0, _letters(network.byt5_in, words.byt5.to(dtype)) + kinds[_BYT5])
    if words.vision is not None:
        made.insert(0, network.vision_in.proj(words.vision.to(dtype)) + kinds[_VISION])
    return torch.cat(made, 1)


def _refined(refiner: Any, text: Tensor) -> Tensor:
    zero = torch.zeros(1, 1, device=text.device)
    level = embedded(refiner.t_embedder, zero, text.dtype) + _two_layers(refiner.c_embedder, text.mean(1, keepdim=True))
    tokens: Tensor = refiner.input_embedder(text)
    for block in refiner.individual_token_refiner.blocks:
        gate_a, gate_m = block.adaLN_modulation(level).chunk(2, -1)
        q, k, v = rearrange(block.self_attn.qkv(block.norm1(tokens)), "b s (three h d) -> three b h s d", three=3, d=HEAD_DIM)
        tokens = tokens + block.self_attn.proj(joined(F.scaled_dot_product_attention(q, k, v))) * gate_a
        tokens = tokens + block.mlp(block.norm2(tokens)) * gate_m
    return tokens


def _two_layers(embedder: Any, x: Tensor) -> Tensor:
    out: Tensor = embedder.out_layer(F.silu(embedder.in_layer(x)))
    return out


def _letters(mapper: Any, states: Tensor) -> Tensor:
    hidden = F.gelu(mapper.fc1(mapper.layernorm(states)))
    out: Tensor = mapper.fc3(F.gelu(mapper.fc2(hidden)))
    return out


def _queries_keys_values(block: Any, tokens: Tensor, level: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    shift, scale, *_ = level
    return queries_keys_values(block.txt_attn, modulated(block.txt_norm1(tokens), shift, scale))


def _kept(k: Tensor, v: Tensor) -> JointKV:
    return pairs_apart(k), v.clone(memory_format=torch.contiguous_format)  # not a view of queries, keys and values


def _block(block: Any, tokens: Tensor, level: Tensor) -> tuple[Tensor, JointKV]:
    *first, gate_a, shift_m, scale_m, gate_m = parts(block.txt_mod, level)
    q, k, v = _queries_keys_values(block, tokens, (*first,))
    tokens = tokens + gated(block.txt_attn.proj(joined(F.scaled_dot_product_attention(q, k, v))), gate_a)
    tokens = tokens + gated(block.txt_mlp(modulated(block.txt_norm2(tokens), shift_m, scale_m)), gate_m)
    if tokens.dtype == torch.float16:
        # A text's stream outgrows this type, as ComfyUI knows.
        tokens = tokens.nan_to_num(nan=0.0)
    return tokens, _kept(k, v)
