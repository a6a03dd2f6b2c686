"""Autoregressive sampling loops."""

from .autoregressive import Block, CommitsByLayer, Denoiser, Renoising, SamplerSettings, Schedule, Solving, generate
from .distilled import DistilledSchedule
from .renoise import BlockPlace, NoiseLevels, RenoiseSchedule, place_blocks
from .solver import SolverSchedule

__all__ = [
    "Block",
    "BlockPlace",
    "CommitsByLayer",
    "Denoiser",
    "DistilledSchedule",
    "NoiseLevels",
    "RenoiseSchedule",
    "Renoising",
    "SamplerSettings",
    "Schedule",
    "SolverSchedule",
    "Solving",
    "generate",
    "place_blocks",
]
