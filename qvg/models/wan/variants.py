"""The members of the causal Wan family that share Wan 2.1's text-to-video network at 1.3B.

Numbers come from the inference configurations of Self-Forcing (arXiv 2506.08009), Causal-Forcing (2602.02214) and ++
(2605.15141), CausVid (2412.07772) and LongLive (2509.22622).
"""

from __future__ import annotations

from ..common.found import Members
from ..common.variants import FOUR_STEPS, CausalVariant, by_name

VARIANTS = by_name(
    CausalVariant("self-forcing", 3, "generator_ema"),
    CausalVariant("causal-forcing-chunkwise", 3, "generator"),
    CausalVariant("causal-forcing-framewise", 1, "generator_ema"),
    CausalVariant("causal-forcing++-2step", 1, "generator_ema", (1.0, 5 / 6, 0.0), FOUR_STEPS),
    CausalVariant("causal-forcing++-1step", 1, "generator_ema", (1.0, 0.0), FOUR_STEPS),
    CausalVariant("causvid", 3, "generator", (1.0, 0.757, 0.522, 0.0), shift=8.0),
    # configs/wan_causal_dmd_warp_4step_cfg2.yaml: 1000, 750, 500, 250 bent by the shift.
    CausalVariant("causvid-4step", 3, "generator", (1.0, 0.96, 8 / 9, 8 / 11, 0.0), shift=8.0),
    CausalVariant("longlive", 3, "generator", window_frames=12, sink_frames=3, needs_lora=True),
)

# Patterns over names without separators, most telling first.
NAMES = (
    (r"framewise\+*2step|causalforcing\+\+.*2step", "causal-forcing++-2step"),
    (r"framewise\+*1step|causalforcing\+\+.*1step", "causal-forcing++-1step"),
    (r"causalforcing.*framewise|framewise.*causalforcing", "causal-forcing-framewise"),
    (r"causalforcing.*chunkwise|chunkwise.*causalforcing", "causal-forcing-chunkwise"),
    (r"selfforcing", "self-forcing"),
    (r"longlive", "longlive"),
    (r"(causvid|autoregressivecheckpoint|wancausaldmd).*4step|4step.*causvid", "causvid-4step"),
    (r"causvid|autoregressivecheckpoint|wancausaldmd$", "causvid"),
)

MEMBERS = Members(VARIANTS, NAMES)
