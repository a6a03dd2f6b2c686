"""codecs.html: one file, pictures inside, readable without a network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import PRESETS
from ..files import written_whole
from .judge import DIVERGENT_DB
from .rows import Measured, windows
from .walks import Case, Walker

if TYPE_CHECKING:  # matplotlib is an extra: nothing of it may be imported before a picture is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"qvg": "#2ca25f", "klt": "#7b2d8e", "rtn": "#8c8c8c", "kivi": "#d95f0e", "quarot": "#4c78a8"}
_INK, _MUTED, _RULE = "#1b1f24", "#6a737d", "#d7dce1"
_LINES = ("#2ca25f", "#1b6f41", "#c77cff", "#7b2d8e", "#3a0ca3", "#4c78a8", "#d95f0e", "#8c8c8c")

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}p{max-width:75ch}img{max-width:100%;height:auto}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #d7dce1;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #1b1f24;vertical-align:bottom;white-space:normal}
tr.best td{background:#f3ecf6}small{color:#6a737d}
"""

_COLUMNS = {
    "preset": "method",
    "bits_per_value": "bits per value, as stored",
    "bits_per_value_amortised": "amortised to 37,440 tokens",
    "cache_bytes": "cache bytes",
    "psnr_db": "PSNR dB",
    "psnr_db_low": "95 % low",
    "psnr_db_high": "high",
    "gain_db": "paired gain over qvg",
    "gain_db_low": "95 % low",
    "gain_db_high": "high",
    "ssim": "SSIM",
    "revisit_db": "between visits dB",
    "first_divergent_frame": f"first frame below {DIVERGENT_DB:g} dB (median)",
    "attention_error": "attention error",
    "attention_error_outliers": "with 1 % outliers",
    "logit_slope": "logit slope",
    "mass_moved": "mass moved to cache",
    "top1_shift": "top-1 shift",
    "encode_ms": "encode ms",
    "decode_ms": "decode ms",
}


def write_page(
    rows: Sequence[Mapping[str, Any]],
    measured: Sequence[Measured],
    cases: Sequence[Case],
    walker: Walker,
    path: Path,
    conditions: Mapping[str, str],
) -> None:
    """Tables and pictures into one HTML file, which appears whole or not at all."""
    first = rows[0]
    intro = (
        f"{first['worlds']} worlds that were not trained on (seeds {first['seeds']}), {first['paths']} path(s), "
        f"{first['frames']} frames. PSNR and SSIM compare with the same run on the exact cache (16 bits); intervals are 95 % "
        "bootstrap over walks. "
        "Probes: synthetic keys and values with the statistics of real models, one span of 6,240 tokens, 256 centroids; "
        f"times for keys and values of one head. {conditions['device']}; {conditions['versions']}."
    )
    parts = [
        f"<h1>Codecs on the demo world</h1><p>{html.escape(intro)}</p>",
        _picture("Bytes against the video", _rate_figure(rows)),
        f"<h2>Everything measured</h2><div class=scroll>{_table(rows, _COLUMNS)}</div>",
        _picture("Frame by frame", _frames_figure(measured)),
        f"<h2>Drift by windows, PSNR dB</h2><div class=scroll>{_table(rows, _window_columns(first))}</div>",
        f"<h2>Bytes by component</h2><div class=scroll>{_table(rows, _byte_columns(first))}</div>",
        _picture("What the exact camera sees", _strip_figure(walker, cases)),
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>QVG codecs</title><style>{_STYLE}</style>"
    page = head + "".join(parts) + "</html>"
    with written_whole(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _window_columns(first: Mapping[str, Any]) -> dict[str, str]:
    names = {f"psnr_db_frames_{a}_{b}": f"frames {a} to {b - 1}" for a, b in windows(first["frames"])}
    return {"preset": "method", **names}


def _byte_columns(first: Mapping[str, Any]) -> dict[str, str]:
    names = {name: name.removeprefix("bytes_").replace("_", " ") for name in first if name.startswith("bytes_")}
    return {"preset": "method", "cache_bytes": "all at the end", "peak_cache_bytes": "at the peak", **names}


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in columns.values())
    front = _pareto(rows)
    body = "".join(
        f"<tr{' class=best' if index in front else ''}>" + "".join(f"<td>{_cell(entry[name])}</td>" for name in columns) + "</tr>"
        for index, entry in enumerate(rows)
    )
    note = "<small>Tinted: no other method is smaller and closer.</small>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))


def _pareto(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """Methods that none beats in bytes and PSNR at once."""
    points = [(entry["cache_bytes"], entry["psnr_db"]) for entry in rows]
    return {
        index
        for index, (size, psnr) in enumerate(points)
        if not any((s <= size and p >= psnr) and (s, p) != (size, psnr) for s, p in points)
    }


def _picture(title: str, figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


def _figure(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=110, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color=_RULE, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(colors=_MUTED, labelsize=9)
    return figure, list(axes)


def _rate_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure = _figure(11, 9.5, 1)[0]
    figure.clear()
    grid = figure.subplots(2, 2)
    names = {
        "bits_per_value": "bits per value, as stored",
        "bits_per_value_amortised": "bits per value, amortised to 37,440 tokens",
    }
    for line, (quality, label) in enumerate({"psnr_db": "PSNR against exact, dB", "ssim": "SSIM against exact"}.items()):
        for column, (rate, title) in enumerate(names.items()):
            _scatter(grid[line][column], rows, rate, quality, title, label)
    grid[0][0].legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _scatter(panel: Axes, rows: Sequence[Mapping[str, Any]], rate: str, quality: str, title: str, label: str) -> None:
    for codec, colour in _COLOURS.items():
        entries = sorted((entry for entry in rows if entry["codec"] == codec), key=lambda entry: float(entry[rate]))
        if not entries:
            continue
        x, y = [entry[rate] for entry in entries], [entry[quality] for entry in entries]
        panel.scatter(x, y, color=colour, s=26, label=codec, zorder=3)
        if quality == "psnr_db":
            low, high = ([entry[f"psnr_db_{end}"] for entry in entries] for end in ("low", "high"))
            panel.vlines(x, low, high, color=colour, linewidth=1)
        for entry, *place in zip(entries, x, y, strict=True):
            # Presets only: everything else would be written over.
            if entry["preset"] in PRESETS:
                panel.annotate(entry["preset"], (place[0], place[1]), (6, -3), textcoords="offset points", fontsize=8, color=_INK)
    panel.set_xlabel(title, color=_INK, fontsize=9)
    panel.set_ylabel(label, color=_INK, fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color=_RULE, linewidth=0.6)
    panel.tick_params(colors=_MUTED, labelsize=9)


def _frames_figure(measured: Sequence[Measured]) -> Figure:
    figure, (panel,) = _figure(11, 4.2, 1)
    chosen = [entry for entry in measured if "," not in entry.method.name or "2 bits" in entry.method.name][: len(_LINES)]
    for index, entry in enumerate(chosen):
        curve = np.mean([walk.frame_psnr_db() for walk in entry.walks], 0).clip(max=60)
        panel.plot(curve, color=_LINES[index], label=entry.method.name, linewidth=1.4)
    panel.set_xlabel("latent frame", color=_INK, fontsize=9)
    panel.set_ylabel("PSNR against exact, dB (at most 60)", color=_INK, fontsize=9)
    panel.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _strip_figure(walker: Walker, cases: Sequence[Case]) -> Figure:
    shown = cases[: min(4, len(cases))]
    figure = _figure(11, 2.0 * len(shown), 1)[0]
    figure.clear()
    grid = figure.subplots(len(shown), 6, squeeze=False)
    for line, case in zip(grid, shown, strict=True):
        pictures = walker.exact(case)
        for panel, index in zip(line, np.linspace(0, len(pictures) - 1, 6).astype(int), strict=True):
            panel.imshow(pictures[index])
            panel.set_axis_off()
            panel.set_title(f"world {case.seed}, frame {index}", fontsize=8, color=_MUTED)
    return figure
