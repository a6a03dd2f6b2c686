"""The families as a table in Markdown, for pages that list them."""

from __future__ import annotations

from .family import Family
from .registry import families


def models_table() -> str:
    """One row per family: what it is, what it makes, which node loads it, its shapes for plans, the licence of its weights."""
    rows = ["| model | makes | loaded by | `qvg plan --model` | weights |", "|---|---|---|---|---|"]
    return "\n".join([*rows, *map(_row, families())])


def _row(family: Family) -> str:
    makes = ", ".join(sorted(ability.value for ability in family.abilities))
    names = ", ".join(f"`{name}`" for name in family.networks) or "–"
    licence = f"[{family.licence.name}]({family.licence.link})"
    return f"| {family.title} | {makes} | {family.load_with or 'nothing yet'} | {names} | {licence} |"
