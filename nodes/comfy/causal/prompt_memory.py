"""Cross-attention's memory of ComfyUI's causal Wan model: keys and values of the prompt, made once, and its padding read once.

Core gives each block a dictionary that cross-attention fills in its first pass (`init_crossattn_caches`); a block that gets None
calls `cross_attn.forward(x, context)` at every pass. So where padding is to be merged, blocks get None, and a patched forward
keeps what it needs here. A new prompt begins with a call of `init_crossattn_caches`.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ....qvg.attention.prompt import MergedPrompt, attend_part, merge_equal_rows
from ...records import PromptBytes

logger = logging.getLogger(__name__)

_PATCH = "diffusion_model.blocks.{}.cross_attn.forward"
# [B, S, H * D] each: a prompt of which nothing could be merged, kept as core does.
Unmerged = tuple[Tensor, Tensor]
# Layer, its cross-attention, queries and context, [B, S, H * D] both -> as the queries.
Read = Callable[[int, Any, Tensor, Tensor], Tensor]


class PromptMemory:
    """Of one MODEL; holds something only while it is sampled. `merges`: padding is read once; `rule`: which rows of those
    that are left, see `qvg.attention.prompt.RULES`."""

    def __init__(self, network: Any, merges: bool, rule: str = "all"):
        self.network, self.merges, self.rule = network, merges, rule
        self._rows = [0, 0]  # read, of so many
        self._layers: dict[int, MergedPrompt | Unmerged] = {}
        self._of_core: list[Any] = []
        self._keys = 0
        self._read: Read | None = None

    def init_crossattn_caches(self, batch_size: int, device: Any, dtype: Any) -> list[Any]:
        """In core's place: a prompt begins."""
        self.clear()
        if not self.merges:
            self._of_core = list(type(self.network).init_crossattn_caches(self.network, batch_size, device, dtype))
            return self._of_core
        # One prompt's memory is no part of a compiled network, see `causal.run`.
        self._read = torch.compiler.disable(self._attend) if "torch._dynamo" in sys.modules else self._attend
        return [None] * len(self.network.blocks)

    def clear(self) -> None:
        """Give everything back."""
        self._layers, self._of_core, self._keys, self._read, self._rows = {}, [], 0, None, [0, 0]

    def forward_of(self, layer: int) -> Callable[..., Tensor]:
        """What takes the place of a layer's cross-attention. x [B, S, H * D], context [B, S', H * D] -> x's shape."""
        module = self.network.blocks[layer].cross_attn

        def forward(x: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self._read is None:
                own: Tensor = type(module).forward(module, x, context, *args, **kwargs)
                return own
            out: Tensor = module.o(self._read(layer, module, module.norm_q(module.q(x)), context))
            return out

        return forward

    def counted(self) -> PromptBytes:
        """Of the prompt at work."""
        if self._of_core:
            made = [cache for cache in self._of_core if cache.get("is_init")]
            keys = made[0]["k"].shape[1] if made else 0
            return PromptBytes(sum(cache["k"].nbytes + cache["v"].nbytes for cache in made), keys, keys)
        sizes = [_bytes_and_keys(prompt) for prompt in self._layers.values()]
        read, rows = self._rows
        share = read / rows if rows else 1.0
        return PromptBytes(sum(size for size, _ in sizes), self._keys, max((keys for _, keys in sizes), default=0), share)

    def _attend(self, layer: int, module: Any, q: Tensor, context: Tensor) -> Tensor:
        if layer not in self._layers:
            self._layers[layer] = self._make(layer, module, context)
        prompt = self._layers[layer]
        if isinstance(prompt, MergedPrompt):
            seen, read = attend_part(_by_heads(q, module), prompt, self.rule)
            self._rows = [self._rows[0] + read, self._rows[1] + prompt.keys.shape[2]]
            return seen.transpose(1, 2).flatten(2)
        out: Tensor = optimized_attention(q, *prompt, heads=module.num_heads)
        return out

    def _make(self, layer: int, module: Any, context: Tensor) -> MergedPrompt | Unmerged:
        """Whether rows are equal is looked at here: once per prompt and layer."""
        k, v = module.norm_k(module.k(context)), module.v(context)
        merged = merge_equal_rows(_by_heads(k, module), _by_heads(v, module))
        if not self._layers:
            self._keys = k.shape[1]
            if merged is None:
                logger.info("QVG: the prompt has no padding whose rows are identical, so merge_padding leaves it as it is")
        return (k, v) if merged is None else merged


def attach(clone: Any, merges: bool, rule: str = "all") -> PromptMemory:
    """Put a clone of a causal Wan MODEL, which nobody else has yet, in charge of its prompt's memory."""
    refusal = _refusal(clone) if merges else ""
    if refusal:
        logger.warning("QVG: merge_padding has no effect on this model: %s", refusal)
    network = clone.model.diffusion_model
    memory = PromptMemory(network, merges and not refusal, rule)
    clone.add_object_patch("diffusion_model.init_crossattn_caches", memory.init_crossattn_caches)
    for layer in range(len(network.blocks) if memory.merges else 0):
        clone.add_object_patch(_PATCH.format(layer), memory.forward_of(layer))
    return memory


def _refusal(clone: Any) -> str:
    """Why a MODEL's padding cannot be merged; "" where it can."""
    network = clone.model.diffusion_model
    parameters = inspect.signature(type(network.blocks[0].cross_attn).forward).parameters
    if getattr(network, "img_emb", None) is not None or "context_img_len" in parameters:
        return "it attends to an image beside the prompt"
    patches = [clone.object_patches.get(_PATCH.format(layer)) for layer in range(len(network.blocks))]
    if any(patch is not None and getattr(patch, "__module__", "") != __name__ for patch in patches):
        return "another node has replaced its cross-attention; put that node behind QVG KV Cache, or take it out"
    return ""


def _by_heads(x: Tensor, module: Any) -> Tensor:
    """[B, S, H * D] -> [B, H, S, D]"""
    return x.view(*x.shape[:2], int(module.num_heads), int(module.head_dim)).transpose(1, 2)


def _bytes_and_keys(prompt: MergedPrompt | Unmerged) -> tuple[int, int]:
    if isinstance(prompt, MergedPrompt):
        return sum(part.nbytes for part in (prompt.keys, prompt.values, prompt.bias)), prompt.keys.shape[2]
    return sum(part.nbytes for part in prompt), prompt[0].shape[1]
