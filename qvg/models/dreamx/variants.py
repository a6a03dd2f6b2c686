"""How DreamX-World's autoregressive 5B was made to be run (AMAP-ML/DreamX-World, its configuration and program)."""

from __future__ import annotations

from dataclasses import replace

from ..common.solver import Solver
from ..common.variants import FOUR_STEPS, CausalVariant, by_name
from .cameras import STEPS


def _level(index: int) -> float:
    """Of the table of 1000 noise levels, bent by a shift of 5."""
    even = 1 - index / 1000
    return 5 * even / (1 + 4 * even)


# Fresh noise has the levels of steps 250, 500 and 750.
_FRESH = tuple(map(_level, (250, 500, 750)))
# The released program multiplies its timesteps in bfloat16, which makes 936 of 937.5, 832 of 833.3 and 624 of 625, and takes the
# noise levels next to them out of the table.
_ROUNDED = Solver(
    levels=tuple(map(_level, (0, 255, 502, 751))),
    timesteps=(1000.0, 936.0, 832.0, 624.0),
    fresh=_FRESH,
    context_timestep=0.10009765625,
)
_EXACT = Solver(FOUR_STEPS[:-1], tuple(1000 * level for level in FOUR_STEPS[:-1]), _FRESH, context_timestep=0.1)

DREAMX = CausalVariant(
    "dreamx-world",
    3,
    "generator_ema",
    window_frames=12,
    sink_frames=3,
    width=3072,
    solver=_ROUNDED,
    reindexed=True,
    picture_in_block=True,
    needs_picture=True,
    cameras=STEPS,
    whole_blocks=True,
    prompt_from="CLIP Text Encode with the text encoder of Wan 2.2 (umT5-XXL)",
)
VARIANTS = by_name(DREAMX, replace(DREAMX, name="dreamx-world-exact", solver=_EXACT))
