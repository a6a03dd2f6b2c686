"""HY-WorldPlay (arXiv 2512.14614) on Wan 2.2 5B: of another network and another loop than the causal Wan family."""

from __future__ import annotations

from ..common.variants import CausalVariant

# Four steps bent by a shift of 8, finished frames shown at 14 of 1000. Its context is chosen by where the camera looks, see
# `qvg.camera`; a session ends at 241.
WORLDPLAY_5B = CausalVariant(
    "worldplay-5b",
    4,
    "generator",
    (1.0, 0.96, 8 / 9, 8 / 11, 0.0),
    shift=8.0,
    context_noise=0.014,
    window_frames=16,
    trained_frames=241,
    width=3072,
)
