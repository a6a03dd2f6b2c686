"""The schedule of few-step distilled models, Self-Forcing and its family: predict, then noise afresh."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError

_MOST_STEPS = 64


@dataclass(frozen=True)
class DistilledSchedule:
    """After every step but the last the predicted clean block gets fresh noise of the next level (arXiv 2506.08009).

    sigmas              noise levels from 1 down to 0
    first_block_sigmas  the same for block 0, if it was trained for more steps (Causal-Forcing++); None: as the others
    """

    sigmas: tuple[float, ...]
    seed: int = 0
    first_block_sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for levels in (self.sigmas, self.first_block_sigmas or self.sigmas):
            falls = all(high > low for high, low in itertools.pairwise(levels))
            if not 2 <= len(levels) <= _MOST_STEPS or levels[-1] != 0 or not levels[0] <= 1 or not falls:
                raise ConfigError(
                    f"the noise levels are {list(levels)}, but must fall from at most 1 to 0 in 1 to {_MOST_STEPS - 1} steps; "
                    "Self-Forcing's are 1, 0.9375, 0.8333, 0.625, 0"
                )

    def noise_levels(self, index: int = 1) -> list[float]:
        """Of block `index`."""
        return list(self.first_block_sigmas if index == 0 and self.first_block_sigmas else self.sigmas)

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Where block `index` begins. Depends on the seed and the block alone; drawn on the CPU, so the same on every device."""
        return self.fresh_noise(index, 0, shape)

    def fresh_noise(self, index: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """For step `step` of block `index`; the first is step 0."""
        seed = (self.seed * 1_000_003 + index * _MOST_STEPS + step) % (1 << 63)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
