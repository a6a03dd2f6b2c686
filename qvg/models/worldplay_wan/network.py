"""HY-WorldPlay on Wan 2.2 5B without ComfyUI: a Wan that is told where its camera stands and what it does.

To the causal Wan it adds an action embedding (the label's sinusoid goes the way of the timestep's) and a second self-attention
per layer, in coordinates of the cameras (`qvg.positions.projective`), over the same queries, keys and values. Inside ComfyUI
core's own network runs; this one is for tests and measurements, and makes the official code's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ..common.modulation import SINES, sines
from ..wan.network import Attend, CausalWan, Prompt, WanAttention, WanBlock, WanConfig
from .names import wan_names


@dataclass(frozen=True)
class WorldPlayConfig(WanConfig):
    """Shape of the model; as it stands the 5B's."""

    heads: int = 24
    mlp: int = 14336
    channels: int = 48

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> WorldPlayConfig:
        """Shape of a checkpoint with the names of `wan_names`."""
        shape = WanConfig.of(state)
        return WorldPlayConfig(shape.layers, shape.heads, shape.head_dim, shape.mlp, shape.channels, shape.text_channels)


class Recording(Protocol):
    """Where a context pass leaves keys and values (before RoPE, pairs apart; values raw): [B, H, S, D]."""

    def attend_context(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Both attentions, as `WorldPlay` wants them; keeps k and v."""

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keeps k and v of a layer whose attention nobody needs."""


class _BothAttentions(WanAttention):
    """The sum of two outputs, each with a projection of its own."""

    def __init__(self, config: WanConfig, operations: Any, like: dict[str, Any]):
        super().__init__(config, operations, like)
        self.o_prope = operations.Linear(config.width, config.width, **like)

    def out(self, x: Tensor) -> Tensor:
        """[B, H, S, 2D], along the rope and then by the cameras, -> [B, S, W]."""
        along, by_cameras = (rearrange(part, "b h s d -> b s (h d)") for part in x.chunk(2, -1))
        joined: Tensor = self.o(along) + self.o_prope(by_cameras)
        return joined


class WorldPlay(CausalWan):
    """x [B, F, C, h, w] at timesteps t [B, F], 0 to 1000, and action labels [B, F], 0 to 80 -> velocity of the same shape.

    `attend` gives both attentions side by side: [B, H, S, 2D].
    """

    self_attention = _BothAttentions

    def __init__(self, config: WorldPlayConfig | None = None, operations: Any = nn, dtype: Any = None, device: Any = None):
        config = config or WorldPlayConfig()
        super().__init__(config, operations, dtype, device)
        like, width = {"dtype": dtype, "device": device}, config.width
        self.action_embedding = nn.Sequential(
            operations.Linear(SINES, width, **like), nn.SiLU(), operations.Linear(width, width, **like)
        )

    def forward(self, x: Tensor, t: Tensor, prompt: Prompt, attend: Attend, labels: Tensor | None = None) -> Tensor:
        """One pass; `attend` owns the memory, the positions and the cameras. No labels: the camera is at rest."""
        return self._velocity(x, self._level(x, t, labels), prompt, attend)

    def record(self, x: Tensor, t: Tensor, prompt: Prompt, recording: Recording, labels: Tensor | None = None) -> None:
        """The context pass: all layers' keys and values, and nothing that they do not need."""
        tokens, shared = self._tokens(x), self._shared(self._level(x, t, labels))
        *blocks, last = self.blocks
        for layer, block in enumerate(blocks):
            tokens = block(tokens, shared, layer, recording.attend_context, prompt)
        assert isinstance(last, WanBlock)
        recording.keep(len(blocks), *last.keys_values(tokens, shared))

    def _level(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        labels = torch.zeros_like(t) if labels is None else labels.to(t.device)
        level: Tensor = self.time_embedding(sines(t).to(x.dtype)) + self.action_embedding(sines(labels).to(x.dtype))
        return level


def load_worldplay(
    state: Mapping[str, Tensor], operations: Any = nn, dtype: torch.dtype = torch.float32, device: Any = None
) -> WorldPlay:
    """The model of a checkpoint with official or ComfyUI's names, ready to run. UnsupportedModelError: its weights do not fit."""
    state = wan_names(state)
    model = WorldPlay(WorldPlayConfig.of(state), operations, dtype=dtype, device=device)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"the checkpoint does not fit HY-WorldPlay on Wan 2.2 ({str(error).splitlines()[1].strip()}); use a whole file"
        ) from error
    return model.eval().requires_grad_(False)
