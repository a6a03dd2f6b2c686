"""DreamX-World's autoregressive 5B without ComfyUI: a causal Wan with a second, small attention that knows the cameras.

Beside self-attention, on the same input and before the same gate, every block has one of a quarter of the width, among the frames
of the block in work alone: queries, keys and values go through projective positional encoding (`qvg.positions.projective`), and
nothing of it is kept. Inside ComfyUI core's network runs with this attention attached; the network here is for tests and
measurements, and makes the official code's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...positions.projective import Projector
from ..common.modulation import exact_sines
from ..wan.network import EPS, Attend, CausalWan, Prompt, WanAttention, WanBlock, WanConfig, loaded

COMPRESSION = 4  # of the network's width to the camera attention's
CHANNELS = 48  # of Wan 2.2's latents


class CameraAttention(nn.Module):
    """x [B, F*S, W], the input of self-attention -> what is added to its output, the same shape."""

    def __init__(self, width: int, heads: int, operations: Any, like: dict[str, Any]):
        super().__init__()
        self.heads, inner = heads, width // COMPRESSION
        self.q_proj, self.k_proj, self.v_proj = (operations.Linear(width, inner, **like) for _ in range(3))
        self.out_proj = operations.Linear(inner, width, **like)
        self.norm_q, self.norm_k = (operations.RMSNorm(inner, eps=EPS, **like) for _ in range(2))

    def forward(self, x: Tensor, cameras: Projector) -> Tensor:
        """`cameras` of the frames of x, and of no others."""
        q, k, v = (self._heads(part) for part in (self.norm_q(self.q_proj(x)), self.norm_k(self.k_proj(x)), self.v_proj(x)))
        out = cameras.leave(F.scaled_dot_product_attention(*cameras.block(q, k, v)))
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return heads


class DreamXBlock(WanBlock):
    """Wan's, and the cameras' attention before the gate."""

    def __init__(
        self, config: WanConfig, operations: Any, like: dict[str, Any], self_attention: type[WanAttention] = WanAttention
    ):
        super().__init__(config, operations, like, self_attention)
        self.cam_self_attn = CameraAttention(config.width, config.heads, operations, like)

    def with_beside(self, out: Tensor, x: Tensor, beside: Any) -> Tensor:
        """`beside`: the cameras."""
        added: Tensor = self.cam_self_attn(x, beside)
        return out + added


class DreamX(CausalWan):
    """x [B, F, C, h, w] at timesteps t [B, F], 0 to 1000, seen by `cameras` -> velocity of the same shape."""

    block = DreamXBlock

    def forward(self, x: Tensor, t: Tensor, prompt: Prompt, attend: Attend, beside: Projector | None = None) -> Tensor:
        """One pass; `attend` owns the memory and the positions. `beside`: cameras of the frames of x; without, they are
        unknown."""
        return self._velocity(x, self.time_embedding(exact_sines(t).to(x.dtype)), prompt, attend, beside)


def load_dreamx(
    state: Mapping[str, Tensor], operations: Any = nn, dtype: torch.dtype = torch.float32, device: Any = None
) -> DreamX:
    """The model of a checkpoint, ready to run. UnsupportedModelError: its weights do not fit."""
    return loaded(DreamX, "DreamX-World 5B", state, operations, dtype, device)
