"""Noise levels of LongCat-Video's steps, what the network is told of them, and guidance by CFG-zero*.

The released code computes them in float32, and so does this. Its network in bfloat16 is told timesteps that are rounded to that
(988 for 988.76), before they are embedded in float32; the steps themselves are taken with the exact ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError

SHIFT = 12.0  # of the released scheduler's settings
STEPS, DISTILLED_STEPS = 50, 16
GUIDANCE = 4.0
_MOST_STEPS = 1000
_TRAINED_STEPS = 50  # that the distilled model's steps are picked from
# The steps that "enhance_hf" ends with: evenly from here to 0.
_TAIL_FROM, _TAIL_STEPS = 500.0, 10


@dataclass(frozen=True)
class LongCatSettings:
    """How a segment is sampled.

    steps       passes, 1 to 1000; with `enhance_hf` those above timestep 500 count, and ten more follow
    guidance    of CFG-zero*: 1 for none, which spares the second pass
    distilled   noise levels of the distilled model (`cfg_step_lora`), which takes no guidance and no `enhance_hf`
    enhance_hf  finer steps at low noise; None: as released, only where a video is continued by the undistilled model
    exact_timesteps  the network is told timesteps as they are, not rounded to bfloat16 as the released program's is
    shift       of the noise levels towards noise
    """

    steps: int = STEPS
    guidance: float = GUIDANCE
    distilled: bool = False
    enhance_hf: bool | None = None
    exact_timesteps: bool = False
    shift: float = SHIFT
    seed: int = 0

    def __post_init__(self) -> None:
        most = _TRAINED_STEPS if self.distilled else _MOST_STEPS
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= most:
            why = "; the distilled model has no more" if self.distilled else ""
            raise ConfigError(f"steps is {self.steps!r}, but must be a whole number from 1 to {most}{why}")
        if not 1 <= self.guidance <= 100:
            raise ConfigError(f"guidance is {self.guidance!r}, but must be from 1 (none) to 100; LongCat-Video's is {GUIDANCE:g}")
        if not 0 < self.shift <= 1000:
            raise ConfigError(f"shift is {self.shift!r}, but must be above 0, at most 1000; LongCat-Video's is {SHIFT:g}")
        if self.distilled and self.guidance != 1:
            raise ConfigError(
                f"guidance is {self.guidance:g}, but the distilled model has guidance within it; use 1, or leave the distill "
                "LoRA out"
            )
        if self.distilled and self.enhance_hf:
            raise ConfigError("enhance_hf does not go with the distilled model's steps; switch it off")

    @staticmethod
    def distilled_model(**changes: object) -> LongCatSettings:
        """16 steps without guidance, for weights with the distill LoRA."""
        return LongCatSettings(**{"steps": DISTILLED_STEPS, "guidance": 1.0, "distilled": True, **changes})  # type: ignore[arg-type]

    def sigmas(self, continues: bool = False) -> tuple[float, ...]:
        """Noise levels of all passes, from 1 on, and 0 behind them. `continues`: the segment goes on from a video."""
        enhance = self.enhance_hf if self.enhance_hf is not None else continues and not self.distilled
        return noise_levels(self.steps, self.distilled, enhance, self.shift)

    def told(self, sigma: float) -> float:
        """The timestep that the network is told at a noise level."""
        exact = torch.tensor(sigma, dtype=torch.float32) * 1000
        return float(exact if self.exact_timesteps else exact.to(torch.bfloat16))


def noise_levels(steps: int, distilled: bool = False, enhance_hf: bool = False, shift: float = SHIFT) -> tuple[float, ...]:
    """From the first pass's level down to 0, `steps` + 1 of them without `enhance_hf`; float32 values."""
    if distilled:
        picked = np.floor(np.linspace(0, _TRAINED_STEPS, steps, endpoint=False)).astype(int)
        even = torch.arange(_TRAINED_STEPS, 0, -1)[torch.from_numpy(picked)].float() * (1000 // _TRAINED_STEPS) / 1000
    else:
        even = torch.linspace(1, 0.001, steps)
    sigmas = shift * even / (1 + (shift - 1) * even)
    if enhance_hf:
        timesteps = sigmas * 1000
        tail = torch.from_numpy(np.linspace(_TAIL_FROM, 0, _TAIL_STEPS, endpoint=False, dtype=np.float32))
        sigmas = torch.cat([timesteps[timesteps > _TAIL_FROM], tail]) / 1000
    return (*sigmas.tolist(), 0.0)


def guided(with_text: Tensor, without: Tensor, guidance: float) -> Tensor:
    """CFG-zero* (arXiv 2503.18886): the prediction without text is scaled, one video at a time, to what the other one has of it.
    Both [B, F, C, h, w] -> the same shape."""
    a, b = with_text.flatten(1), without.flatten(1)
    scale = ((a * b).sum(1, keepdim=True) / (b.square().sum(1, keepdim=True) + 1e-8)).view(-1, *[1] * (with_text.ndim - 1))
    return without * scale + guidance * (with_text - without * scale)
