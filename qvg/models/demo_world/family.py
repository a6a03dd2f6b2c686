"""The demo world, whose weights come with the pack."""

from __future__ import annotations

from ..family import Ability, Family, Licence
from .network import load_demo_world

FAMILY = Family(
    name="demo-world",
    title="the demo world",
    abilities=frozenset({Ability.CAMERA, Ability.WORLD}),
    licence=Licence("Apache-2.0", "LICENSE"),
    load_with="Load Demo World",
    network=load_demo_world,
    adapter="demo.adapter",
)
