"""`qvg demo`: walk through a painted world four times with the same seed, and show what the memory costs and keeps.

With the exact cache, with Quant VideoGen as published, with our default, and with an exact cache cut down to its bytes. Writes a
side-by-side video, one picture, `demo.json`, and prints a table. Finished frames reach the disk meanwhile (`unfinished.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..cache import KVCache
from ..camera import visits
from ..models.demo_world import DemoWorld, DemoWorldDenoiser, load_demo_world
from ..sampling import generate
from .memories import EXACT, RUNS, Memories, cut_to, memories
from .plots import plot_demo
from .run import Run, begin
from .runs import Results, kept_blocks, make_folder, run_all
from .summary import conditions, revisit_psnr_db, summary_rows
from .unfinished import Unfinished
from .video import run_curves, write_video
from .walk import (
    DEFAULT_FRAMES,
    DEFAULT_PATH,
    DEFAULT_SEED,
    GIVEN_FRAMES,
    VISIT_GAP_FRAMES,
    Walk,
    picture,
    plan_walk,
    settings,
)


def demo(out: Path, frames: int = DEFAULT_FRAMES, seed: int = DEFAULT_SEED, path: str = DEFAULT_PATH) -> int:
    """Walk four times and write everything to `out`. -> exit code (130 after Ctrl-C, with what there is so far kept)."""
    plan = plan_walk(path, frames, seed)
    make_folder(out)
    if "OMP_NUM_THREADS" not in os.environ:
        # Tensors this small gain little from a second thread, and on a busy machine two that wait for each other take far longer.
        torch.set_num_threads(1)
    model = load_demo_world()
    kept = memories(frames)
    unfinished = Unfinished(out, [seed, plan.positions.tolist(), *map(asdict, kept)], RUNS)

    def walk_all(runs: list[Run]) -> None:
        _warm_up(model)
        _walk_all(runs, kept, plan, model, unfinished)

    results = Results(
        "walk.mp4", lambda runs: summarize(runs, plan, path), write_video, lambda runs, file: draw_picture(runs, plan, file)
    )
    return run_all(out, unfinished, walk_all, results)


def _walk_all(runs: list[Run], kept: Memories, plan: Walk, model: DemoWorld, unfinished: Unfinished) -> None:
    """The four runs, each into `runs` as soon as it begins."""
    for name, config in zip(RUNS, kept, strict=False):
        _walk(begin(runs, name, config), plan, model, unfinished)
    window = cut_to(runs[-1].cache_bytes[-1], model.config.cache_spec().exact_bytes(1))
    _walk(begin(runs, RUNS[-1], window), plan, model, unfinished)


def _warm_up(model: DemoWorld) -> None:
    """One frame that nobody looks at, so that the first run does not pay for torch's start."""
    with KVCache(model.config.cache_spec(), EXACT, model.config.rope()) as cache:
        list(generate(DemoWorldDenoiser(model), cache, [[(0.0, 0.0, 0.0)]], settings(0)))


def _walk(run: Run, plan: Walk, model: DemoWorld, unfinished: Unfinished) -> None:
    """Fill `run`, frame by frame, so that an interrupted walk keeps what it has."""
    earlier = unfinished.of(run.name)
    given = [*earlier.blocks, *plan.given(model)[len(earlier.blocks) :]]
    with KVCache(model.config.cache_spec(), run.config, model.config.rope()) as cache:
        blocks = generate(DemoWorldDenoiser(model), cache, plan.origins, settings(plan.seed), given)
        for block in kept_blocks(run, blocks, len(plan.positions), unfinished):
            run.frames.append(picture(block.latent))
            run.workspace_bytes = cache.workspace.nbytes


def summarize(runs: Sequence[Run], plan: Walk, path: str) -> dict[str, Any]:
    """What demo.json holds. PSNR against exact is pooled over all generated frames; between visits it is the mean of pairs."""
    pairs = visits(plan.positions, VISIT_GAP_FRAMES)
    rows = summary_rows(runs, GIVEN_FRAMES, {"revisit_psnr_db": lambda run: revisit_psnr_db(run.frames, pairs)})
    return {"runs": rows, **conditions(), "seed": plan.seed, "path": path, "given_frames": GIVEN_FRAMES}


def draw_picture(runs: Sequence[Run], plan: Walk, path: Path) -> None:
    """Bytes and PSNR over time, and three moments of each run."""
    pairs = visits(plan.positions, VISIT_GAP_FRAMES)
    frames = len(plan.positions)
    # A visit late in the walk: what a memory has lost shows there.
    first, again = pairs[len(pairs) * 5 // 6] if pairs else (0, frames - 1)
    moments = [(first, "first visit"), (first + (again - first) // 4, "on the way"), (again, "the same place again")]
    plot_demo(run_curves(runs), path, moments, revisit_from=pairs[0][1] if pairs else None)
