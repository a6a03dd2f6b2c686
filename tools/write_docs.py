"""Write the parts of README.md, docs/ and a few others that are made: tables out of the registry and of what was measured, the
house's picture.

    python tools/write_docs.py            writes them
    python tools/write_docs.py --check    exit code 1 where one is out of date, and writes nothing

A made part stands between `<!-- made by tools/write_docs.py: NAME -->` and `<!-- end -->`, in code behind `#`.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architecture
import bootstrap_package  # noqa: F401  # names the package that is imported below
import compared_tables
import cost_tables
from comfyui_qvg.qvg.bench.settings import settings_table
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.models.table import models_table
from comfyui_qvg.qvg.plan.cards import CARDS_GB, Asked, cards_table, duration, longest_videos, size_of
from comfyui_qvg.qvg.study.table import study_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PART = re.compile(r"((?:<!--|#) made by tools/write_docs\.py: (\w+)(?: -->)?\n)(?:(?!<!-- |# end).*\n)*(<!-- end -->|# end)")

BALANCED = "balanced"
# What methods are called on the page, in the order of the table; those that are not here are not shown.
METHODS = {
    "qvg, 32 centroids": "QVG, 32 centroids a span: what the gains are over",
    "qvg": "preset `qvg`, 8 centroids",
    "qvg, 64 centroids": "QVG, 64 centroids",
    "qvg, asymmetric": "QVG, all four levels (`asymmetric`)",
    "qvg-pro, 32 centroids": "QVG-Pro, four stages, group 16, 32 centroids",
    "qvg-pro": "preset `qvg-pro`, 8 centroids",
    "fewest-bytes": "**`fewest-bytes`**: klt, keys 1, values 1.5 bits",
    "balanced": "**`balanced`**: klt, keys 1.5, values 2 bits",
    "near-exact": "**`near-exact`**: klt, keys 3, values 3.5 bits",
    "klt, 2 bits": "klt",
    "klt, 2 bits, Hadamard": "klt with a Hadamard transform instead of the learned one",
    "klt, 2 bits, frozen codewords": "klt with the first span's centroids for all",
    "klt, 2 bits, keys after RoPE": "klt, keys kept after RoPE",
    "qvg, 32 centroids, keys after RoPE": "QVG, 32 centroids, keys kept after RoPE",
    "kivi, 2 bits": "KIVI",
    "quarot, 2 bits": "QuaRot, asymmetric",
    "rtn, 2 bits": "plain rounding, asymmetric",
}
OPENINGS = {
    "ordinary": "none, an ordinary walk",
    "black": "black",
    "fade": "a fade from black",
    "gradient": "a still gradient",
    "title": "a title card",
    "noise": "noise",
    "freeze": "a freeze frame",
    "cut": "another place, then a cut",
    "loud": "a loud channel afterwards",
}
Row = dict[str, str]


def measured(name: str) -> list[Row]:
    """Rows of a file of results."""
    with (RESULTS / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def settings() -> str:
    """Presets: bytes and bits of a real model, quality on the demo world."""
    return settings_table(measured("codecs_presets")).rstrip("\n")


def codecs() -> str:
    """Every method on the demo world; gains over QVG as published, and over QVG with all four levels."""
    rows = {row["preset"]: row for row in measured("codecs")}
    all_levels = float(rows["qvg, asymmetric"]["gain_db"])
    lines = [
        "| method, 2 bits unless named | bits per value, as stored | amortised | PSNR against exact | gain over QVG, dB "
        "| over all four levels, dB | attention error | with 1 % outlier tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, label in METHODS.items():
        row = rows[name]
        gain, low, high = (float(row[key]) for key in ("gain_db", "gain_db_low", "gain_db_high"))
        errors = (f"{float(row[key]):.2f}" if row[key] else "–" for key in ("attention_error", "attention_error_outliers"))
        cells = [
            label,
            *(f"{float(row[key]):.2f}" for key in ("bits_per_value", "bits_per_value_amortised")),
            f"{float(row['psnr_db']):.1f} dB",
            f"{gain:+.1f} ({low:+.1f} to {high:+.1f})",
            f"{gain - all_levels:+.1f}",
            *errors,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def openings() -> str:
    """What openings leave of klt's lead: over QVG as published, and over QVG with all four levels; the mean of all worlds."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in measured("openings"):
        found.setdefault(row["scenario"], {}).setdefault(row["method"], []).append(row)
    presets = ("fewest-bytes", "balanced", "near-exact")
    lines = [f"| opening | {' | '.join(f'`{name}`' for name in presets)} |", "|---|" + "---|" * len(presets)]
    for scenario, rows in found.items():
        all_levels = _mean(rows["qvg, asymmetric"], "gain_db")
        cells = []
        for preset in presets:
            gains = [float(row["gain_db"]) for row in rows[preset]]
            share = max(int(row["bytes"]) / int(row["reference_bytes"]) for row in rows[preset])
            mean = _mean(rows[preset], "gain_db")
            cells.append(f"{mean:+.1f} ({min(gains):+.1f} at least), {mean - all_levels:+.1f}, {share:.0%}")
        lines.append(f"| {OPENINGS[scenario]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def instruments() -> str:
    """Both instruments side by side: how near to the exact cache, and by how much nearer than QVG as published, film by film."""
    world, film = ({row["preset"]: row for row in measured(name)} for name in ("codecs", "films"))
    lines = [
        "| method, 2 bits unless named | demo world | gain over QVG, dB | demo film | gain over QVG, dB | to the real film |",
        "|---|---|---|---|---|---|",
    ]
    for name in (name for name in METHODS if name in film):
        cells = [METHODS[name]]
        for row in (world[name], film[name]):
            gain, low, high = (float(row[key]) for key in ("gain_db", "gain_db_low", "gain_db_high"))
            cells += [f"{float(row['psnr_db']):.1f} dB", f"{gain:+.1f} ({low:+.1f} to {high:+.1f})"]
        lines.append(f"| {' | '.join(cells)} | {float(film[name]['truth_db']):.1f} dB |")
    return "\n".join(lines)


def _mean(rows: list[Row], key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)


def windows() -> str:
    """What a window leaves: the most bytes that the demo world's cache holds, and the next picture against the exact window's."""
    rows = {(int(row["window"]), row["preset"]): row for row in measured("windows")}
    names = list(dict.fromkeys(preset for _, preset in rows))
    lines = [f"| window, frames | {' | '.join(f'`{name}`' for name in names)} |", "|---|" + "---|" * len(names)]
    for window in dict.fromkeys(window for window, _ in rows):
        cells = []
        for row in (rows[window, name] for name in names):
            decibels = f", {float(row['next_picture_db']):.1f} dB" if row["next_picture_db"] else ""
            cells.append(f"{int(row['most_bytes']) / 1e6:.2f} MB{decibels}")
        lines.append(f"| {window} | {' | '.join(cells)} |")
    return "\n".join(lines)


MERGED_WALKS = {
    "return": "a loop of 120 frames, the first lap given, frames 121 to 149",
    "laps": "600 frames, twelve laps of 50",
    "change, a quarter": "the camera stands still, 16 of 64 tokens change",
    "change, all": "the camera stands still, all change",
    "country": "new country only, real pictures",
}


def merge() -> str:
    """What merging came to on the demo world, a line for each walk and way; several worlds: the mean, and the lowest PSNR."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in (RESULTS / "merge.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        walk = f"{row['walk']}, {row['changes']}" if "changes" in row else row["walk"]
        if row["way"] != "exact":
            found.setdefault((walk, row["way"]), []).append(row)
    lines = [
        "| walk | kept as | PSNR against exact, mean / lowest, dB | rows a token | bytes of exact's | worlds |",
        "|---|" + "---|" * 5,
    ]
    for (walk, way), rows in sorted(found.items(), key=lambda item: list(MERGED_WALKS).index(item[0][0])):
        codec, level, key = way.split(":")
        kept = "16 bits" if codec == "none" else f"`{codec}`"
        decibels = [row["psnr_db"] for row in rows if "psnr_db" in row]
        psnr = f"{sum(decibels) / len(decibels):.1f} / {min(decibels):.1f}" if decibels else ""
        share, bytes_ = (sum(row.get(name, 1) for row in rows) / len(rows) for name in ("rows_per_token", "bytes_of_exact"))
        lines.append(f"| {MERGED_WALKS[walk]} | {kept}, {level}, {key} | {psnr} | {share:.3f} | {bytes_:.3f} | {len(rows)} |")
    return "\n".join(lines)


def sparse() -> str:
    """What reading a share came to on the demo world, a line for each way, worlds in columns; and its time."""
    file = RESULTS / "sparse.jsonl"
    rows = [json.loads(line) for line in (file.read_text(encoding="utf-8").splitlines() if file.is_file() else ())]
    if not rows:
        return "Not measured yet."
    judged = {(row["way"], row["world"]): row for row in rows if row["walk"] == "return" and row["way"] != "exact"}
    worlds = sorted({world for _, world in judged})
    ways = sorted({way for way, _ in judged}, key=lambda way: (way.split(":")[0] != "none", -float(way.split(":")[1])))
    heads = [
        "kept as",
        "read",
        *(f"world {world}" for world in worlds),
        "bytes of exact's",
        "time over the yardstick, frame 60 / 300 / 600",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    timed = {row["way"]: row for row in rows if row["walk"] == "time"}
    for way in ways:
        codec, share = way.split(":")
        here = [judged.get((way, world)) for world in worlds]
        decibels = ["" if row is None else f"{row['psnr_db']:.1f} dB" for row in here]
        bytes_ = [row["bytes_of_exact"] for row in here if row is not None]
        took = timed.get(way)
        ratio = "" if took is None else " / ".join(f"{took[f'ratio_{frame}']:.2f}" for frame in (60, 300, 600))
        kept = "16 bits" if codec == "none" else f"`{codec}`"
        part = "all" if float(share) == 0 else f"{float(share):.0%}"
        lines.append("| " + " | ".join([kept, part, *decibels, f"{sum(bytes_) / len(bytes_):.3f}", ratio]) + " |")
    return "\n".join(lines)


def cache_bytes() -> str:
    """Self-Forcing's cache at the end and at its worst moment, counted."""
    rows = measured("cache_bytes")
    frames = sorted({int(row["frames"]) for row in rows})
    heads = ["cache at the end / at its worst moment, GB", *(f"{n} latent frames ({4 * n - 3} pictures)" for n in frames)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    ends = {row["preset"]: int(row["counted_end_bytes"]) for row in rows if int(row["frames"]) == frames[-2]}
    for preset in sorted(ends, key=lambda name: -ends[name]):
        found = {int(row["frames"]): row for row in rows if row["preset"] == preset}
        sizes = [tuple(int(found[n][f"counted_{moment}_bytes"]) / 1e9 for moment in ("end", "peak")) for n in frames]
        name = f"`{preset}`, 16 bits" if preset == "exact" else f"`{preset}`"
        lines.append(f"| {name} | {' | '.join(f'{end:.2f} / {peak:.2f}' for end, peak in sizes)} |")
    return "\n".join(lines)


CARD_MODELS = ("self-forcing-1.3b", "krea-14b", "worldplay-5b", "worldplay-8b", "longcat-13b")


def cards() -> str:
    """The longest video that each card has room for, in short: fp8 weights, and what waits in main memory as far as it must."""
    cells = {cell[:5]: cell.pictures for cell in longest_videos(Asked(CARD_MODELS, weights=("fp8",)))}
    lines = [f"| | {' | '.join(f'{card} GB' for card in CARDS_GB)} |", "|---|" + "---|" * len(CARDS_GB)]
    ways = (("weights", "exact"), ("weights", BALANCED), ("weights and memory", BALANCED))
    for model in CARD_MODELS:
        width, height = size_of(model)
        shown = [
            " / ".join(duration(cells[model, card, "fp8", waiting, preset]) for waiting, preset in ways) for card in CARDS_GB
        ]
        lines.append(f"| {networks()[model].title}, {width}×{height} | {' | '.join(shown)} |")
    return "\n".join(lines)


def all_cards() -> str:
    """The same with every setting."""
    return cards_table(longest_videos(Asked(CARD_MODELS)))


def instructions() -> str:
    """What a value takes in every kernel that CI compiles, and as a multiple of 16-bit attention on the same card."""
    cards = ("sm_86", "sm_89", "sm_90", "sm_120", "gfx942")
    rows: dict[str, dict[str, float]] = {}
    for file in sorted((ROOT / "tools" / "compile_budgets").glob("*.json")):
        for name, targets in json.loads(file.read_text(encoding="utf-8")).items():
            # A case of its own for a kind of card is the same kernel.
            row = rows.setdefault(f"{file.stem}/{re.sub('_(fence|amd|cdna|rdna)$', '', name)}", {})
            row |= {target: budget["per_value"] for target, budget in targets.items() if "per_value" in budget}
    base = rows["attention/bf16_d128_m128"]
    lines = [f"| kernel | {' | '.join(cards)} |", "|---|" + "---|" * len(cards)]
    for name, row in rows.items():
        cells = [f"{row[card]:.1f} ({row[card] / base[card]:.1f} x)" if card in row and card in base else "-" for card in cards]
        lines += [f"| `{name}` | {' | '.join(cells)} |"] if row else []
    return "\n".join(lines)


def models() -> str:
    """The registry's families, as seen from docs/."""
    return models_table().replace("](LICENSE)", "](../LICENSE)")


PARTS: dict[str, Callable[[], str]] = {
    "models": models,
    "settings": settings,
    "codecs": codecs,
    "instruments": instruments,
    "openings": openings,
    "windows": windows,
    "merge": merge,
    "sparse": sparse,
    "study": study_table,
    "shipped": compared_tables.shipped,
    "measured": compared_tables.measured,
    "verdicts": compared_tables.verdicts,
    "study_rows": compared_tables.study_rows,
    "equal_bytes": compared_tables.equal_bytes,
    "near_the_front": compared_tables.near_the_front,
    "ablations": compared_tables.ablations,
    "cache_bytes": cache_bytes,
    "cards": cards,
    "all_cards": all_cards,
    "instructions": instructions,
    "costs": cost_tables.costs,
    "anchors": cost_tables.anchor_table,
    "launches": cost_tables.launches,
    "house": architecture.picture,
    "rooms": architecture.table,
}


def pages() -> list[Path]:
    """Those that may have made parts; what others are made of comes first."""
    code = ROOT / "qvg" / "study" / "verdict.py"
    return [code, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "web" / "docs").glob("*.md"))]


def renewed(text: str) -> str:
    """A page with its made parts made anew. KeyError: a part that nobody makes."""
    return PART.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}", text)


def outdated() -> list[Path]:
    """Pages that differ from what would be written."""
    return [page for page in pages() if renewed(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]


def main() -> int:
    """See the module docstring. -> exit code"""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="write nothing; say which pages are out of date")
    chosen = options.parse_args()
    pages_to_write = outdated()
    for page in pages_to_write:
        if not chosen.check:
            page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{page.relative_to(ROOT)} {'is out of date' if chosen.check else 'written'}")
    return int(chosen.check and bool(pages_to_write))


if __name__ == "__main__":
    sys.exit(main())
