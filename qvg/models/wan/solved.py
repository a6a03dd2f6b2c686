"""A Wan whose steps are a `Solver`'s, as the sampling loop wants it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...cache import KVCache
from ..common.solver import Solver
from .network import Attend, CausalWan, Prompt, WanDenoiser


class SolvedDenoiser(WanDenoiser):
    """Blocks are [B, F, C, h, w]. Between two blocks set `kept_frames`, those at the beginning of the next block that are given
    (told that no noise is left), and `beside`, what its network sees beside the text."""

    def __init__(self, model: CausalWan, prompt: Prompt, latent_rows: int, latent_cols: int, solver: Solver, batch: int = 1):
        super().__init__(model, prompt, latent_rows, latent_cols, batch)
        self.solver = solver
        self.kept_frames = 0
        self.beside: Any = None

    @torch.inference_mode()
    def _clean(self, x: Tensor, noise_level: float, cache: KVCache, attend: Attend) -> Tensor:
        self.prompt.check(cache)
        told = self.solver.told(noise_level) if noise_level > 0 else self.solver.context_timestep
        t = torch.full(x.shape[:2], told, device=x.device)
        if noise_level > 0:
            t[:, : self.kept_frames] = 0
        more = {} if self.beside is None else {"beside": self.beside}
        velocity: Tensor = self.model(x.to(self.dtype), t, self.prompt, attend, **more)
        return x - noise_level * velocity.to(x.dtype)
