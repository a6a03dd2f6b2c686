"""`qvg demo`: walk through a painted world three times with the same seed, and show what the memory costs and keeps.

Once with the exact cache, once with the 2-bit cache, once with an exact cache cut down to the 2-bit cache's bytes. Writes a
side-by-side video, one picture, `demo.json`, and prints a table. Finished frames reach the disk meanwhile (`unfinished.py`).
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..cache import KVCache
from ..cache.spec import CacheBytes
from ..camera import parse_path, visits, walk
from ..camera.paths import MAX_PATH_FRAMES
from ..config import QVGConfig
from ..errors import ConfigError, MediaError, one_line, shown
from ..files import written_whole
from ..media import side_by_side
from ..media.video_file import KeptVideo
from ..metrics import psnr_db, ssim
from ..models.demo_world import STEP_PIXELS, DemoWorld, DemoWorldConfig, DemoWorldDenoiser, load_demo_world
from ..models.demo_world.painted_map import JUDGED, MAP_PIXELS, paint
from ..sampling import Block, SamplerSettings, generate
from .plots import RunCurve, plot_demo
from .unfinished import Unfinished

# Once around a rectangle in 50 frames; 151 frames are three times around, back to where it began.
DEFAULT_PATH = "d-14,s-11,a-14,w-11"
DEFAULT_FRAMES = 151
DEFAULT_SEED = 1
GIVEN_FRAMES = 4
FRAMES_PER_SECOND = 10
# A place counts as visited again when the camera was elsewhere for so many frames.
VISIT_GAP_FRAMES = 12
MAX_SEED = 1 << 40
RUNS = ("exact", "qvg", "window")

# Spans of a real video hold 40,000 tokens, ours 64 per frame: fewer centroids, or codebooks would outweigh the codes.
SPAN_FRAMES = 16
EXACT = QVGConfig(codec="none", span_frames=SPAN_FRAMES)
QUANTIZED = QVGConfig(codec="qvg", bits=2, clusters=32, group_size=64, span_frames=SPAN_FRAMES, sink_frames=1, recent_frames=3)

Picture = NDArray[np.uint8]


@dataclass
class Run:
    """One walk and what it left behind."""

    name: str
    label: str
    config: QVGConfig
    frames: list[Picture] = field(default_factory=list)
    cache_bytes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    components: CacheBytes = field(default_factory=CacheBytes)
    workspace_bytes: int = 0


@dataclass(frozen=True)
class Walk:
    """Where the camera stands in each frame, and the world it walks through."""

    seed: int
    positions: NDArray[np.int64]

    @property
    def origins(self) -> list[list[tuple[float, float, float]]]:
        """One block per frame: (time, row, column) in tokens."""
        scale = STEP_PIXELS / DemoWorldConfig().patch_pixels
        return [[(0.0, float(row) * scale, float(col) * scale)] for row, col in self.positions]

    def given(self, model: DemoWorld) -> list[Tensor]:
        """The first frames as they really look. -> pictures [1, 1, 3, P, P] in -1..1."""
        pixels = model.config.picture_pixels
        world = torch.from_numpy(paint(self.seed, JUDGED)).permute(2, 0, 1) * 2 - 1
        corners = self.positions[:GIVEN_FRAMES] * STEP_PIXELS
        return [world[None, None, :, row : row + pixels, col : col + pixels] for row, col in corners.tolist()]


def plan_walk(path: str, frames: int, seed: int) -> Walk:
    """A walk from the middle of the map; it may leave the map, for only the given frames are looked up on it."""
    if frames < GIVEN_FRAMES + 1:
        raise ConfigError(
            f"frames is {frames}, but {GIVEN_FRAMES} are given and at least one must be generated; use {GIVEN_FRAMES + 1} or more"
        )
    if frames > MAX_PATH_FRAMES:
        raise ConfigError(
            f"frames is {shown(frames, 20)}, but a walk has at most {MAX_PATH_FRAMES}, which is hours of video; use fewer"
        )
    if not 0 <= seed < MAX_SEED:
        raise ConfigError(f"seed is {seed}, but must be a whole number from 0 to {MAX_SEED - 1}; choose one in that range")
    moves = parse_path(path)
    middle = (MAP_PIXELS // 2 - 32) // STEP_PIXELS
    return Walk(seed, walk(moves, frames, (middle, middle)))


def settings(seed: int) -> SamplerSettings:
    """Three steps. With more, unseen country is painted crisper, but a tiny difference in memory soon grows into another country,
    and PSNR against the exact run says little (4 seeds: 31 to 33 dB with three steps, 24 to 33 with four)."""
    return SamplerSettings(steps=3, seed=seed)


def demo(out: Path, frames: int = DEFAULT_FRAMES, seed: int = DEFAULT_SEED, path: str = DEFAULT_PATH) -> int:
    """Run all three walks and write everything to `out`. -> exit code (130 after Ctrl-C, with what there is so far kept)."""
    plan = plan_walk(path, frames, seed)
    make_folder(out)
    if "OMP_NUM_THREADS" not in os.environ:
        # Tensors this small gain little from a second thread, and on a busy machine two that wait for each other take far longer.
        torch.set_num_threads(1)
    model = load_demo_world()
    unfinished = Unfinished(out, [seed, plan.positions.tolist(), asdict(quantized_for(frames))], RUNS)

    def walk_all(runs: list[Run]) -> None:
        _warm_up(model)
        _walk_all(runs, plan, model, unfinished)

    results = Results(
        "walk.mp4", lambda runs: summarize(runs, plan, path), write_video, lambda runs, file: draw_picture(runs, plan, file)
    )
    return run_all(out, unfinished, walk_all, results)


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


def _walk_all(runs: list[Run], plan: Walk, model: DemoWorld, unfinished: Unfinished) -> None:
    """The three runs, each into `runs` as soon as it begins."""
    exact, qvg, window = RUNS
    _walk(begin(runs, Run(exact, "exact", EXACT)), plan, model, unfinished)
    quantized = begin(runs, Run(qvg, "QVG, 2 bits", quantized_for(len(plan.positions))))
    _walk(quantized, plan, model, unfinished)
    _walk(begin(runs, Run(window, "exact, same bytes", _window(model, quantized.cache_bytes[-1]))), plan, model, unfinished)


def quantized_for(frames: int) -> QVGConfig:
    """The 2-bit cache, with spans short enough that a short walk is encoded too."""
    exact_frames = QUANTIZED.sink_frames + QUANTIZED.recent_frames
    return QUANTIZED.with_changes(span_frames=min(SPAN_FRAMES, max(1, (frames - exact_frames) // 2)))


def begin(runs: list[Run], run: Run) -> Run:
    """Of the runs from now on, whatever becomes of it."""
    runs.append(run)
    return run


def _warm_up(model: DemoWorld) -> None:
    """One frame that nobody looks at, so that the first run does not pay for torch's start."""
    with KVCache(model.config.cache_spec(), EXACT, model.config.rope()) as cache:
        list(generate(DemoWorldDenoiser(model), cache, [[(0.0, 0.0, 0.0)]], settings(0)))


def _window(model: DemoWorld, budget_bytes: int) -> QVGConfig:
    """An exact cache that never holds more than `budget_bytes`: as many of the newest frames as fit."""
    per_frame = model.config.cache_spec().exact_bytes(1)
    # The window counts the frame being painted, which is not in memory yet.
    return EXACT.with_changes(span_frames=1, sink_frames=0, recent_frames=1, window_frames=max(2, budget_bytes // per_frame + 1))


def _walk(run: Run, plan: Walk, model: DemoWorld, unfinished: Unfinished) -> None:
    """Fill `run`, frame by frame, so that an interrupted walk keeps what it has."""
    earlier = unfinished.of(run.name)
    given = [*earlier.blocks, *plan.given(model)[len(earlier.blocks) :]]
    with KVCache(model.config.cache_spec(), run.config, model.config.rope()) as cache:
        blocks = generate(DemoWorldDenoiser(model), cache, plan.origins, settings(plan.seed), given)
        for block in kept_blocks(run, blocks, len(plan.positions), unfinished):
            run.frames.append(picture(block.latent))
            run.workspace_bytes = cache.workspace.nbytes


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


def picture(latent: Tensor) -> Picture:
    """[1, 1, 3, P, P] in -1..1 -> uint8 [P, P, 3]."""
    pixels: Picture = ((latent[0, 0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels


def _write_results(out: Path, runs: Sequence[Run], results: Results, interrupted: bool) -> bool:
    """Table, demo.json, video and picture, each on its own: one that fails does not take the others along. -> any failed."""
    runs = [run for run in runs if run.frames]
    if not runs:
        return False
    complete = len(runs) == 3 and not interrupted
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


def summarize(runs: Sequence[Run], plan: Walk, path: str) -> dict[str, Any]:
    """What demo.json holds. PSNR against exact is pooled over all generated frames; between visits it is the mean of pairs."""
    pairs = visits(plan.positions, VISIT_GAP_FRAMES)
    rows = summary_rows(runs, GIVEN_FRAMES, {"revisit_psnr_db": lambda run: revisit_psnr_db(run.frames, pairs)})
    return {"runs": rows, **conditions(), "seed": plan.seed, "path": path, "given_frames": GIVEN_FRAMES}


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


def draw_picture(runs: Sequence[Run], plan: Walk, path: Path) -> None:
    """Bytes and PSNR over time, and three moments of each run."""
    pairs = visits(plan.positions, VISIT_GAP_FRAMES)
    frames = len(plan.positions)
    # A visit late in the walk: what a memory has lost shows there.
    first, again = pairs[len(pairs) * 5 // 6] if pairs else (0, frames - 1)
    moments = [(first, "first visit"), (first + (again - first) // 4, "on the way"), (again, "the same place again")]
    plot_demo(run_curves(runs), path, moments, revisit_from=pairs[0][1] if pairs else None)


def run_curves(runs: Sequence[Run]) -> list[RunCurve]:
    """Bytes, and PSNR against the first of them."""
    exact = torch.from_numpy(np.stack(runs[0].frames))
    curves = []
    for run in runs:
        psnr = None if run is runs[0] else psnr_db(exact, torch.from_numpy(np.stack(run.frames))).tolist()
        curves.append(RunCurve(run.name, run.label, run.cache_bytes, psnr, run.frames))
    return curves


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
