"""A schedule for `generate` made of a model's own constants (`models.common.solver.Solver`), for blocks that may begin with a
picture: frames that stay as they are while the rest of their block is denoised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.common.solver import Solver
from .renoise import BlockPlace


@dataclass(frozen=True)
class SolverSchedule:
    """Of one video. `start`: noise of level 1 of all of it; `picture`: its first frames, where the first block's `kept_frames`
    says so. `axis`: of the frames."""

    solver: Solver
    places: Sequence[BlockPlace]
    start: Tensor
    seed: int = 0
    picture: Tensor | None = None
    axis: int = 2

    def noise_levels(self, index: int) -> list[float]:
        """Of the steps of block `index`."""
        return [] if self.places[index].given else list(self.solver.levels)

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Where block `index` begins."""
        del shape  # that of the block's frames
        return self._with_picture(index, self._noise(index))

    def next_input(self, index: int, step: int, predictions: Sequence[Tensor]) -> Tensor:
        """Of what step `step` goes on from, 1 being the second; behind the last one, the finished block."""
        solver, newest = self.solver, predictions[-1]
        if solver.weights:
            row = solver.weights[step - 1]
            x = row[0] * self._noise(index).to(newest)
            for part, prediction in zip(row[1:], predictions, strict=True):
                x = x + part * prediction
        elif step < len(solver.levels):
            level = solver.fresh[step - 1]
            x = (1 - level) * newest + level * self.fresh_noise(index, step, newest.shape).to(newest)
        else:
            x = newest
        return self._with_picture(index, x)

    def fresh_noise(self, index: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """What step `step` begins from, with the prediction before it: of a generator with seed + block * 1000 + step - 1, as
        `RenoiseSchedule` has it."""
        device = self.start.device
        seed = (self.seed + self.places[index].noise_index * 1000 + step - 1) % (1 << 64)
        return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)

    def _noise(self, index: int) -> Tensor:
        place = self.places[index]
        return self.start.narrow(self.axis, place.first_frame, place.frames)

    def _with_picture(self, index: int, x: Tensor) -> Tensor:
        kept = self.places[index].kept_frames
        if self.picture is None or not kept:
            return x
        rest = x.narrow(self.axis, kept, x.shape[self.axis] - kept)
        return torch.cat([self.picture.narrow(self.axis, 0, kept).to(x), rest], self.axis)
