"""Krea Realtime 14B: the causal Wan network, five steps of which the last is told that nothing is left to do."""

from __future__ import annotations

from ..common.variants import CausalVariant, by_name
from ..family import Ability, Family, Licence
from ..wan.family import FILES
from ..wan.network import load_wan
from ..wan.shape import wan_shape

# The last pass, at timestep 0, runs on the prediction with the least noise of the shift-5 table of 1000 steps.
_LAST = 5 / 1004
_FIVE_STEPS = (1.0, 0.9375, 5 / 6, 0.625, _LAST, 0.0)
# Steps 0, 334 and 667 of that table: 1000, 908.84 and 713.98.
_FOUR_STEPS = (1.0, 3.33 / 3.664, 1.665 / 2.332, _LAST, 0.0)


def _variant(name: str, sigmas: tuple[float, ...]) -> CausalVariant:
    return CausalVariant(name, 3, "generator_ema", sigmas, told_zero_sigma=_LAST, width=5120)


VARIANTS = by_name(_variant("krea-realtime", _FIVE_STEPS), _variant("krea-realtime-4step", _FOUR_STEPS))

FAMILY = Family(
    name="krea",
    title="Krea Realtime",
    abilities=frozenset({Ability.TEXT, Ability.PICTURE}),
    licence=Licence(
        "CC BY-NC-SA 4.0 by the code's repository, Apache-2.0 by an earlier model card",
        "https://huggingface.co/krea/krea-realtime-video",
        "Read the model's card before you use it for money.",
    ),
    networks={"krea-14b": wan_shape("Krea Realtime 14B", 40, 40, 13824, 14_288_491_584, 3)},
    variants=VARIANTS,
    names=((r"krearealtime.*4step", "krea-realtime-4step"), (r"krearealtime", "krea-realtime")),
    files=FILES,
    load_with="Load Causal Wan",
    converts="the same",
    network=load_wan,
    adapter="causal.adapter",
)
