"""The runs of a demo: made one after the other, kept as they come, and written out however they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import MediaError, one_line
from ..files import written_whole
from ..sampling import Block
from .memories import RUNS
from .run import Run
from .summary import table
from .unfinished import Unfinished


@dataclass(frozen=True)
class Results:
    """What is written of the runs: into demo.json, `video` and demo.png."""

    video: str
    summarize: Callable[[Sequence[Run]], dict[str, Any]]
    film: Callable[[Sequence[Run], Path], None]
    draw: Callable[[Sequence[Run], Path], None]


def run_all(out: Path, unfinished: Unfinished, make_all: Callable[[list[Run]], None], results: Results) -> int:
    """Make all runs and write what there is of them, however they end. -> exit code"""
    runs: list[Run] = []
    interrupted = False
    print(one_line(_where(unfinished)))
    try:
        make_all(runs)
    except KeyboardInterrupt:
        interrupted = True
    except Exception:
        _write_results(out, runs, results, True)  # what is finished is not lost with what failed
        raise
    failed = _write_results(out, runs, results, interrupted)
    if not interrupted and not failed:
        unfinished.remove()
    elif unfinished.keep():
        print(f"the frames so far are in {one_line(unfinished.folder)}; the same command goes on behind them")
    return 130 if interrupted else int(failed)


def _where(unfinished: Unfinished) -> str:
    if unfinished.frames:
        return f"going on behind {unfinished.frames} finished frames in {unfinished.folder}"
    return f"finished frames are kept in {unfinished.folder} until the results are there"


def kept_blocks(run: Run, blocks: Iterator[Block], total: int, unfinished: Unfinished) -> Iterator[Block]:
    """The blocks as they come, `total` in all, with a bar; what they cost goes to `run`, what is new to the disk."""
    earlier, finished = unfinished.of(run.name), unfinished.begin(run.name)
    with tqdm(total=total, desc=f"{run.label:18}", unit="block", file=sys.stdout, mininterval=0.5, ncols=100) as bar:
        for block in blocks:
            frames = block.latent.shape[1]
            seconds = block.seconds
            if block.index < len(earlier.blocks):
                seconds = float(earlier.facts[block.index]["seconds"])  # what painting it took then
            else:
                finished.add(block.latent, seconds=seconds)
            run.cache_bytes += [block.cache.total] * frames
            run.seconds += [seconds / frames] * frames
            run.components = block.cache
            bar.set_postfix_str(f"{block.seconds / frames:.2f} s/frame, cache {block.cache.total / 1e6:.1f} MB", refresh=False)
            yield block
            bar.update()


def _write_results(out: Path, runs: Sequence[Run], results: Results, interrupted: bool) -> bool:
    """Table, demo.json, video and picture, each on its own: one that fails does not take the others along. -> any failed."""
    runs = [run for run in runs if run.frames]
    if not runs:
        return False
    complete = len(runs) == len(RUNS) and not interrupted
    summary = results.summarize(runs)
    print(table(summary))
    failed = False
    steps: list[tuple[str, Callable[[Path], None]]] = [
        ("demo.json", lambda file: _write_json(summary, file)),
        (results.video, lambda file: results.film(runs, file)),
    ]
    if complete:
        steps.append(("demo.png", lambda file: results.draw(runs, file)))
    for name, write in steps:
        try:
            write(out / name)
            print(f"wrote {one_line(out / name)}" + (" (up to where it was interrupted)" if interrupted else ""))
        except (MediaError, OSError) as error:
            failed = True
            print(f"error: {one_line(error)}", file=sys.stderr)
    return failed


def _write_json(summary: dict[str, Any], path: Path) -> None:
    try:
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise MediaError(f"{path} could not be written ({error.strerror}); free space or choose another --out") from error


def make_folder(out: Path) -> None:
    """Raises MediaError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"folder {out} cannot be made ({error.strerror}); choose another --out") from error
