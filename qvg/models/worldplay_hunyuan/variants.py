"""HY-WorldPlay (arXiv 2512.14614) on HunyuanVideo 1.5: four stages of its training.

A shift of 5, fifty steps with guidance unless distilled, videos of 125 frames (32 latent ones).
"""

from __future__ import annotations

from ..common.variants import FOUR_STEPS, CausalVariant, by_name

_FIFTY_STEPS = tuple(5 * even / (1 + 4 * even) for even in (1 - step / 50 for step in range(51)))


def _stage(name: str, sigmas: tuple[float, ...], guidance: float = 1.0) -> CausalVariant:
    return CausalVariant(
        name, 4, "", sigmas, context_noise=0.014, window_frames=20, trained_frames=32, guidance=guidance, width=2048
    )


WORLDPLAY_8B = by_name(
    _stage("worldplay-8b-distilled", FOUR_STEPS),
    _stage("worldplay-8b", _FIFTY_STEPS, 6.0),
    _stage("worldplay-8b-rl", _FIFTY_STEPS, 6.0),
    _stage("worldplay-8b-bidirectional", _FIFTY_STEPS, 6.0),
)
