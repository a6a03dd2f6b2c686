"""Openings and cuts, method by method: what stays of each one's gain over the reference."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import written_whole
from .judge import WalkResult
from .openings import Scene


class OpeningRow(NamedTuple):
    """One method in one scene. PSNR is of the generated frames against the exact cache's; gain is over the reference's."""

    method: str
    scenario: str
    seed: int
    psnr_db: float
    gain_db: float
    bytes: int
    reference_bytes: int
    seconds: float


def opening_row(method: str, scene: Scene, result: WalkResult, reference: WalkResult) -> OpeningRow:
    """Both results are of this scene."""
    psnr, other = (entry.psnr_db(scene.given_frames) for entry in (result, reference))
    size, reference_size = (sum(entry.bytes.values()) for entry in (result, reference))
    seconds = result.seconds_per_frame * scene.frames
    return OpeningRow(method, scene.scenario, scene.seed, psnr, psnr - other, size, reference_size, seconds)


def row_text(row: OpeningRow) -> str:
    """One run, for people."""
    return (
        f"{row.scenario:9} {row.seed}  {row.method:28} {row.psnr_db:5.1f} dB  gain {row.gain_db:+5.1f}  "
        f"bytes {row.bytes / row.reference_bytes:6.1%}  {row.seconds:.0f} s"
    )


def summary(rows: Iterable[OpeningRow]) -> str:
    """A line per method and scenario: mean gain, the worst world, bytes; then what the openings take of the ordinary gain."""
    lines = []
    by_method: dict[str, dict[str, list[OpeningRow]]] = {}
    for row in rows:
        by_method.setdefault(row.method, {}).setdefault(row.scenario, []).append(row)
    for method, by_scenario in by_method.items():
        means = {name: mean_gain(found) for name, found in by_scenario.items()}
        for name, found in by_scenario.items():
            psnr, worst = float(np.mean([row.psnr_db for row in found])), min(row.gain_db for row in found)
            size = max(row.bytes / row.reference_bytes for row in found)
            lines.append(f"{method:28} {name:9} {psnr:5.1f} dB  gain {means[name]:+5.1f}, worst {worst:+5.1f}  bytes {size:.1%}")
        lines.append(f"{method:28} {loss_text(means)}")
    return "\n".join(lines)


def mean_gain(rows: Sequence[OpeningRow]) -> float:
    """Over worlds."""
    return float(np.mean([row.gain_db for row in rows]))


def loss_text(means: Mapping[str, float]) -> str:
    """What openings take of the gain on ordinary walks, on average and at worst."""
    others = {name: gain for name, gain in means.items() if name != "ordinary"}
    if not others:
        return "only ordinary walks"
    least = min(others, key=lambda name: others[name])
    text = f"openings: gain {np.mean(list(others.values())):+.1f} on average, {others[least]:+.1f} at least ({least})"
    return text if "ordinary" not in means else f"{text}; ordinary {means['ordinary']:+.1f}"


def write_openings(rows: Sequence[OpeningRow], path: Path) -> None:
    """A line per run. The file appears whole or not at all."""
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(OpeningRow._fields)
        writer.writerows([round(value, 3) if isinstance(value, float) else value for value in row] for row in rows)
