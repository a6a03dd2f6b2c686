"""One video of a plan, from its names to its row: what every engine does, wherever it runs."""

from __future__ import annotations

import datetime
import io
import os
import platform
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import MediaError
from ..media import VideoWriter
from .choices import choices
from .perceptual import perceptual
from .phases import PhaseWatch
from .plan import Case, StudyPlan, Target
from .store import ROW_FORMAT, Store, key, version
from .targets import maker
from .videos import Pictures, Video, closeness

_DIGITS = {"psnr_db": 2, "ssim": 4, "curve": 4}


@dataclass(frozen=True)
class Job:
    """One video that is to be made. Holds all that a machine elsewhere needs to make it."""

    target: Target
    case: Case
    method: str
    key: str
    version: str
    metrics: tuple[str, ...]
    window_frames: int

    @property
    def name(self) -> str:
        """For people."""
        prompt = self.case.prompt if len(self.case.prompt) <= 30 else f"{self.case.prompt[:27]}..."
        return f"{self.target.name}, {self.method}, {prompt}, seed {self.case.seed}, {self.case.frames} frames"


@dataclass(frozen=True)
class Outcome:
    """A row, the video that people see, and, of the exact method, its pictures."""

    row: dict[str, Any]
    video: bytes
    exact: bytes | None = None


@dataclass(frozen=True)
class Batch:
    """Jobs that are compared with the same exact video, which may be there already."""

    exact: Job
    others: tuple[Job, ...]


def job(plan: StudyPlan, case: Case, method: str) -> Job:
    """One of a plan's."""
    target = plan.target(case.target)
    name = key(plan, target, case, choices()[method])
    return Job(target, case, method, name, version(target.kind), plan.metrics, plan.window_frames)


def batches(plan: StudyPlan, store: Store, shard: tuple[int, int] = (1, 1)) -> list[Batch]:
    """What is still to be made, exact videos first; of `shard` (i, n) every n-th case. One that two methods share comes once."""
    found = []
    for number, (case, methods) in enumerate(plan.cases()):
        if number % shard[1] != shard[0] - 1:
            continue
        jobs = {each.key: each for each in (job(plan, case, method) for method in methods)}
        (exact, *others) = jobs.values()
        missing = tuple(each for each in others if not store.has(each.key, each.version))
        if missing or not store.has(exact.key, exact.version):
            found.append(Batch(exact, missing))
    return found


def check(plan: StudyPlan) -> None:
    """ConfigError for what no target could make, before anything is made."""
    for target in plan.targets:
        made_by = maker(target)
        for case, _ in plan.cases():
            if case.target == target.name:
                made_by.check(case)


def perform(work: Job, exact: bytes | None, server: str = "") -> Outcome:
    """Make one video and say what it is beside the exact one, whose packed pictures are `exact`; None where this is that one."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # tensors of small models gain little from a second thread
    choice, made_by = choices()[work.method], maker(work.target)
    watch, started = PhaseWatch(made_by.device), time.process_time()
    with watch:
        video = made_by.make(work.case, choice, watch, server)
    processor_seconds = time.process_time() - started
    reference = video.pictures if exact is None else unpacked(exact)
    shown = encoded(video)
    with tempfile.TemporaryDirectory(prefix="qvg-study-") as folder:
        file = Path(folder) / "video.mp4"
        file.write_bytes(shown)
        more = perceptual(reference, video.pictures, video.given_frames, file if shown else None, work.metrics)
    video.memory = video.memory or watch.memory()
    video.seconds = dict(video.seconds or watch.seconds)
    row = row_of(work, video, closeness(reference, video.pictures, video.given_frames, work.window_frames), more)
    row["seconds"]["processor"] = processor_seconds  # of this process: what other programs on the machine do not change
    return Outcome(rounded(row), shown, packed(video.pictures) if exact is None else None)


def row_of(work: Job, video: Video, closeness: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """A row, not yet rounded, of a video whose memory and seconds are filled in."""
    size, seconds = sum(video.components.values()), dict(video.seconds or {})
    generated = len(video.pictures) - video.given_frames
    if "denoise" in seconds:
        seconds.setdefault("per_generated_frame", (seconds["denoise"] + seconds.get("encode", 0.0)) / max(1, generated))
    return {
        "format": ROW_FORMAT,
        "version": work.version,
        "key": work.key,
        "target": {"name": work.target.name, "kind": work.target.kind},
        "case": {"prompt": work.case.prompt, "seed": work.case.seed, "frames": work.case.frames},
        "given_frames": video.given_frames,
        "pictures": list(video.pictures.shape),
        **closeness,
        "curves": {**closeness["curves"], "cache_bytes": video.cache_bytes},
        "visits_db": video.visits_db,
        "truth_db": video.truth_db,
        "bytes": {
            "components": video.components,
            "beside": video.beside,
            "cache": size,
            "peak_cache": video.peak_cache_bytes,
            "exact": video.exact_bytes,
            "ratio": video.exact_bytes / size if size else None,
        },
        "memory": video.memory,
        "seconds": seconds,
        "perceptual": more,
        "latents": video.latents_digest,
        "fps": video.fps,
        "remarks": video.remarks,
        "conditions": conditions(),
    }


def conditions() -> dict[str, Any]:
    """Where and when it was made."""
    cuda, threads = torch.cuda.is_available(), torch.get_num_threads()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {threads} thread{'s' * (threads > 1)}, {platform.machine()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def rounded(value: Any, name: str = "") -> Any:
    """Numbers as they are shown, so that rows are small: decibels to hundredths, all else to four digits behind the point."""
    if isinstance(value, dict):
        return {each: rounded(inner, each) for each, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, name) for inner in value]
    return round(value, 2 if name == "psnr_db" else 4) if isinstance(value, float) else value


def packed(pictures: Pictures) -> bytes:
    """Without loss."""
    into = io.BytesIO()
    np.savez_compressed(into, pictures=pictures)
    return into.getvalue()


def unpacked(content: bytes) -> Pictures:
    """See `packed`. MediaError for what is damaged."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return np.asarray(file["pictures"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise MediaError(f"an exact video in the folder exact/ is damaged ({error}); remove it and resume") from None


def encoded(video: Video) -> bytes:
    """An mp4, as large as the pictures."""
    height, width = video.pictures.shape[1:3]
    with tempfile.TemporaryDirectory(prefix="qvg-study-") as folder:
        path = Path(folder) / "video.mp4"
        with VideoWriter(path, width, height, video.fps, crf=20) as file:
            for picture in video.pictures:
                file.write(picture)
        return path.read_bytes()


def counted(work: Iterable[Batch], store: Store) -> int:
    """Videos that are still to be made."""
    return sum(len(each.others) + (not store.has(each.exact.key, each.exact.version)) for each in work)
