"""`qvg bench codecs`: every method on the demo world and on synthetic tensors -> codecs.csv, codecs.html, settings.md; or on the
demo film -> films.csv."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..errors import ConfigError, MediaError, quoted, shown
from .films import (
    DEVELOPMENT_SCENE,
    FIRST_SCENE,
    FULL_FILMS,
    QUICK_FILMS,
    FilmCase,
    FilmJudge,
    exact_truth_db,
    film_cases,
    film_rows,
)
from .films import FULL_FRAMES as FILM_FRAMES
from .films import QUICK_FRAMES as QUICK_FILM_FRAMES
from .judge import Judge, WalkResult
from .methods import METHODS, QUICK, REFERENCE, Method, choose
from .opening_rows import OpeningRow, opening_row, row_text, summary, write_openings
from .openings import DEVELOPMENT_SEED, SHOWN_SEED, Scene, scenes
from .page import write_page
from .probes import Probe, probe
from .rows import Measured, row, write_csv
from .settings import write_settings
from .walks import FIRST_SEED, PATHS, Case, Walker, cases

FULL_WORLDS, FULL_FRAMES = 8, 70
MOST_JOBS = 256
MOST_WORLDS = 1000  # more than anybody has months for
QUICK_WORLDS, QUICK_FRAMES = 2, 54
_OUTLIERS = 0.01

PARTS = ("walks", "openings")
QUICK_SCENARIOS = ("ordinary", "black", "fade", "cut")
FULL_OPENING_WORLDS, QUICK_OPENING_WORLDS = 4, 1

MODELS = ("world", "film")

# Where results are kept, which walk or film, and with which method; without one, the exact cache.
Job = tuple[Path, Case | Scene | FilmCase, Method | None]


def bench_codecs(
    out: Path,
    quick: bool = False,
    worlds: int | None = None,
    names: Sequence[str] = (),
    jobs: int = 1,
    parts: Sequence[str] = PARTS,
    scenarios: Sequence[str] = (),
    development: bool = False,
) -> int:
    """Measure and write. What is finished is kept in `out/walks`, so a broken-off run goes on there. -> exit code."""
    _check_counts(worlds, jobs)
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"part is {quoted(part)}, but must be one of {', '.join(PARTS)}; leave it out for both")
    known = list(names) or list(QUICK)
    methods = choose(list(names) or (list(QUICK) if quick else [method.name for method in METHODS]))
    count = worlds or (QUICK_OPENING_WORLDS if quick else FULL_OPENING_WORLDS)
    chosen = tuple(scenarios) or (QUICK_SCENARIOS if quick else ())
    stage = scenes(count, chosen, DEVELOPMENT_SEED if development else SHOWN_SEED)
    if "walks" in parts:
        _require_matplotlib()
    _make_folder(out, "walks")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    with _disk_may_be_full(out):
        if "openings" in parts:
            _bench_openings(choose(known), stage, out, jobs)
        if "walks" in parts:
            walks = cases(
                worlds or (QUICK_WORLDS if quick else FULL_WORLDS),
                1 if quick else len(PATHS),
                QUICK_FRAMES if quick else FULL_FRAMES,
                DEVELOPMENT_SEED if development else FIRST_SEED,
            )
            _bench_walks(methods, walks, out, quick, jobs)
    return 0


def bench_films(
    out: Path,
    quick: bool = False,
    films: int | None = None,
    names: Sequence[str] = (),
    jobs: int = 1,
    development: bool = False,
) -> int:
    """The same on the demo film; what is finished is kept in `out/films`. -> exit code."""
    _check_counts(films, jobs)
    methods = choose(list(names) or (list(QUICK) if quick else [method.name for method in METHODS]))
    count, frames = (QUICK_FILMS, QUICK_FILM_FRAMES) if quick else (FULL_FILMS, FILM_FRAMES)
    cases = film_cases(films or count, frames, DEVELOPMENT_SCENE if development else FIRST_SCENE)
    _make_folder(out, "films")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    with _disk_may_be_full(out):
        judge = FilmJudge(out / "films")
        results = _walks(methods, cases, out / "films", jobs)
        measured = [Measured(method, walks) for method, walks in zip(methods, results, strict=True)]
        rows = film_rows(measured, next(entry for entry in measured if entry.method.name == REFERENCE), cases)
        write_csv(rows, out / "films.csv")
        _print_table(rows, FILM_COLUMNS)
        print(f"the exact cache is {exact_truth_db(judge, cases):.1f} dB from the real films")
        print(f"wrote {out / 'films.csv'}")
    return 0


def _check_counts(films: int | None, jobs: int) -> None:
    if films is not None and not 1 <= films <= MOST_WORLDS:
        raise ConfigError(
            f"worlds is {shown(films, 20)}, but 1 to {MOST_WORLDS} can be walked through; leave it out for {FULL_WORLDS}"
        )
    if not 1 <= jobs <= MOST_JOBS:
        raise ConfigError(f"jobs is {shown(jobs, 20)}, but 1 to {MOST_JOBS} processes can work; leave it out for 1")


def _bench_openings(methods: Sequence[Method], stage: Sequence[Scene], out: Path, jobs: int) -> None:
    """Prints a row when it is there; the reference is the first method of every scene."""
    work: list[Job] = [(out / "walks", scene, method) for scene in stage for method in methods]
    rows: list[OpeningRow] = []
    reference: WalkResult | None = None
    for (_, scene, method), result in zip(work, _in_order(work, jobs), strict=True):
        assert isinstance(scene, Scene) and method is not None and result is not None
        reference = result if method.name == REFERENCE or reference is None else reference
        rows.append(opening_row(method.name, scene, result, reference))
        print(row_text(rows[-1]), flush=True)
    print(summary(rows))
    write_openings(rows, out / "openings.csv")
    print(f"wrote {out / 'openings.csv'}")


def _bench_walks(methods: Sequence[Method], walks: Sequence[Case], out: Path, quick: bool, jobs: int) -> None:
    results, (plain, outlying) = _walks(methods, walks, out / "walks", jobs), _probes(methods, quick)
    measured = [Measured(*parts) for parts in zip(methods, results, plain, outlying, strict=True)]
    reference = next(entry for entry in measured if entry.method.name == REFERENCE)
    rows = [row(entry, reference, walks) for entry in measured]

    write_csv(rows, out / "codecs.csv")
    write_settings(rows, out / "settings.md")
    write_page(rows, measured, walks, Walker(out / "walks"), out / "codecs.html", _conditions())
    _print_table(rows, WORLD_COLUMNS)
    for name in ("codecs.csv", "codecs.html", "settings.md"):
        print(f"wrote {out / name}")


@contextmanager
def _disk_may_be_full(out: Path) -> Iterator[None]:
    """What the disk refuses, walks and tables, is a MediaError in one sentence."""
    try:
        yield
    except (MediaError, ConnectionError):
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MediaError(f"{out} could not be written to ({reason}); free space, the walks so far are kept there") from error


def _require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise MediaError("matplotlib is not installed, and the page has pictures; pip install matplotlib, or the extra [bench]")


def _make_folder(out: Path, inside: str) -> None:
    try:
        (out / inside).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"{out} cannot be made ({error.strerror}); choose another --out") from error


def _walks(
    methods: Sequence[Method], walks: Sequence[Case] | Sequence[FilmCase], folder: Path, jobs: int
) -> list[list[WalkResult]]:
    """Results by method, then by case."""
    work: list[Job] = [(folder, case, method) for method in methods for case in walks]
    exact: list[Job] = [(folder, case, None) for case in walks]
    results: list[WalkResult] = []
    with tqdm(total=len(exact) + len(work), unit="walk", file=sys.stdout, ncols=100, mininterval=1) as bar:
        for result in _in_order([*exact, *work], jobs):
            results.extend([] if result is None else [result])
            bar.update()
    return [results[start : start + len(walks)] for start in range(0, len(results), len(walks))]


def _in_order(work: Sequence[Job], jobs: int) -> Iterator[WalkResult | None]:
    """Results in the order of the work, from this process or from several."""
    if jobs == 1:
        yield from map(_walk, work)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _one_thread) as pool:
        try:
            yield from pool.map(_walk, work)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    """Several processes with several threads each would only wait for one another."""
    torch.set_num_threads(1)


def _walk(job: Job) -> WalkResult | None:
    folder, case, method = job
    judge = _JUDGES.get(folder) or _JUDGES.setdefault(folder, (FilmJudge if isinstance(case, FilmCase) else Walker)(folder))
    if method is None:
        judge.exact(case)
        return None
    return judge.compare(case, method.config)


# One per process and folder: it keeps the model.
_JUDGES: dict[Path, Judge[Any]] = {}


def _probes(methods: Sequence[Method], quick: bool) -> tuple[list[Probe], list[Probe]]:
    """Without outliers and with 1 % of them. One span has 6,240 tokens here, so centroids are as many as the field uses."""
    seeds = (0,) if quick else (0, 1, 2, 3, 4)
    plain, outlying = [], []
    for method in tqdm(methods, desc="probes", unit="method", file=sys.stdout, ncols=100, mininterval=1):
        config = method.config
        if config.codec in ("qvg", "klt") and config.clusters != 1:
            config = config.with_changes(clusters=256, iterations=6)
        plain.append(probe(config, seeds))
        outlying.append(probe(config, seeds, outliers=_OUTLIERS))
    return plain, outlying


def _conditions() -> dict[str, str]:
    return {
        "device": f"cpu, {torch.get_num_threads()} thread per process, {platform.machine()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


_COLUMNS = ("preset", "bits_per_value", "bits_per_value_amortised", "cache_bytes", "psnr_db", "gain_db", "ssim")
WORLD_COLUMNS, FILM_COLUMNS = (*_COLUMNS, "attention_error"), (*_COLUMNS, "truth_db")


def _print_table(rows: Sequence[dict[str, object]], columns: Sequence[str]) -> None:
    cells = [columns, *(tuple(str(entry[column]) for column in columns) for entry in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
