"""Tables of docs/methods.md out of benchmarks/results: what others ship on the demo world, and what the paper takes apart."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
_LABELS = {
    "qvg, asymmetric": "QVG, all four levels, 32 centroids",
    "qvg, 32 centroids": "QVG as published, 32 centroids",
    "balanced": "**`balanced`**, ours",
}


def _rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shipped() -> str:
    """A line per row, the nearest to exact first."""
    lines = [
        "| method | bits per value, as stored | amortised | PSNR against exact | over QVG as published, dB | SSIM "
        "| between visits |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(_rows("shipped"), key=lambda row: -float(row["psnr_db"])):
        cells = [
            _LABELS.get(row["preset"], row["preset"]),
            f"{float(row['bits_per_value']):.2f}",
            f"{float(row['bits_per_value_amortised']):.2f}",
            f"{float(row['psnr_db']):.1f} dB",
            f"{float(row['gain_db']):+.1f}",
            f"{float(row['ssim']):.4f}",
            f"{float(row['revisit_db']):.1f} dB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ablations() -> str:
    """Keys and values on both instruments, the mean of all runs, and the paper's factor behind them."""
    gains: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    paper: dict[tuple[str, str, str], str] = {}
    for row in _rows("ablations"):
        gains[row["what"], row["against"]][row["tensor"], row["instrument"]].append(float(row["gain"]))
        paper[row["what"], row["against"], row["tensor"]] = row["paper"]
    lines = [
        "| what | against | keys, world | film | paper | values, world | film | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (what, against), found in gains.items():
        cells = [what, against]
        for tensor in ("keys", "values"):
            ours = (found[tensor, instrument] for instrument in ("demo world", "demo film"))
            said = paper[what, against, tensor]
            cells += [*(f"{sum(each) / len(each):.2f}" for each in ours), f"{float(said):.2f}" if said else "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
