"""Autoregressive sampling loops."""

from .autoregressive import Block, CommitsByLayer, Denoiser, Renoising, SamplerSettings, Schedule, generate
from .distilled import DistilledSchedule
from .renoise import BlockPlace, NoiseLevels, RenoiseSchedule, place_blocks

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
    "generate",
    "place_blocks",
]
