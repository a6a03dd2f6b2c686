"""LongLive 2.0 without ComfyUI: Wan 2.2 5B's layers, run block after block. For tests and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..common.modulation import exact_sines
from ..wan.network import Attend, CausalWan, Prompt, loaded

CHANNELS = 48  # of Wan 2.2's latents


class LongLive2(CausalWan):
    """x [B, F, C, h, w] at timesteps t [B, F], 0 to 1000 -> velocity of the same shape."""

    def forward(self, x: Tensor, t: Tensor, prompt: Prompt, attend: Attend) -> Tensor:
        """One pass; `attend` owns the memory and the positions."""
        return self._velocity(x, self.time_embedding(exact_sines(t).to(x.dtype)), prompt, attend)


def load_longlive2(
    state: Mapping[str, Tensor], operations: Any = nn, dtype: torch.dtype = torch.float32, device: Any = None
) -> LongLive2:
    """The model of a checkpoint, ready to run. UnsupportedModelError: its weights do not fit."""
    return loaded(LongLive2, "LongLive 2.0 5B", state, operations, dtype, device)
