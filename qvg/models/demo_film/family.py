"""The demo film, whose weights come with the pack: a causal Wan, small."""

from __future__ import annotations

from ..common.variants import CausalVariant, by_name
from ..family import Ability, Family, Licence
from .directions import BLOCK_FRAMES
from .scenes import PICTURE_PIXELS
from .weights import CONFIG, load_demo_film

FILM = CausalVariant(
    "the demo film",
    BLOCK_FRAMES,
    weights_key="",
    trained_frames=216,
    width=CONFIG.width,
    frame_pictures=1,
    sizes=(PICTURE_PIXELS, PICTURE_PIXELS),
    prompt_from="'Film Prompt'",
    given_by_block=True,
)

FAMILY = Family(
    name="demo-film",
    title="the demo film",
    abilities=frozenset({Ability.TEXT, Ability.PICTURE}),
    licence=Licence("Apache-2.0", "LICENSE"),
    variants=by_name(FILM),
    load_with="Load Demo Film",
    network=load_demo_film,
    adapter="causal.adapter",
)
