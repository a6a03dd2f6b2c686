"""What a demo measured: rows for programs, a table for people."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..metrics import psnr_db, ssim
from .run import Run
from .walk import GIVEN_FRAMES, Picture


def summary_rows(runs: Sequence[Run], given_frames: int, more: dict[str, Callable[[Run], float | None]]) -> list[dict[str, Any]]:
    """What demo.json holds of each run, and `more` of it."""
    exact = runs[0]
    rows = []
    for run in runs:
        count = min(len(run.frames), len(exact.frames))
        rows.append(
            {
                "name": run.name,
                "codec": run.config.codec,
                "bits": 16 if run.config.codec == "none" else run.config.bits,
                "cache_bytes": run.cache_bytes[-1],
                "peak_cache_bytes": max(run.cache_bytes),
                "exact_bytes": exact.cache_bytes[count - 1],
                "ratio": round(exact.cache_bytes[count - 1] / run.cache_bytes[-1], 3),
                "psnr_db": None
                if run is exact
                else pooled_psnr_db(exact.frames[given_frames:count], run.frames[given_frames:count]),
                **{name: measure(run) for name, measure in more.items()},
                "seconds_per_frame": round(sum(run.seconds) / len(run.seconds), 4),
                "frames": len(run.frames),
                "ssim": None if run is exact else _mean_ssim(exact.frames[:count], run.frames[:count], given_frames),
                "bytes": run.components.by_component(),
                "workspace_bytes": run.workspace_bytes,
                "window_frames": run.config.window_frames,
            }
        )
    return rows


def conditions() -> dict[str, Any]:
    """Where it was measured."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"device": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}", "versions": versions}


def pooled_psnr_db(reference: Sequence[Picture], pictures: Sequence[Picture]) -> float | None:
    """PSNR of the mean squared error over all frames: identical frames do not lift it. None without frames."""
    if not reference:
        return None
    stacked = [torch.from_numpy(np.stack(part)).flatten(0, 1) for part in (reference, pictures)]
    return round(float(psnr_db(stacked[0], stacked[1])), 3)


def revisit_psnr_db(frames: Sequence[Picture], pairs: Sequence[tuple[int, int]]) -> float | None:
    """Mean PSNR between the first and each later visit of a place. None if nothing was visited twice."""
    seen = [(first, later) for first, later in pairs if later < len(frames) and later >= GIVEN_FRAMES]
    if not seen:
        return None
    firsts, laters = (torch.from_numpy(np.stack([frames[pair[which]] for pair in seen])) for which in (0, 1))
    return round(float(psnr_db(firsts, laters).mean()), 3)


def _mean_ssim(reference: Sequence[Picture], pictures: Sequence[Picture], given_frames: int) -> float | None:
    if len(reference) <= given_frames:
        return None
    parts = [torch.from_numpy(np.stack(part[given_frames:])) for part in (reference, pictures)]
    return round(float(ssim(parts[0], parts[1]).mean()), 4)


_QUALITY = {"psnr_db": "PSNR vs exact", "revisit_psnr_db": "between visits", "truth_psnr_db": "PSNR vs the real film"}


def table(summary: dict[str, Any]) -> str:
    """The summary for people: a row per run, and the bytes of its cache by component."""
    quality = [name for name in _QUALITY if name in summary["runs"][0]]
    head = ("run", "cache MB", "at peak", "ratio", *(_QUALITY[name] for name in quality), "s/frame")
    rows = [head, *(_cells(run, quality) for run in summary["runs"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.append(
        "ratio: bytes of all frames at 16 bits per value / bytes in memory at the end, exact tail included; MB = 10^6 bytes"
    )
    for run in summary["runs"]:
        parts = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in run["bytes"].items())
        lines.append(f"{run['name']} holds, in MB: {parts}")
    return "\n".join(lines)


def _cells(run: dict[str, Any], quality: Sequence[str]) -> tuple[str, ...]:
    decibels = (f"{run[key]:.1f} dB" if run[key] is not None else "-" for key in quality)
    sizes = (f"{run[key] / 1e6:.2f}" for key in ("cache_bytes", "peak_cache_bytes"))
    return (run["name"], *sizes, f"{run['ratio']:.2f}x", *decibels, f"{run['seconds_per_frame']:.3f}")
