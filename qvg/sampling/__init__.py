"""Autoregressive sampling loops."""

from .autoregressive import Block, Denoiser, SamplerSettings, Schedule, generate

__all__ = ["Block", "Denoiser", "SamplerSettings", "Schedule", "generate"]
