"""What a demo shows: its runs side by side, and their curves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ..media import side_by_side
from ..media.video_file import KeptVideo
from ..metrics import psnr_db
from .plots import RunCurve
from .run import Run
from .walk import Picture

FRAMES_PER_SECOND = 10


def write_video(runs: Sequence[Run], path: Path, scale: int = 4) -> None:
    """All runs side by side, enlarged `scale` times; one that stopped early stays on a dark picture."""
    rows = _rows_of_pictures(runs, max(len(run.frames) for run in runs), scale)
    first = next(rows)
    with KeptVideo(path, first.shape[1], first.shape[0], FRAMES_PER_SECOND) as video:
        for picture in itertools.chain([first], rows):
            video.write(picture)


def _rows_of_pictures(runs: Sequence[Run], frames: int, scale: int) -> Iterator[Picture]:
    nothing = np.full_like(runs[0].frames[0], 24)
    for index in range(frames):
        pictures = [run.frames[index] if index < len(run.frames) else nothing for run in runs]
        yield side_by_side(pictures, [_caption(run, index) for run in runs], scale)


def _caption(run: Run, index: int) -> str:
    if not run.cache_bytes:  # it was not made from memory
        return run.label
    return f"{run.label}  {run.cache_bytes[min(index, len(run.frames) - 1)] / 1e6:.1f} MB"


def run_curves(runs: Sequence[Run]) -> list[RunCurve]:
    """Bytes, and PSNR against the first of them."""
    exact = torch.from_numpy(np.stack(runs[0].frames))
    curves = []
    for run in runs:
        psnr = None if run is runs[0] else psnr_db(exact, torch.from_numpy(np.stack(run.frames))).tolist()
        curves.append(RunCurve(run.name, run.label, run.cache_bytes, psnr, run.frames))
    return curves
