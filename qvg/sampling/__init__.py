"""Autoregressive sampling loops."""

from .autoregressive import Block, Denoiser, SamplerSettings, generate

__all__ = ["Block", "Denoiser", "SamplerSettings", "generate"]
