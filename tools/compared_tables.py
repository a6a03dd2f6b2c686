"""Tables of docs/methods.md and docs/quality.md out of benchmarks/results: what others ship on the demo world, the study's
methods, verdicts for menus, and what the paper takes apart."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from comfyui_qvg.qvg.bench.methods import EQUAL
from comfyui_qvg.qvg.harness.statistics import paired
from comfyui_qvg.qvg.study.bytes import ratio
from comfyui_qvg.qvg.study.registry import STUDY, study_method
from comfyui_qvg.qvg.study.shipped import SHIPPED
from comfyui_qvg.qvg.study.verdict import MENU, VERDICTS, Measured, by_verdict

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


def _walked() -> dict[tuple[str, str, str], dict[str, str]]:
    """Rows of the study by model, method and form."""
    return {(row["model"], row["method"], row["form"]): row for row in _rows("study")}


def study_rows() -> str:
    """The study's methods on both instruments, corrected and as published; those with the fewest bits first."""
    found = _walked()
    kinds = [(model, form) for model in ("demo world", "demo film") for form in ("node", "corrected", "published")]
    lines = [
        "| method | bits per value | world, by the node | corrected | as published | film, by the node | corrected "
        "| as published |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in sorted(STUDY, key=lambda method: -ratio(method)):
        cells = {kind: found.get((kind[0], method.name, kind[1])) for kind in kinds}
        decibels = [f"{float(row['psnr_db']):.1f} dB" if row else "–" for row in cells.values()]
        lines.append(f"| `{method.name}` | {16 / ratio(method):.2f} | {' | '.join(decibels)} |")
    return "\n".join(lines)


def _measured() -> dict[str, Measured]:
    """Of the menu's methods, in its order."""
    walked, others, found = _walked(), {row["preset"]: row for row in _rows("shipped")}, dict[str, Measured]()
    for name in MENU:
        if name in SHIPPED:
            bits, row = float(others[name]["bits_per_value_amortised"]), others[name]
        else:
            method = study_method(name)
            bits, row = 16 / ratio(method), walked.get(("demo world", name, "node"))
            if row is None and not method.plain:  # both forms are the same run
                row = walked.get(("demo world", name, "corrected"))
        found[name] = Measured(round(bits, 2), round(float(row["psnr_db"]), 1) if row else None)
    return found


def measured() -> str:
    """Of `qvg/study/verdict.py`."""
    lines = [f'    "{name}": Measured({bits}, {psnr_db}),' for name, (bits, psnr_db) in _measured().items()]
    return "\n".join(["MEASURED: dict[str, Measured] = {", *lines, "}"])


def verdicts() -> str:
    """Of the node's help: a line per verdict."""
    found, least = _measured(), dict(VERDICTS)
    lines = ["| PSNR to exact, demo world | methods, with bits per value |", "|---|---|"]
    for words, names in by_verdict(found).items():
        said = f"{words}, {least[words]:.0f} dB and more" if least.get(words) else words
        lines.append(f"| {said} | {', '.join(f'`{name}` {found[name].bits:.2f}' for name in names)} |")
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


_RIVALS = {"SOFT_PRUNE_INT4": "FLOWCACHE_SOFT_PRUNE_INT4", "PRQ_INT4": "PRQ_INT4"}
_CASES = ("demo world, three seeds", "demo film, three seeds")


def _by_case(row: dict[str, str]) -> list[float]:
    return [float(value) for value in row["psnr_by_case"].split()]


def _several() -> dict[str, dict[str, dict[str, str]]]:
    """Rows of plan `full` by set and method, of the sets with several cases."""
    found: dict[str, dict[str, dict[str, str]]] = {name: {} for name in _CASES}
    for row in _rows("study_full"):
        name = row["set"].rpartition(", ")[0]
        if name in found:
            found[name][row["method"]] = row
    return found


def equal_bytes() -> str:
    """Ours at the bytes of a rival: shares of its bytes at the end and at the worst block, and decibels over it, paired."""
    sets = _several()
    lines = [
        "| against | ours | bytes, world | at the worst block | over it, dB | bytes, film | at the worst block | over it, dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (method.name for method in EQUAL):
        rival = _RIVALS[name.rpartition(" ")[2]]
        cells = [f"`{rival}`", name]
        for found in sets.values():
            ours, theirs = found[name], found[rival]
            gain = paired(_by_case(ours), _by_case(theirs)).difference
            cells += [f"{float(ours[key]) / float(theirs[key]):.2f}" for key in ("cache", "cache_peak")]
            cells.append(f"{gain.mean:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def near_the_front() -> str:
    """Methods on several cases of both instruments, the nearest to exact in the demo world first."""
    sets = _several()
    lines = [
        "| method | times smaller, world | PSNR | over `balanced`, dB | times smaller, film | PSNR | over `balanced`, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    first = sets[_CASES[0]]
    for name in sorted(first, key=lambda name: -float(first[name]["psnr"])):
        if name == "exact":
            continue
        cells = [f"`{name}`"]
        for found in sets.values():
            row = found.get(name)
            if row is None:
                cells += ["–"] * 3
                continue
            over = f"{float(row['over_mean']):+.1f} ({float(row['over_low']):+.1f} to {float(row['over_high']):+.1f})"
            cells += [f"{float(row['compression']):.2f}", f"{float(row['psnr']):.1f} dB", over]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
