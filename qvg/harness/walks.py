"""Walks of `qvg bench study` and `qvg bench codecs` as rows: what is the same video to the last byte is not made twice."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bench.films import FILM, FilmJudge
from ..bench.judge import Instrument, Judge, WalkResult
from ..bench.walks import DEMO_WORLD, Walker
from ..errors import ConfigError, MediaError
from ..study.run import StudyRun
from .choices import choices
from .demo_targets import film_case, walk_case
from .videos import Video, closeness_of
from .work import Job, Outcome, conditions, perform, rounded, row_of, unpacked

TAKEN = "taken over from a walk of `qvg bench`: seconds, memory by phase and the video itself were not kept there"


class Walks:
    """Finished walks in folders, found by all that a video depends on: case, settings, weights, torch and the code."""

    def __init__(self, folders: Sequence[Path]):
        for folder in folders:
            if not any(folder.glob("walk-*.json")):
                raise ConfigError(f"{folder} has no walks (walk-*.json); give the folder `walks` or `films` of `qvg bench`")
        self._folders, self._judges = folders, dict[tuple[str, Path], Judge[Any]]()

    def perform(self, work: Job, exact: bytes | None, server: str = "") -> Outcome:
        """The walk where there is one, else the video made now. Exact videos always are: others are compared with them."""
        found = None if exact is None else self._taken(work, exact)
        return found or perform(work, exact, server)

    def _taken(self, work: Job, exact: bytes) -> Outcome | None:
        if work.target.kind not in ("world", "film"):
            return None
        settings = choices()[work.method].settings
        case = walk_case(work.case) if work.target.kind == "world" else film_case(work.case)
        same = settings.same_as if isinstance(settings, StudyRun) else settings
        for folder in self._folders:
            judge = self._judge(work.target.kind, folder)
            walk = judge.finished(case, same)
            if walk is not None:
                pictures = unpacked(exact)
                _check_exact(judge, case, pictures)
                return Outcome(_row(work, walk, pictures.shape, judge.path(case, same)), b"")
        return None

    def _judge(self, kind: str, folder: Path) -> Judge[Any]:
        key = (kind, folder)
        if key not in self._judges:
            self._judges[key] = Walker(folder) if kind == "world" else FilmJudge(folder)
        return self._judges[key]


def _check_exact(judge: Judge[Any], case: Any, pictures: Any) -> None:
    """MediaError where the walk was compared with other pictures than those that lie in the study."""
    theirs = judge.finished_exact(case)
    if theirs is None or not np.array_equal(theirs, pictures):
        raise MediaError(
            f"the exact video that walks in {judge.folder} were compared with is not there, or not the one made here; walk "
            "again with `qvg bench study`, or leave out --walks"
        )


def _row(work: Job, walk: WalkResult, shape: tuple[int, ...], path: Path) -> dict[str, Any]:
    instrument: Instrument = DEMO_WORLD if work.target.kind == "world" else FILM
    given, exact_bytes = instrument.given_frames, instrument.spec.exact_bytes(work.case.frames)
    # Of the pictures only their number and size are asked for.
    pictures = np.broadcast_to(np.uint8(0), shape)
    video = Video(pictures, given, [], walk.bytes, exact_bytes, walk.peak_bytes, remarks=[TAKEN])
    video.memory = {"how": TAKEN}
    if work.target.kind == "world":
        video.visits_db = walk.revisit_db
    else:
        video.truth_db = walk.revisit_db
    closeness = closeness_of(walk.errors, walk.similarity, given, work.window_frames)
    missing = dict.fromkeys((metric for metric in ("lpips", "vbench") if metric in work.metrics), TAKEN)
    row = row_of(work, video, closeness, {"missing": missing})
    made = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.timezone.utc)
    kept: dict[str, Any] = rounded({**row, "conditions": {**conditions(), "date": made.strftime("%Y-%m-%d")}})
    return kept
