"""Core's Wan networks as causal ones, for models that core loads as Wans which denoise all frames at once.

Core's causal Wan has the layers of its other Wans, and so do core's modules: they become causal by their classes alone, and with
them comes everything that `causal.wan` does to core's own. Here a pass is told a timestep for every frame, as it is, where core
would make it of a noise level; and its blocks may see more than a text (`beside`).
"""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.wan.ar_model import CausalWanAttentionBlock, CausalWanModel, CausalWanSelfAttention
from torch import Tensor

from ....qvg import UnsupportedModelError
from ....qvg.models.common.modulation import exact_sines, gated, modulated
from ..layers import require_parts
from .run import CausalPass
from .wan import PASS_KEY

_PARTS = ("patch_embedding", "text_embedding", "time_embedding", "time_projection", "blocks", "head", "unpatchify")
_BLOCK_PARTS = ("norm1", "norm2", "norm3", "self_attn", "cross_attn", "ffn", "modulation")


class TimedBlock(CausalWanAttentionBlock):
    """Core's block, with a timestep for each frame. `with_beside` and `before_text` are for other kinds."""

    def forward(
        self, tokens: Tensor, shared: Tensor, text: Tensor, slot: Any, read: Any, beside: Any, options: dict[str, Any]
    ) -> Tensor:
        """tokens [B, F*S, W], shared [B, F, 6, W]; `slot` and `read`: memories of the frames and of the text."""
        table = mm.cast_to(self.modulation, dtype=tokens.dtype, device=tokens.device)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (table + shared).unsqueeze(3).unbind(2)
        x = modulated(self.norm1(tokens), shift_a, scale_a)
        out = self.self_attn(x, None, kv_cache=slot, transformer_options=options)
        tokens = tokens + gated(out if beside is None else self.with_beside(out, x, beside), gate_a)
        tokens = tokens if beside is None else self.before_text(tokens, beside)
        tokens = tokens + self._read(self.norm3(tokens), text, read, options)
        update: Tensor = self.ffn(modulated(self.norm2(tokens), shift_m, scale_m))
        return tokens + gated(update, gate_m)

    def with_beside(self, out: Tensor, x: Tensor, beside: Any) -> Tensor:
        """What self-attention gives of its input x, before the gate, and what is added. [B, F*S, W]"""
        return out

    def before_text(self, tokens: Tensor, beside: Any) -> Tensor:
        """Tokens before cross-attention. [B, F*S, W]"""
        return tokens

    def _read(self, x: Tensor, text: Tensor, read: Any, options: dict[str, Any]) -> Tensor:
        """Cross-attention; `read` keeps the text's keys and values as core's does, None where somebody else keeps them."""
        attention = self.cross_attn
        if read is None:
            seen: Tensor = attention(x, text, transformer_options=options)
            return seen
        if not read.get("is_init"):
            read.update(k=attention.norm_k(attention.k(text)), v=attention.v(text), is_init=True)
        q = attention.norm_q(attention.q(x))
        heads = {"heads": attention.num_heads, "transformer_options": options}
        out: Tensor = attention.o(optimized_attention(q, read["k"], read["v"], **heads))
        return out


class TimedCausalWan(CausalWanModel):
    """Core's causal Wan, run by our own sampler alone."""

    qvg_title = "causal Wan 2.2"

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Any = None,
        time_dim_concat: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **unused: Any,
    ) -> Tensor:
        """One pass of ours. x [B, C, F, h, w] -> velocity, the same shape."""
        options = transformer_options or {}
        state = options.get("ar_state") or {}
        coming: CausalPass | None = state.get(PASS_KEY)
        if coming is None or coming.timesteps is None:
            raise UnsupportedModelError(
                f"{self.qvg_title} makes a video block after block, and needs a sampler that does so and knows its steps; "
                "connect "
                "'QVG Causal Sampler' to SamplerCustomAdvanced"
            )
        return self.pass_through(x, coming, context, state["kv_caches"], state["crossattn_caches"], options)

    def pass_through(
        self, x: Tensor, coming: CausalPass, context: Tensor, slots: Any, reads: Any, options: dict[str, Any]
    ) -> Tensor:
        """`forward` with what a sampler carries: memories of the frames and of the text, a layer each."""
        assert coming.timesteps is not None
        tokens = self.patch_embedding(self.with_condition(x, coming).float()).to(x.dtype)
        grid = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2).contiguous()
        level = self.time_embedding(exact_sines(coming.timesteps.to(x.device)).to(x.dtype))
        shared = self.time_projection(level).unflatten(2, (6, -1))
        text = self.text_embedding(context)
        beside = self.beside_tokens(coming, x)
        for block, slot, read in zip(self.blocks, slots, reads, strict=True):
            tokens = block(tokens, shared, text, slot, read, beside, options)
        velocity: Tensor = self.unpatchify(self.head(tokens, level), grid)
        return velocity

    def with_condition(self, x: Tensor, coming: CausalPass) -> Tensor:
        """What goes into the network, where that is more than noise."""
        return x

    def beside_tokens(self, coming: CausalPass, x: Tensor) -> Any:
        """What blocks see beside the text, of what the pass brings."""
        return coming.beside

    def beside_of(self, plan: Any, first: int, frames: int) -> Any:
        """What a pass over these frames is to bring; None: nothing."""
        return None


def make_causal(network: Any, kind: type[TimedCausalWan] = TimedCausalWan, block_kind: type[TimedBlock] = TimedBlock) -> None:
    """Turn core's Wan into a causal one. Raises UnsupportedModelError where it is not the network that we know."""
    parts = {name: getattr(network, name, None) for name in _PARTS}
    require_parts("Wan", parts, parts["blocks"] and network.blocks[0], _BLOCK_PARTS)
    network.__class__ = kind
    for block in network.blocks:
        block.__class__ = block_kind
        block.self_attn.__class__ = CausalWanSelfAttention
