"""DreamX-World on core's Wan 2.2: its small attention that knows the cameras becomes part of core's network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ....qvg.models.dreamx.cameras import block_cameras
from ....qvg.models.dreamx.network import CameraAttention
from ....qvg.positions.projective import Projector
from ..layers import own_type, put_layers
from .timed import TimedBlock, TimedCausalWan, make_causal

CAMERA = "cam_self_attn"


class DreamXBlock(TimedBlock):
    """With the cameras' attention before the gate."""

    def with_beside(self, out: Tensor, x: Tensor, beside: Projector) -> Tensor:
        """`beside`: the cameras."""
        added: Tensor = getattr(self, CAMERA)(x, beside)
        return out + added


class DreamXWan(TimedCausalWan):
    """Core's Wan 2.2 that sees where its frames are seen from."""

    qvg_title = "DreamX-World 5B"

    def beside_of(self, plan: Any, first: int, frames: int) -> Projector:
        """Cameras of these frames."""
        return block_cameras(plan.cameras, first, frames, plan.spec.tokens_per_frame)

    def beside_tokens(self, coming: Any, x: Tensor) -> Projector:
        """The same where they are needed."""
        cameras: Projector = coming.beside.on(x.device)
        return cameras


def attach_layers(network: Any, layers: Mapping[str, Tensor], assign: bool) -> None:
    """Give core's network DreamX's own layers. Raises UnsupportedModelError where it is not the network that we know."""
    make_causal(network, DreamXWan, DreamXBlock)
    added: dict[str, torch.nn.Module] = {}
    for number, block in enumerate(network.blocks):
        attention = block.self_attn
        norm: Any = type(attention.norm_q)
        kinds = SimpleNamespace(Linear=type(attention.q), RMSNorm=partial(norm, elementwise_affine=True))
        like = {"dtype": own_type(attention.q), "device": attention.q.weight.device}
        added[f"blocks.{number}.{CAMERA}"] = CameraAttention(network.dim, network.num_heads, kinds, like)
    put_layers(network, added, layers, assign)
