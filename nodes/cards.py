"""What a node shows in the page after it has run: three figures, a sentence, charts, and details behind a click.

`web/card.js` draws it. In /history and in the event `executed` it is the entry `qvg_card` of a node's output, for programs too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .pictures import Curve

# A card is a few hundred pixels wide.
_MOST_POINTS = 300

Figure = tuple[str, str]


def card(figures: Sequence[Figure], details: str, charts: Sequence[dict[str, Any]] = (), sentence: str = "") -> dict[str, Any]:
    """For a node's `ui`. A figure is its value and what that is."""
    shown = {"figures": [list(each) for each in figures], "sentence": sentence, "charts": list(charts), "details": details}
    return {"qvg_card": (shown,)}


def drawn(title: str, unit: str, curves: Sequence[Curve]) -> dict[str, Any]:
    """A chart of a card: lines over frames from 0 up."""
    lines = [
        {
            "name": curve.name,
            "frames": len(curve.values),
            "values": [float(f"{value:.4g}") for value in _thinned(curve.values)],
            "colour": index if curve.colour is None else curve.colour,
        }
        for index, curve in enumerate(curves)
    ]
    return {"title": title, "unit": unit, "curves": lines}


def size(nbytes: float) -> str:
    """Bytes for people, in a few letters; 1 MB is 10^6."""
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e10 else f"{nbytes / 1e9:.2f} GB"
    return f"{nbytes / 1e6:.1f} MB"


def _thinned(values: Sequence[float]) -> Sequence[float]:
    """At most so many, evenly, the first and the last among them."""
    last, count = len(values) - 1, min(len(values), _MOST_POINTS)
    return [values[round(last * index / max(1, count - 1))] for index in range(count)]
