"""Causal Wan 2.1: Self-Forcing, Causal-Forcing, CausVid, LongLive."""

from .network import CausalWan, Prompt, WanConfig, WanDenoiser, load_wan

__all__ = ["CausalWan", "Prompt", "WanConfig", "WanDenoiser", "load_wan"]
