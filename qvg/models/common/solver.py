"""How a model's blocks are denoised where that is not fresh noise at the very levels that the network is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Solver:
    """Constants of one training, a step each.

    levels             noise level of a step's input: clean = x - level * velocity
    timesteps          what the network is told of it, 0 to 1000
    fresh              noise level of the next step's input, made of the prediction and fresh noise; one less than steps
    weights            in place of `fresh`: rows of the next steps' inputs and of the result, parts of the block's first noise and
                       of all predictions so far
    context_timestep   what the network is told of finished frames
    """

    levels: tuple[float, ...]
    timesteps: tuple[float, ...]
    fresh: tuple[float, ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()
    context_timestep: float = 0.0

    def __post_init__(self) -> None:
        steps = len(self.levels)
        assert len(self.timesteps) == steps, "a timestep for each level"
        assert len(self.fresh) == steps - 1 if self.fresh else len(self.weights) == steps
        assert all(len(row) == number + 2 for number, row in enumerate(self.weights))

    def told(self, level: float) -> float:
        """The timestep of one of `levels`."""
        return self.timesteps[self.levels.index(level)]
