"""FLOWCACHE_NATIVE: a denoiser that skips passes. Nothing of the cache changes, so its memory is that of the exact one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cache import KVCache
from ..errors import ConfigError
from ..sampling.autoregressive import Denoiser


class ReusingDenoiser:
    """Another denoiser's predictions, of which some are not made: while a block has drifted by less than `threshold` (relative
    mean absolute difference, summed over the steps since the last pass) its last velocity serves again.

    The first `warm_up` steps of a block and its clean pass, which writes keys and values, are always made. The study's threshold
    is 1.5 with a warm-up of 0: after the first step of a block no other is made unless noise outweighs it.
    """

    def __init__(self, denoiser: Denoiser, threshold: float = 1.5, warm_up: int = 0):
        if not threshold > 0 or warm_up < 0:
            raise ConfigError(
                f"threshold {threshold} must be above 0 and warm_up {warm_up} at least 0; the study's are 1.5 and 0"
            )
        self.denoiser, self.threshold, self.warm_up = denoiser, threshold, warm_up
        self.device: torch.device = denoiser.device
        self.passes = self.reused = 0
        self._forget()

    def _forget(self) -> None:
        self._before: Tensor | None = None
        self._velocity: Tensor | None = None
        self._drift, self._steps = 0.0, 0

    def block_shape(self, frames: int) -> tuple[int, ...]:
        """See `Denoiser`."""
        return self.denoiser.block_shape(frames)

    def predict_clean(self, x: Tensor, noise_level: float, cache: KVCache) -> Tensor:
        """See `Denoiser`."""
        if noise_level == 0:
            self._forget()
            self.passes += 1
            return self.denoiser.predict_clean(x, noise_level, cache)
        if self._before is not None:
            size = float(self._before.abs().mean())
            self._drift += float((x - self._before).abs().mean()) / max(size, 1e-12)
        self._before, self._steps = x, self._steps + 1
        if self._velocity is not None and self._steps > self.warm_up and self._drift < self.threshold:
            self.reused += 1
            return x - noise_level * self._velocity
        clean = self.denoiser.predict_clean(x, noise_level, cache)
        self._velocity, self._drift = (x - clean) / noise_level, 0.0
        self.passes += 1
        return clean
