"""`qvg cards`: the longest video that each card has room for, by family, weights, preset and what waits in main memory.

A card sold with 24 GB has 24 * 2^30 bytes, and not all of them for a run: the driver and the desktop take some, ComfyUI leaves
some free, and an allocator cannot fill every gap. What is left is `usable_bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..config import PRESETS
from ..errors import ConfigError, quoted
from ..models.common.shape import NetworkShape
from ..models.registry import networks
from .estimate import WEIGHT_BYTES, Run, Video, Weights
from .report import PICTURES_PER_SECOND

CARDS_GB = (8, 12, 16, 24, 32, 80)
WEIGHTS = ("bf16", "fp8")
CARD_PRESETS = ("exact", "balanced", "fewest-bytes")
WAITING = ("nothing", "weights", "weights and memory")
# 0.4 GB of a CUDA context and 0.6 GB that ComfyUI leaves free where a desktop may want it; then what fragments take.
_DRIVER_BYTES, _FRAGMENTS = 10**9, 0.04
_LAYERS_ON_CARD = 2  # one that computes, one that is copied meanwhile
_SIZES = {"worldplay-5b": (1280, 704)}
_USUAL_SIZE = (832, 480)


class Cell(NamedTuple):
    """`pictures` of the longest video; 0: none fits, None: any does."""

    model: str
    card_gb: float
    weights: str
    waiting: str
    preset: str
    pictures: int | None


@dataclass(frozen=True)
class Asked:
    """Which cells to make."""

    models: Sequence[str]
    cards_gb: Sequence[float] = CARDS_GB
    weights: Sequence[str] = WEIGHTS
    waiting: Sequence[str] = WAITING
    presets: Sequence[str] = CARD_PRESETS


def usable_bytes(card_gb: float) -> int:
    """Of a card sold with so many GB, for weights, memory and work. ConfigError: that is no card."""
    if not 2 <= card_gb < 10_000:
        raise ConfigError(f"--gb is {card_gb:g}, but must be what a card is sold with, 2 or more; such as 24")
    return int(card_gb * 2**30 * (1 - _FRAGMENTS)) - _DRIVER_BYTES


def card_models() -> list[str]:
    """Networks that a card is chosen for: all but the two that come with the pack, which need none."""
    return [name for name in networks() if not name.startswith("demo")]


def size_of(model: str) -> tuple[int, int]:
    """Width and height that the table is made for."""
    return networks()[model].sizes or _SIZES.get(model, _USUAL_SIZE)


def longest_videos(asked: Asked) -> list[Cell]:
    """One cell for every card, model and setting. Decoding is not in it, for it can be done in tiles. ConfigError: a model that
    is not there."""
    cells = []
    for model in asked.models:
        if model not in networks():
            raise ConfigError(f"there is no model {quoted(model)} to plan for; choose from {', '.join(card_models())}")
        for weights in asked.weights:
            for waiting in asked.waiting:
                for preset in asked.presets:
                    run = _run(model, weights, waiting, preset)
                    for card in asked.cards_gb:
                        cells.append(Cell(model, card, weights, waiting, preset, run.longest(usable_bytes(card), 0)))
    return cells


def _run(model: str, weights: str, waiting: str, preset: str) -> Run:
    network, (width, height) = networks()[model], size_of(model)
    config = PRESETS[preset].with_changes(offload="cpu" if "memory" in waiting and preset != "exact" else "gpu")
    kept = Weights(weights, _on_card(network, weights) if "weights" in waiting else None)
    # In torch, whose encoding works in more memory than our Triton kernels': the same on every machine.
    return Run(network, Video(width, height, 1), config, kept, triton=False)


def _on_card(network: NetworkShape, weights: str) -> int:
    """Bytes of the layers at work and of all that is no layer's."""
    layers = network.layer_parameters * WEIGHT_BYTES[weights] * _LAYERS_ON_CARD // network.layers
    return layers + (network.parameters - network.layer_parameters) * 2 + network.float32_parameters * 2


def duration(pictures: int | None) -> str:
    """For people, at 16 pictures a second."""
    if pictures is None:
        return "any"
    seconds = pictures / PICTURES_PER_SECOND
    return "-" if not pictures else f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def cards_table(cells: Sequence[Cell], mark: str = "") -> str:
    """Markdown: a line for each model and way, a column for each card; in it the three presets, the exact one first."""
    cards = list(dict.fromkeys(cell.card_gb for cell in cells))
    presets = list(dict.fromkeys(cell.preset for cell in cells))
    found = {cell[:5]: cell.pictures for cell in cells}
    lines = [f"| weights | in main memory | {' | '.join(f'{card:g} GB' for card in cards)} |", "|---|---|" + "---|" * len(cards)]
    for model in dict.fromkeys(cell.model for cell in cells):
        width, height = size_of(model)
        lines.append(f"| **{networks()[model].title}**, {width}×{height}{mark} | |{' |' * len(cards)}")
        for weights, waiting in dict.fromkeys((cell.weights, cell.waiting) for cell in cells if cell.model == model):
            ways = [[duration(found[model, card, weights, waiting, preset]) for preset in presets] for card in cards]
            lines.append(f"| {weights} | {waiting} | {' | '.join(' / '.join(way) for way in ways)} |")
    return "\n".join(lines)
