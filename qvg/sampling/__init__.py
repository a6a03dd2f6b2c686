"""Autoregressive sampling loops."""

from .autoregressive import Block, CommitsByLayer, Denoiser, Renoising, SamplerSettings, Schedule, generate
from .distilled import DistilledSchedule

__all__ = [
    "Block",
    "CommitsByLayer",
    "Denoiser",
    "DistilledSchedule",
    "Renoising",
    "SamplerSettings",
    "Schedule",
    "generate",
]
