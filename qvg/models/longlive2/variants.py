"""How LongLive 2.0 was made to be run (NVlabs/LongLive, its configurations and solver).

UniPC of order 2 is linear in the block's noise and the predictions so far, so it is a table: with as many steps, what its
scheduler gives for a noise of 1 and predictions of 0, and for one prediction of 1 and all else 0.
"""

from __future__ import annotations

from dataclasses import replace

from ..common.solver import Solver
from ..common.variants import CausalVariant, by_name

_LEVELS = (0.9997998476028442, 0.9372654557228088, 0.8330553770065308, 0.6246873736381531)
# Timesteps are cut to whole numbers; the last prediction is the result.
_FOUR = Solver(
    levels=_LEVELS,
    timesteps=(999.0, 937.0, 833.0, 624.0),
    weights=(
        (0.937453091, 0.062546909),
        (0.833222132, 0.017307339, 0.149470499),
        (0.624812404, 0.020435711, -0.067582951, 0.422334813),
        (0.0, 0.0, 0.0, 0.0, 1.0),
    ),
)
# Of the weights that were distilled once more.
_TWO = Solver(_LEVELS[0::2], (999.0, 833.0), weights=((0.833222151, 0.166777849), (0.0, 0.0, 1.0)))

# Frames that a scene cut leaves out between the positions of two blocks.
CUT_FRAMES = 8
CUT_PREFIX = "The scene transitions. "

LONGLIVE2 = CausalVariant(
    "longlive2-5b",
    8,
    "generator",
    (1.0, _LEVELS[1], _LEVELS[2], _LEVELS[3], 0.0),
    window_frames=32,
    sink_frames=8,
    trained_frames=128,
    width=3072,
    solver=_FOUR,
    picture_in_block=True,
    whole_blocks=True,
    cut_frames=CUT_FRAMES,
    prompt_from="CLIP Text Encode with the text encoder of Wan 2.2 (umT5-XXL)",
)
VARIANTS = by_name(LONGLIVE2, replace(LONGLIVE2, name="longlive2-5b-2step", sigmas=(1.0, _LEVELS[2], 0.0), solver=_TWO))
NAMES = (
    (r"longlive20?.*(2step|s2)", "longlive2-5b-2step"),
    (r"longlive20?(5b|$|[^\ds])", "longlive2-5b"),
)
