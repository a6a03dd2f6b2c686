"""The one picture of a demo run: what the camera saw, what its memory weighed, and how far it strayed from the exact cache."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, MediaError
from ..files import written_whole

if TYPE_CHECKING:  # matplotlib is an extra: nothing of it may be imported before a picture is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PIXELS, HEIGHT_PIXELS = 1600, 900

_COLOURS = {"exact": "#4c78a8", "qvg": "#b8860b", "balanced": "#2ca25f", "window": "#d95f0e"}
_OTHER_COLOURS = ("#7b5ea7", "#5f6b7a", "#a0522d")
_INK, _MUTED, _RULE, _SHADE = "#1b1f24", "#6a737d", "#d7dce1", "#f0f3f6"
_DPI = 100
_MARGIN_PIXELS = 48
_STRIP_TOP_PIXELS = 84
_STRIP_TO_PANELS_PIXELS = 92
_PANELS_BOTTOM_PIXELS = 72
_PANEL_GAP_PIXELS = 84
_NAMES_PIXELS = 132  # right of a panel, for the names of its lines
_NAME_CHARACTERS = 14  # that fit there in a row
_BEYOND_TELLING_DB = 60  # no eye sees more, and the 100 dB of identical frames would flatten everything else


@dataclass(frozen=True)
class RunCurve:
    """What one run of the demo left behind, one entry per latent frame.

    `name` picks the colour (exact, qvg, balanced, window; spare ones for others), `label` is what people read, `cache_bytes` is
    the cache after each frame, `psnr_db` compares with the exact run (None for that run itself), `frames` are pictures
    [H, W, 3] uint8.
    """

    name: str
    label: str
    cache_bytes: Sequence[int]
    psnr_db: Sequence[float] | None
    frames: Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class _LineEnd:
    """Where a line ends, in the panel's units, and what it is called."""

    value: float
    name: str
    colour: str


def plot_demo(
    runs: Sequence[RunCurve],
    path: str | os.PathLike[str],
    moments: Sequence[tuple[int, str]],
    revisit_from: int | None = None,
) -> None:
    """Draws the picture of a demo into `path` (png, 1600x900); the arguments are those of `demo_figure`.

    Raises `ConfigError` as that does, and `MediaError` where matplotlib is missing or the file cannot be written.
    """
    figure = demo_figure(runs, moments, revisit_from)
    try:
        with written_whole(Path(path)) as unfinished:
            figure.savefig(unfinished, format="png", facecolor="white")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MediaError(f"cannot write the picture {path} ({reason}); free space or choose another --out") from error


def demo_figure(runs: Sequence[RunCurve], moments: Sequence[tuple[int, str]], revisit_from: int | None = None) -> Figure:
    """The picture of a demo, before it is a file.

    Above, a film strip: at each of `moments` (latent frame, caption) the same frame of every run. Below, the cache in MB
    (10^6 bytes) and the PSNR against the exact cache, over latent frames; from `revisit_from` on, the ground is shaded as the
    second visit. Letters tie the strip to the curves. Raises `ConfigError` for no runs, no moments, a moment or shading that
    a run does not reach, and `MediaError` where matplotlib is missing.
    """
    _check(runs, moments, revisit_from)
    figure = _new_figure()
    top = _film_strip(figure, runs, moments) - _STRIP_TO_PANELS_PIXELS
    width = (WIDTH_PIXELS - 2 * _MARGIN_PIXELS - _PANEL_GAP_PIXELS) / 2
    left = _panel(figure, _MARGIN_PIXELS, top, width, "KV cache, MB")
    right = _panel(figure, _MARGIN_PIXELS + width + _PANEL_GAP_PIXELS, top, width, "PSNR against the exact cache, dB")
    frames = max(len(run.cache_bytes) for run in runs)
    for panel, ends in ((left, _draw_bytes(left, runs)), (right, _draw_psnr(right, runs))):
        _finish_panel(panel, frames, ends, moments, revisit_from)
    return figure


def _check(runs: Sequence[RunCurve], moments: Sequence[tuple[int, str]], revisit_from: int | None) -> None:
    if not runs or not moments:
        raise ConfigError(f"{len(runs)} runs and {len(moments)} moments make no picture; give at least one of each")
    for run in runs:
        count = len(run.cache_bytes)
        if not count or len(run.frames) != count or (run.psnr_db is not None and len(run.psnr_db) != count):
            given = f"{count} cache sizes, {len(run.frames)} frames and {'no' if run.psnr_db is None else len(run.psnr_db)} PSNRs"
            raise ConfigError(f"run {run.name!r} has {given}; give one of each per latent frame")
        wanted = [*(frame for frame, _ in moments), *([] if revisit_from is None else [revisit_from])]
        outside = [frame for frame in wanted if not 0 <= frame < count]
        if outside:
            raise ConfigError(f"run {run.name!r} has no latent frame {outside[0]}; choose moments in 0..{count - 1}")


def _new_figure() -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MediaError("drawing the curves needs matplotlib, which is not installed; run `pip install matplotlib`") from error
    figure = Figure(figsize=(WIDTH_PIXELS / _DPI, HEIGHT_PIXELS / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in pixels from the lower left."""
    return figure.add_axes((left / WIDTH_PIXELS, bottom / HEIGHT_PIXELS, width / WIDTH_PIXELS, height / HEIGHT_PIXELS))


def _text(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Text at a place in pixels from the lower left."""
    figure.text(x / WIDTH_PIXELS, y / HEIGHT_PIXELS, text, **{"color": _INK, "fontsize": 12, **style})


def _colour(run: RunCurve, runs: Sequence[RunCurve]) -> str:
    others = [other.name for other in runs if other.name not in _COLOURS]
    return _COLOURS.get(run.name) or _OTHER_COLOURS[others.index(run.name) % len(_OTHER_COLOURS)]


def _letter(index: int) -> str:
    """A, B, C ... for the moments."""
    return chr(ord("A") + index)


def _film_strip(figure: Figure, runs: Sequence[RunCurve], moments: Sequence[tuple[int, str]]) -> float:
    """Pictures in groups, one group per moment, one picture per run. -> the strip's lower edge in pixels."""
    group_gap, picture_gap = 44, 8
    group_width = (WIDTH_PIXELS - 2 * _MARGIN_PIXELS - group_gap * (len(moments) - 1)) / len(moments)
    width = min(176.0, (group_width - picture_gap * (len(runs) - 1)) / len(runs))
    rows, columns, _ = runs[0].frames[0].shape
    height = width * float(rows / columns)
    bottom = HEIGHT_PIXELS - _STRIP_TOP_PIXELS - height
    names = [textwrap.fill(run.label, max(8, int(width / 9))) for run in runs]
    for group, (frame, caption) in enumerate(moments):
        left = _MARGIN_PIXELS + group * (group_width + group_gap)
        _text(figure, left, bottom + height + 14, _letter(group), fontsize=15, fontweight="bold")
        _text(figure, left + 24, bottom + height + 14, f"{caption}, frame {frame}", fontsize=15)
        for index, run in enumerate(runs):
            x = left + index * (width + picture_gap)
            axes = _axes(figure, x, bottom, width, height)
            axes.imshow(run.frames[frame], interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            _text(figure, x, bottom - 8, names[index], color=_colour(run, runs), va="top", linespacing=1.25)
    return bottom - 8 - 20 * max(name.count("\n") + 1 for name in names)


def _panel(figure: Figure, left: float, top: float, width: float, title: str) -> Axes:
    """Empty axes without a box, their title above; room for the lines' names on the right."""
    axes = _axes(figure, left, _PANELS_BOTTOM_PIXELS, width - _NAMES_PIXELS, top - _PANELS_BOTTOM_PIXELS)
    _text(figure, left, top + 40, title, fontsize=15)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=12, labelcolor=_MUTED, pad=6)
    return axes


def _draw_bytes(axes: Axes, runs: Sequence[RunCurve]) -> list[_LineEnd]:
    """Cache sizes in MB from zero up. -> where the lines end."""
    ends, largest = [], 0.0
    for run in runs:
        megabytes = np.asarray(run.cache_bytes, np.float64) / 1e6
        colour = _colour(run, runs)
        _line(axes, megabytes, colour)
        largest = max(largest, megabytes.max())
        ends.append(_LineEnd(float(megabytes[-1]), f"{_wrapped(run.label)}\n{megabytes[-1]:.1f} MB", colour))
    axes.set_ylim(0, 1.08 * largest or 1)
    return ends


def _draw_psnr(axes: Axes, runs: Sequence[RunCurve]) -> list[_LineEnd]:
    """PSNR of the runs that have one; frames beyond telling apart lie on the upper edge. -> where the lines end."""
    curves = [(run, np.asarray(run.psnr_db, np.float64)) for run in runs if run.psnr_db is not None]
    values = np.concatenate([values for _, values in curves] or [np.zeros(0)])
    shown = values[values < _BEYOND_TELLING_DB] if (values < _BEYOND_TELLING_DB).any() else np.array([30.0, 50.0])
    bottom, top = 10 * math.floor((shown.min() - 4) / 10), min(_BEYOND_TELLING_DB, 10 * math.ceil((shown.max() + 6) / 10))
    ends = []
    for run, curve in curves:
        clipped = np.minimum(curve, top)
        colour = _colour(run, runs)
        _line(axes, clipped, colour)
        ends.append(_LineEnd(float(clipped[-1]), _wrapped(run.label), colour))
    axes.set_ylim(bottom, top)
    ticks = list(range(bottom, top + 1, 10))
    axes.set_yticks(ticks, [*map(str, ticks[:-1]), f"≥ {top}" if (values > top).any() else str(top)])
    return ends


def _line(axes: Axes, values: NDArray[np.float64], colour: str) -> None:
    axes.plot(values, color=colour, linewidth=2, solid_capstyle="round", solid_joinstyle="round", clip_on=False, zorder=3)
    axes.plot(len(values) - 1, values[-1], "o", color=colour, markersize=6, clip_on=False, zorder=4)


def _wrapped(label: str) -> str:
    return textwrap.fill(label, _NAME_CHARACTERS)


def _finish_panel(
    axes: Axes, frames: int, ends: Sequence[_LineEnd], moments: Sequence[tuple[int, str]], revisit_from: int | None
) -> None:
    """The frame axis, the second visit, the letters of the moments, and the names of the lines."""
    from matplotlib.ticker import MaxNLocator

    above, right_of = axes.get_xaxis_transform(), axes.get_yaxis_transform()
    last = max(1, frames - 1)
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.annotate("latent frame", (1, 0), (20, -6), "axes fraction", "offset points", color=_MUTED, fontsize=12, va="top")
    if revisit_from is not None:
        axes.axvspan(revisit_from, last, color=_SHADE, zorder=0, linewidth=0)
        ground = {"facecolor": _SHADE, "edgecolor": "none", "pad": 1.5}  # so that no dotted line runs through the words
        note = axes.annotate("second visit", (revisit_from, 1), (7, -8), above, "offset points", bbox=ground, zorder=2)
        note.set(color=_MUTED, fontsize=12, va="top")
    for index, (frame, _) in enumerate(moments):
        axes.axvline(frame, color=_MUTED, linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
        axes.annotate(_letter(index), (frame, 1), (0, 5), above, "offset points", fontsize=12, fontweight="bold", ha="center")
    for end, place in zip(ends, _spread(axes, ends), strict=True):
        name = axes.annotate(end.name, (1, place), (12, 0), right_of, "offset points", fontsize=12, linespacing=1.2)
        name.set(color=end.colour, va="center")


def _spread(axes: Axes, ends: Sequence[_LineEnd]) -> list[float]:
    """Places for the names of the lines, in the panel's units, as near to their line's end as they can be without touching."""
    low, high = axes.get_ylim()
    unit = (high - low) / axes.get_window_extent().height
    order = sorted(range(len(ends)), key=lambda index: ends[index].value)
    halves = [(20 * (ends[index].name.count("\n") + 1) + 8) * unit / 2 for index in order]
    places = [max(ends[index].value, low + halves[0]) for index in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + halves[i - 1] + halves[i])
    places[-1:] = [min(place, high) for place in places[-1:]]
    for i in reversed(range(len(places) - 1)):
        places[i] = min(places[i], places[i + 1] - halves[i] - halves[i + 1])
    return [places[order.index(index)] for index in range(len(ends))]
