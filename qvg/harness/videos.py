"""What a target makes, and what is said of it beside the exact one: three numbers for closeness, never one; drift; visits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..bench.judge import DIVERGENT_DB
from ..metrics import PSNR_CAP_DB, ssim

Pictures = NDArray[np.uint8]


@dataclass
class Video:
    """One video and what it left behind.

    pictures      uint8 [F, H, W, 3], before any lossy encoding
    given_frames  pictures that were not generated
    cache_bytes   of the memory after each picture, as many as are known
    components    resident bytes at the end by component of the cache, and of what lies beside it
    exact_bytes   of all latent frames at 16 bits per value
    visits_db     PSNR between visits of a place; truth_db: against the real film, where that is known
    """

    pictures: Pictures
    given_frames: int
    cache_bytes: list[int]
    components: dict[str, int]
    exact_bytes: int
    peak_cache_bytes: int
    beside: dict[str, int] = field(default_factory=dict)
    visits_db: float | None = None
    truth_db: float | None = None
    fps: float = 10.0
    seconds: dict[str, float] | None = None
    memory: dict[str, Any] | None = None
    remarks: list[str] = field(default_factory=list)
    latents_digest: str = ""


def psnr_of(errors: Sequence[float]) -> float:
    """PSNR of the mean squared error of several pictures: one that is identical does not make it infinite; 100 at most."""
    return min(PSNR_CAP_DB, -10 * float(np.log10(max(float(np.mean(errors)), 1e-10))))


def closeness(exact: Pictures, made: Pictures, given: int, window_frames: int) -> dict[str, Any]:
    """PSNR and SSIM of the first generated picture, of the first divergent one and of all generated ones; both curves; drift."""
    if exact.shape != made.shape:
        raise ValueError(f"the exact video is {list(exact.shape)} and this one {list(made.shape)}")
    errors = [float((((a.astype(np.float64) - b) / 255) ** 2).mean()) for a, b in zip(made, exact, strict=True)]
    return closeness_of(errors, ssim(torch.from_numpy(exact), torch.from_numpy(made)).tolist(), given, window_frames)


def closeness_of(errors: Sequence[float], alike: Sequence[float], given: int, window_frames: int) -> dict[str, Any]:
    """The same of pictures whose mean squared errors (of 0..1) and SSIM are known."""
    curve = [psnr_of([error]) for error in errors]
    low = [index for index in range(given, len(curve)) if curve[index] < DIVERGENT_DB]
    first = low[0] if low else None
    return {
        "psnr_db": {
            "first_frame": curve[given],
            "first_divergent": None if first is None else curve[first],
            "all": psnr_of(errors[given:]),
        },
        "ssim": {
            "first_frame": alike[given],
            "first_divergent": None if first is None else alike[first],
            "all": float(np.mean(alike[given:])),
        },
        "first_divergent_frame": first,
        "curves": {"psnr_db": curve, "ssim": list(alike)},
        "drift": drift(errors, alike, given, window_frames),
    }


def drift(errors: Sequence[float], alike: Sequence[float], given: int, window_frames: int) -> dict[str, Any]:
    """PSNR and SSIM of every whole window of generated pictures (a video of less than one window is one), and the slope of a line
    through them, in dB per 100 pictures; None where there is but one window. A mean over all hides a late collapse."""
    last = len(errors)
    starts = list(range(given, last - window_frames + 1, window_frames)) or [given]
    windows = [
        {
            "first": start,
            "last": min(last, start + window_frames) - 1,
            "psnr_db": psnr_of(errors[start : start + window_frames]),
            "ssim": float(np.mean(alike[start : start + window_frames])),
        }
        for start in starts
    ]
    slopes = {}
    for name in ("psnr_db", "ssim"):
        middle = [(each["first"] + each["last"]) / 2 for each in windows]
        values = [each[name] for each in windows]
        slopes[name] = None if len(windows) < 2 else 100 * float(np.polyfit(middle, values, 1)[0])
    return {"windows": windows, "slope_psnr_db_per_100": slopes["psnr_db"], "slope_ssim_per_100": slopes["ssim"]}
