"""Run by ComfyUI's Python: bytes alive at the worst moment of a pass of core's causal Wan over one block, our attention in it.

    python count_activations.py COMFYUI LAYERS HEADS MLP FRAMES

Tensors are on torch's "meta" device, which has shapes and no memory, so the true sizes are counted. What attention reads through
is not made: it has a bound of its own. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
ROWS, COLS = 60, 104


def flash_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **options: Any) -> Tensor:
    """What a fused kernel leaves: its result."""
    return torch.empty_like(q)


class Run:
    """What `CausalRun` does with a block that is not finished."""

    def __init__(self, cache: Any, pairs_apart: Any) -> None:
        self.cache, self.pairs_apart = cache, pairs_apart

    def attend(self, slot: Any, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor) -> Tensor:
        """[B, S, H, D] each -> [B, S, H * D]."""
        out = self.cache.attend(slot.layer, *(x.transpose(1, 2) for x in (self.pairs_apart(q), self.pairs_apart(k), v)))
        out = out.transpose(1, 2).flatten(2)
        self.cache.release(slot.layer)
        return out


def count(layers: int, heads: int, mlp: int, frames: int) -> dict[str, int]:
    """Two passes, so that the prompt's keys and values are there."""
    import comfy.ldm.wan.ar_model as core
    import comfy.ldm.wan.model as core_parts
    import comfy.ops
    import comfyui_qvg.qvg.cache.reading as reading
    from comfyui_qvg.nodes.comfy.causal.run import LayerSlot
    from comfyui_qvg.nodes.comfy.causal.wan import _attention
    from comfyui_qvg.qvg import PRESETS, CacheSpec, KVCache
    from comfyui_qvg.qvg.positions.rope import pairs_apart, wan_rope
    from comfyui_qvg.tests.helpers import LiveBytes

    core.optimized_attention = core_parts.optimized_attention = flash_attention
    reading.attend = lambda q, *others: torch.empty_like(q)
    made = {"device": "meta", "dtype": torch.bfloat16}
    network = core.CausalWanModel(
        dim=128 * heads, ffn_dim=mlp, num_heads=heads, num_layers=layers, operations=comfy.ops.disable_weight_init, **made
    )
    spec = CacheSpec(layers, heads, 128, ROWS * COLS // 4, frames)
    cache = KVCache(spec, PRESETS["balanced"], wan_rope(ROWS // 2, COLS // 2))
    cache.reader.readings.choose = lambda *queries: None
    for block in network.blocks:
        block.self_attn.forward = types.MethodType(_attention, block.self_attn)
    slots = [LayerSlot(Run(cache, pairs_apart), layer) for layer in range(layers)]
    live = LiveBytes()
    with torch.no_grad(), live:
        x, times = torch.empty(1, 16, frames, ROWS, COLS, **made), torch.empty(1, frames, device="meta")
        prompt, past = torch.empty(1, 512, 4096, device="meta"), network.init_crossattn_caches(1, **made)
        for _ in range(2):
            cache.place([(0.0, 0.0, 0.0)] * frames)
            network.forward_block(x, times, prompt.bfloat16(), 0, slots, past)
    weights = sum(weight.nbytes for weight in network.parameters())
    return {"peak": live.peak, "weights": weights, "held_by_the_cache": spec.exact_bytes(frames) // layers}


def main() -> None:
    """See the module docstring."""
    comfyui, *sizes = sys.argv[1:]
    sys.path[:0] = [comfyui, str(ROOT / "tools")]
    sys.argv[1:] = ["--cpu"]
    import bootstrap_package  # noqa: F401
    import comfy.options

    comfy.options.enable_args_parsing()
    sys.stdout.write(json.dumps(count(*map(int, sizes))) + "\n")


if __name__ == "__main__":
    main()
