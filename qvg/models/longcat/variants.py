"""How LongCat-Video (arXiv 2510.22200) is run: with guidance, distilled by a LoRA, or refining by another.

Noise levels are those of its scheduler, which bends them by a shift of 12.
"""

from __future__ import annotations

from ..common.variants import CausalVariant, by_name
from .schedule import DISTILLED_STEPS, GUIDANCE, SHIFT, STEPS, noise_levels

# A segment is 93 pictures, 24 latent frames; four of them are there already where it goes on from one before.
_COMMON = {
    "frames_per_block": 20,
    "weights_key": "",
    "shift": SHIFT,
    "trained_frames": 24,
    "width": 4096,
    "prompt_from": "CLIP Text Encode with umt5-xxl, type wan",
}
LONGCAT = CausalVariant("longcat", sigmas=noise_levels(STEPS), guidance=GUIDANCE, **_COMMON)  # type: ignore[arg-type]  # of many types
DISTILLED = CausalVariant("longcat-distilled", sigmas=noise_levels(DISTILLED_STEPS, distilled=True), **_COMMON)  # type: ignore[arg-type]
# It begins in the middle, at half noise: levels are the guided ones below that, and 0.5 itself.
REFINEMENT = CausalVariant(
    "longcat-refinement",
    sigmas=(0.5, *(level for level in noise_levels(STEPS) if level < 0.5)),
    **_COMMON,  # type: ignore[arg-type]
)
VARIANTS = by_name(LONGCAT, DISTILLED, REFINEMENT)
