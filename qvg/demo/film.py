"""`qvg demo --film`: a film four times with the same seed: exact, as published, with our default, and exact cut to its bytes.

The film model has what the demo world lacks: time in its positions, blocks of three frames, a prompt, things that move. One turn
of the camera is given as it really looks, so how the film goes on is known, and the video shows that beside the four.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cache import KVCache
from ..config import QVGConfig
from ..errors import ConfigError, shown
from ..metrics import psnr_db
from ..models.demo_film.directions import BLOCK_FRAMES, TURN_COLUMNS, Direction, View
from ..models.demo_film.pictures import PictureCodec
from ..models.demo_film.weights import WEIGHTS, load_demo_film
from ..models.wan.network import CausalWan
from ..sampling.film import FilmPlan, FilmPrompts, given_blocks, roll_out
from .memories import RUNS, cut_to, memories
from .plots import plot_demo
from .run import Run, begin
from .runs import Results, kept_blocks, make_folder, run_all
from .summary import conditions, summary_rows
from .unfinished import Unfinished
from .video import run_curves, write_video
from .walk import MAX_SEED, Picture

DEFAULT_FRAMES = 3 * TURN_COLUMNS
GIVEN_FRAMES = TURN_COLUMNS
MOST_FRAMES = 60 * TURN_COLUMNS
SPAN_FRAMES = 6 * BLOCK_FRAMES  # of 64 tokens, as in the demo world 16
DIFFERENT = (
    "the demo film is a causal Wan: unlike the demo world it has time in its positions, blocks of 3 frames and a prompt; "
    f"{GIVEN_FRAMES} frames are given, one turn of the camera"
)


def plan_film(frames: int, seed: int) -> FilmPlan:
    """The camera turns right by day. Raises ConfigError for what is no film."""
    least = GIVEN_FRAMES + BLOCK_FRAMES
    if frames % BLOCK_FRAMES or not least <= frames <= MOST_FRAMES:
        raise ConfigError(
            f"frames is {shown(frames, 20)}, but a film has a multiple of {BLOCK_FRAMES} from {least} to {MOST_FRAMES}, of which "
            f"{GIVEN_FRAMES} are given; leave it out for {DEFAULT_FRAMES}"
        )
    if not 0 <= seed < MAX_SEED:
        raise ConfigError(f"seed is {seed}, but must be a whole number from 0 to {MAX_SEED - 1}; choose one in that range")
    return FilmPlan(seed, View(0, 1, 1.0), (Direction("turn right", "day"),) * (frames // BLOCK_FRAMES))


def film_demo(out: Path, frames: int = DEFAULT_FRAMES, seed: int = 1) -> int:
    """Make all three films and write everything to `out`. -> exit code (130 after Ctrl-C, with what there is so far kept)."""
    plan = plan_film(frames, seed)
    model, codec = load_demo_film(WEIGHTS)
    make_folder(out)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    kept = memories(frames, SPAN_FRAMES, BLOCK_FRAMES)
    unfinished = Unfinished(out, ["film", seed, frames, *map(asdict, kept)], RUNS, WEIGHTS)
    with torch.inference_mode():
        real = decoded(codec, codec.encode(plan.pictures()))
    print(DIFFERENT)

    def make_all(runs: list[Run]) -> None:
        film = _Films(model, codec, plan, seed, unfinished)
        for name, config in zip(RUNS, kept, strict=False):
            film.make(begin(runs, name, config))
        film.make(begin(runs, RUNS[-1], film.window(runs[-1].cache_bytes[-1])))

    shown_beside = Run("real", "how it really goes on", kept.exact, frames=real)
    results = Results(
        "film.mp4",
        lambda runs: _summary(runs, plan, real),
        lambda runs, file: write_video([shown_beside, *runs], file, scale=2),
        _draw,
    )
    return run_all(out, unfinished, make_all, results)


def decoded(codec: PictureCodec, latents: Tensor) -> list[Picture]:
    """[F, 16, 16, 16] -> uint8 [128, 128, 3] each."""
    return list(((codec.decode(latents).movedim(1, -1) + 1) * 127.5).round().to(torch.uint8).numpy())


class _Films:
    """One plan with several memories."""

    def __init__(self, model: CausalWan, codec: PictureCodec, plan: FilmPlan, seed: int, unfinished: Unfinished):
        self._model, self._codec, self._plan, self._seed, self._unfinished = model, codec, plan, seed, unfinished
        self._prompts = FilmPrompts(model)
        with torch.inference_mode():
            self._given = given_blocks(plan, codec, GIVEN_FRAMES // BLOCK_FRAMES)
        self._frame_bytes = 0

    def make(self, run: Run) -> None:
        """Fill `run`, block by block, so that an interrupted film keeps what it has."""
        earlier, caches = self._unfinished.of(run.name).blocks, list[KVCache]()
        given = [*earlier, *self._given[len(earlier) :]]
        directions = self._plan.directions
        blocks = roll_out(self._model, self._prompts, directions, run.config, given, self._seed, caches=caches)
        for block in kept_blocks(run, blocks, len(directions), self._unfinished):
            with torch.inference_mode():
                run.frames += decoded(self._codec, block.latent[0])
            run.workspace_bytes = caches[0].workspace.nbytes
            self._frame_bytes = caches[0].spec.exact_bytes(1)

    def window(self, budget_bytes: int) -> QVGConfig:
        """See `cut_to`."""
        return cut_to(budget_bytes, self._frame_bytes, BLOCK_FRAMES)


def _summary(runs: Sequence[Run], plan: FilmPlan, real: Sequence[Picture]) -> dict[str, Any]:
    """What demo.json holds. PSNR against exact is pooled over all generated frames, against the real film the mean of them."""

    def to_truth(run: Run) -> float | None:
        made = run.frames[GIVEN_FRAMES:]
        if not made:
            return None
        pair = [torch.from_numpy(np.stack(part)) for part in (real[GIVEN_FRAMES : GIVEN_FRAMES + len(made)], made)]
        return round(float(psnr_db(*pair).mean()), 3)

    rows = summary_rows(runs, GIVEN_FRAMES, {"truth_psnr_db": to_truth})
    prompt = plan.directions[0].text
    return {"runs": rows, **conditions(), "seed": plan.scene, "prompt": prompt, "given_frames": GIVEN_FRAMES, "about": DIFFERENT}


def _draw(runs: Sequence[Run], path: Path) -> None:
    """Bytes and PSNR over time, and the same place three times."""
    frames = len(runs[0].frames)
    again = frames - 1 - (frames - 1 - GIVEN_FRAMES) // 4
    first = again % TURN_COLUMNS
    middle = (first + again) // 2
    moments = [(first, "as it is given"), (middle, "on the way"), (again, "the same place again")]
    plot_demo(run_curves(runs), path, moments, revisit_from=GIVEN_FRAMES)
