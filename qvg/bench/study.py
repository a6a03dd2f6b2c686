"""`qvg bench study`: the 33 methods on the demo world or the demo film, corrected, as published, by the node -> study.csv."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import ConfigError, MediaError, quoted, shown
from ..files import written_whole
from ..models.demo_film.directions import BLOCK_FRAMES
from ..study.published_plan import published_ratio
from ..study.registry import STUDY, study_method
from ..study.run import StudyRun
from .films import FILM, FIRST_SCENE, QUICK_FRAMES, FilmCase, FilmJudge
from .judge import Instrument, Judge, Settings, WalkResult
from .methods import METHODS, SHIPPED, in_form
from .statistics import bootstrap_mean
from .walks import DEMO_WORLD, PATHS, Walker, cases

FRAMES, WORLDS = 54, 2
MOST_WORLDS = 1000
# "node": corrected, as QVG KV Cache sets it, which keeps the first frame and the newest three exact where a method does not
# decide itself what is exact.
FORMS = ("corrected", "published", "node")
MODELS = ("world", "film")
# What a scene is seen by, where a world has its paths: where the camera goes after its first turn, and the light.
SCENE_PATHS = (("on", "day"), ("back", "night"))
# Beside the study's rows: what others ship, and what they are all measured against.
BESIDE = ("qvg, asymmetric", "balanced", *(method.name for method in SHIPPED))


def bench_study(
    out: Path,
    names: Sequence[str] = (),
    forms: Sequence[str] = FORMS,
    worlds: int = WORLDS,
    paths: int = 1,
    frames: int | None = None,
    model: str = "world",
) -> int:
    """Walk world by world, so that a run that is broken off has every method's first worlds; what is finished is kept in
    `out/walks`. study.csv is written after every method, with the rows that are there. -> exit code"""
    for name, value, most in (("worlds", worlds, MOST_WORLDS), ("paths", paths, len(PATHS))):
        if not 1 <= value <= most:
            raise ConfigError(f"{name} is {shown(value, 20)}, but 1 to {most} can be walked; choose one in that range")
    if model not in MODELS:
        raise ConfigError(f"model is {quoted(model)}, but must be one of {', '.join(MODELS)}; leave it out for the world")
    for form in forms:
        if form not in FORMS:
            raise ConfigError(f"form is {quoted(form)}, but must be one of {', '.join(FORMS)}; leave it out for all")
    work = chosen(names, forms)
    try:
        (out / "walks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"{out} cannot be made ({error.strerror}); choose another --out") from error
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    if model == "film":
        work = {key: settings for key, settings in work.items() if not (isinstance(settings, StudyRun) and settings.method.reuse)}
    judge, instrument, walks = _instrument(model, out / "walks", worlds, paths, frames)
    found: dict[tuple[str, str], dict[Any, WalkResult]] = {key: {} for key in work}
    with tqdm(total=len(walks) * len(work), unit="walk", file=sys.stdout, ncols=100, mininterval=1) as bar:
        for case in walks:
            for key, settings in work.items():
                same = settings.same_as if isinstance(settings, StudyRun) else settings
                found[key][case] = judge.compare(case, same)
                write_rows(found, out / "study.csv", instrument, judge.weights)
                bar.update()
    print(f"wrote {out / 'study.csv'}")
    return 0


def _instrument(
    model: str, folder: Path, worlds: int, paths: int, frames: int | None
) -> tuple[Judge[Any], Instrument, Sequence[Any]]:
    """What videos are made by, and which."""
    if model == "film":
        if frames is not None and (frames <= FILM.given_frames or frames % BLOCK_FRAMES):
            raise ConfigError(
                f"frames is {shown(frames, 20)}, but a film gives {FILM.given_frames} and goes on by {BLOCK_FRAMES}; "
                f"use a multiple of {BLOCK_FRAMES} above {FILM.given_frames}"
            )
        return FilmJudge(folder), FILM, scene_cases(worlds, paths, frames or QUICK_FRAMES)
    return Walker(folder), DEMO_WORLD, cases(worlds, paths, frames or FRAMES)


def scene_cases(scenes: int, paths: int, frames: int) -> list[FilmCase]:
    """Scenes that were not trained on, each on every path, the noise by the scene's number: the cases of `qvg study`."""
    return [
        FilmCase(scene, path, frames, light, noise=scene)
        for scene in range(FIRST_SCENE, FIRST_SCENE + scenes)
        for path, light in SCENE_PATHS[:paths]
    ]


def chosen(names: Sequence[str], forms: Sequence[str]) -> dict[tuple[str, str], Settings]:
    """By name and form what is walked: the study's methods, and the rows beside them. ConfigError for a name that is neither."""
    others = {method.name: method.config for method in METHODS if method.name in BESIDE}
    work: dict[tuple[str, str], Settings] = {}
    for name in names or [*others, *(method.name for method in STUDY)]:
        if name in others:
            work[name, "shipped"] = others[name]
            continue
        work |= {(name, form): in_form(study_method(name), form) for form in forms}
    return work


def study_row(name: str, form: str, results: dict[Any, WalkResult], instrument: Instrument, weights: str) -> dict[str, Any]:
    """One method in one form, over the walks or films that it has made. `revisit_db` of a film is against the real one;
    `weights`: the SHA-256 of the model's file, of which a row has the beginning."""
    given, walks = instrument.given_frames, list(results.values())
    frames = {case.frames for case in results}
    psnr = bootstrap_mean([walk.psnr_db(given) for walk in walks])
    exact = instrument.spec.exact_bytes(max(frames))
    size = float(np.mean([sum(walk.bytes.values()) for walk in walks]))
    half = (given + max(frames)) // 2
    study = None if form == "shipped" else study_method(name)
    return {
        "model": instrument.name,
        "method": name,
        "form": form,
        "ratio": round(exact / size, 3),
        "bits_per_value": round(16 * size / exact, 3),
        "published_ratio": "" if study is None or study.published_ratio is None else study.published_ratio,
        "published_ratio_counted": "" if study is None else round(published_ratio(study), 3),
        "psnr_db": round(psnr.mean, 3),
        "psnr_db_low": round(psnr.low, 3),
        "psnr_db_high": round(psnr.high, 3),
        "psnr_db_first_half": round(float(np.mean([walk.psnr_db(given, half) for walk in walks])), 3),
        "psnr_db_second_half": round(float(np.mean([walk.psnr_db(half, None) for walk in walks])), 3),
        "ssim": round(float(np.mean([np.mean(walk.similarity[given:]) for walk in walks])), 4),
        "revisit_db": round(float(np.mean([walk.revisit_db for walk in walks if walk.revisit_db is not None] or [np.nan])), 3),
        "first_divergent_frame": float(np.median([walk.first_divergent_frame() for walk in walks])),
        "cache_bytes": round(size),
        "peak_cache_bytes": max(walk.peak_bytes for walk in walks),
        "worlds": len({case.seed for case in results}),
        "paths": len({case.path for case in results}),
        "frames": max(frames),
        "seeds": " ".join(str(seed) for seed in sorted({case.seed for case in results})),
        "seconds_per_frame": round(float(np.mean([walk.seconds_per_frame for walk in walks])), 3),
        "weights": weights[:12],
    }


def write_rows(found: dict[tuple[str, str], dict[Any, WalkResult]], path: Path, instrument: Instrument, weights: str) -> None:
    """Those that have at least one walk. The file appears whole or not at all."""
    rows = [study_row(*key, results, instrument, weights) for key, results in found.items() if results]
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
