"""What merging tokens (TempCache) gives and costs on the demo world, against the exact cache.

    python benchmarks/merge.py return [--save]    a loop of 120 frames whose first lap is the exact run's, then 29 of its own
    python benchmarks/merge.py laps [--save]      a loop of 50 frames, walked freely for 600: bytes, visits, seconds a frame
    python benchmarks/merge.py country [--save]   a path that never comes back, with real pictures: rows a token, bytes
    python benchmarks/merge.py change [--save]    the camera stands still and the picture changes, wholly or in a quarter

Each takes `--worlds 1,2,3` (seeds of maps that were not trained on) and `--ways` (codec:merge:key, such as none:0.99:mean). A row
has PSNR against the exact run in dB of the mean squared error of all judged frames, bytes as counted over those of 16 bits per
value, and the conditions. Why a lap is given: a walk through new country soon differs, whatever is remembered.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import bootstrap_package  # noqa: F401
from comfyui_qvg.qvg import PRESETS, KVCache, QVGConfig
from comfyui_qvg.qvg.camera import visits
from comfyui_qvg.qvg.demo.summary import revisit_psnr_db
from comfyui_qvg.qvg.demo.walk import VISIT_GAP_FRAMES, Walk, picture, plan_walk, settings
from comfyui_qvg.qvg.models.demo_world import STEP_PIXELS, DemoWorld, DemoWorldDenoiser, load_demo_world
from comfyui_qvg.qvg.models.demo_world.painted_map import MAP_PIXELS, paint
from comfyui_qvg.qvg.sampling import generate
from rows import conditions, report

RETURN, RETURN_FRAMES, RETURN_GIVEN = "d-40,s-20,a-40,w-20", 150, 121
# The exact walk is judged by its first six laps: the last six would take most of an hour.
LAPS, LAPS_FRAMES, EXACT_FRAMES = "d-14,s-11,a-14,w-11", 601, 301
WORLDS = (880011, 880012, 880013)
# Keys kept as they were rotated are read in less than half the time; over a walk of its own that is the same exact cache.
ROTATED = PRESETS["exact"].with_changes(keys="after_rope")
Pictures = NDArray[np.uint8]


@dataclass
class Walked:
    """One walk: pictures [F, P, P, 3], bytes and seconds after each frame, rows and the tokens that they stand for."""

    pictures: Pictures
    bytes: list[int]
    seconds: list[float]
    rows: int | None
    tokens: int

    def facts(self, model: DemoWorld, frames: int) -> dict[str, Any]:
        """Of the end of the walk."""
        share = self.bytes[-1] / model.config.cache_spec().exact_bytes(frames)
        facts: dict[str, Any] = {"bytes": self.bytes[-1], "bytes_of_exact": round(share, 5)}
        return facts | ({} if self.rows is None else {"rows": self.rows, "rows_per_token": round(self.rows / self.tokens, 4)})


def config_of(way: str) -> QVGConfig:
    """codec:merge:key"""
    name, merge, key = way.split(":")
    base = PRESETS["exact" if name == "none" else name]
    return base if float(merge) == 0 else base.with_changes(merge=float(merge), merge_key=key, span_frames="auto")


def walked(model: DemoWorld, plan: Walk, config: QVGConfig, given: Sequence[Tensor]) -> Walked:
    """A walk with one kind of memory; `given` pictures are taken as they are."""
    pictures, sizes, seconds = [], [], []
    with KVCache(model.config.cache_spec(), config, model.config.rope()) as cache:
        for block in generate(DemoWorldDenoiser(model), cache, plan.origins, settings(plan.seed), given, verify=False):
            pictures.append(picture(block.latent))
            sizes.append(block.cache.total)
            seconds.append(block.seconds)
        return Walked(np.stack(pictures), sizes, seconds, cache.merged_rows, cache.layout.merged * cache.spec.tokens_per_frame)


def as_given(pictures: Pictures) -> list[Tensor]:
    """Pictures of an earlier walk, [1, 1, 3, P, P] in -1..1."""
    return list(torch.from_numpy(pictures).permute(0, 3, 1, 2)[:, None, None].float() / 127.5 - 1)


def psnr_db(one: Pictures, other: Pictures) -> float:
    """Of the mean squared error of all frames, 100 at most."""
    error = float(np.mean(((one.astype(np.float64) - other) / 255) ** 2))
    return round(min(100.0, -10 * float(np.log10(max(error, 1e-10)))), 2)


def revisits_db(plan: Walk, pictures: Pictures, first: int, last: int) -> float | None:
    """PSNR between visits whose later one is among frames first to last."""
    pairs = [pair for pair in visits(plan.positions, VISIT_GAP_FRAMES) if first <= pair[1] < last]
    found = revisit_psnr_db(list(pictures), pairs)
    return None if found is None else round(found, 2)


def coming_back(model: DemoWorld, world: int, ways: Sequence[str]) -> list[dict[str, Any]]:
    """See the module docstring, `return`."""
    plan = plan_walk(RETURN, RETURN_FRAMES, world)
    exact = walked(model, plan, PRESETS["exact"], plan.given(model))
    given = [*plan.given(model), *as_given(exact.pictures)[len(plan.given(model)) : RETURN_GIVEN]]
    rows = []
    for way in ways:
        found, judged = walked(model, plan, config_of(way), given), slice(RETURN_GIVEN, None)
        visits_db = revisits_db(plan, found.pictures, RETURN_GIVEN, RETURN_FRAMES)
        rows.append(
            {"way": way, "psnr_db": psnr_db(exact.pictures[judged], found.pictures[judged]), "visits_db": visits_db}
            | {"exact_visits_db": revisits_db(plan, exact.pictures, RETURN_GIVEN, RETURN_FRAMES)}
            | found.facts(model, RETURN_FRAMES)
        )
    return rows


def laps(model: DemoWorld, world: int, ways: Sequence[str]) -> list[dict[str, Any]]:
    """See the module docstring."""
    plan, short = plan_walk(LAPS, LAPS_FRAMES, world), plan_walk(LAPS, EXACT_FRAMES, world)
    exact = walked(model, short, ROTATED, plan.given(model))
    rows = []
    for name, found in (("exact", exact), *((way, walked(model, plan, config_of(way), plan.given(model))) for way in ways)):
        frames = len(found.pictures)
        row: dict[str, Any] = {
            "way": name,
            "psnr_db": psnr_db(exact.pictures[4:], found.pictures[4:EXACT_FRAMES]),
            "frames": frames,
        }
        for first, last in SECTIONS:
            row[f"visits_db_{first}_{last}"] = revisits_db(plan, found.pictures, first, min(last, frames))
        for frame in (frame for frame in (60, 100, 150, 300, 600) if frame < frames):
            row[f"bytes_{frame}"] = found.bytes[frame]
            row[f"seconds_{frame}"] = round(float(np.median(found.seconds[frame - 10 : frame + 1])), 4)
        rows.append(row | found.facts(model, frames))
    return rows


SECTIONS = ((50, 101), (101, 301), (301, 601))


def country(model: DemoWorld, world: int, ways: Sequence[str], frames: int = 330) -> list[dict[str, Any]]:
    """Back and forth over the map in lines that do not overlap, with the pictures as they really are."""
    lines, height = (MAP_PIXELS - 64) // STEP_PIXELS, 64 // STEP_PIXELS
    path = [(0, 0)]
    while len(path) < frames:
        row, col = path[-1]
        right = (row // height) % 2 == 0
        edge = col == (lines if right else 0)
        path.append((row + 1, col) if edge or row % height else (row, col + (1 if right else -1)))
    plan = Walk(world, np.array(path[:frames]))
    map_of = torch.from_numpy(paint(world)).permute(2, 0, 1) * 2 - 1
    real = [map_of[None, None, :, row : row + 64, col : col + 64] for row, col in (plan.positions * STEP_PIXELS).tolist()]
    return [{"way": way, "frames": frames} | walked(model, plan, config_of(way), real).facts(model, frames) for way in ways]


def change(model: DemoWorld, world: int, ways: Sequence[str]) -> list[dict[str, Any]]:
    """Ten frames of one picture, ten of another or of one with 16 of 64 tokens replaced, then 20 generated."""
    first, second = (
        (torch.from_numpy(paint(seed)).permute(2, 0, 1) * 2 - 1)[:, 128:192, 128:192] for seed in (world, world + 100)
    )
    mixed = first.clone()
    mixed[:, 16:48, 16:48] = second[:, 16:48, 16:48]
    plan, rows = Walk(world, np.zeros((40, 2), dtype=np.int64)), []
    for name, other in (("a quarter", mixed), ("all", second)):
        given = [each[None, None] for each in (*[first] * 10, *[other] * 10)]
        exact = walked(model, plan, PRESETS["exact"], given)
        for way in ways:
            found = walked(model, plan, config_of(way), given)
            facts = {"way": way, "changes": name, "psnr_db": psnr_db(exact.pictures[20:], found.pictures[20:])}
            rows.append(facts | found.facts(model, 40))
    return rows


WALKS = {"return": coming_back, "laps": laps, "country": country, "change": change}


def main() -> int:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WALKS)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--worlds", default=",".join(map(str, WORLDS)))
    parser.add_argument("--ways", default="none:0.99:mean,near-exact:0.99:mean")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, where = load_demo_world(), conditions(torch.device("cpu"))
    for world in map(int, options.worlds.split(",")):
        began = time.perf_counter()
        for row in WALKS[options.what](model, world, options.ways.split(",")):
            took = {"took_s": round(time.perf_counter() - began)}
            report("merge", {"walk": options.what, "world": world} | row | took | where, options.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
