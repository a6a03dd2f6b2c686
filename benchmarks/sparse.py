"""What reading a share of the memory (AnnSA) gives and costs on the demo world.

    python benchmarks/sparse.py return [--save]   a loop of 120 frames whose first lap is given as it is, then eight of its own
    python benchmarks/sparse.py time [--save]     attention of one pass at frames 60, 300 and 600 of a loop of 50

Each takes `--worlds 1,2,3` (seeds of maps that were not trained on) and `--ways` (codec:share, such as none:0.15; share 0 reads
all). PSNR against the exact run in dB of the mean squared error of all judged frames; bytes as counted over those of 16 bits per
value. `time`: made-up keys and values with the statistics of real ones in one layer; milliseconds of processor time of one pass
of attention by a frame's 64 queries, and those of plain attention to contiguous float32 keys (`yardstick`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import bootstrap_package  # noqa: F401
import merge
from comfyui_qvg.qvg import PRESETS, KVCache, QVGConfig
from comfyui_qvg.qvg.bench.synthetic import make_keys_values
from comfyui_qvg.qvg.demo.walk import picture, plan_walk, settings
from comfyui_qvg.qvg.models.demo_world import STEP_PIXELS, DemoWorld, DemoWorldDenoiser, load_demo_world
from comfyui_qvg.qvg.models.demo_world.painted_map import paint
from comfyui_qvg.qvg.sampling import SamplerSettings, generate
from rows import conditions, report

# As in `merge.py`, but nowhere beyond the map's edge.
RETURN, RETURN_FRAMES = "d-32,s-28,a-32,w-28", merge.RETURN_GIVEN + 8
FRAMES = (60, 300, 600)
_ROUNDS = 7


def config_of(way: str) -> QVGConfig:
    """codec:share"""
    name, share = way.split(":")
    base = PRESETS["exact" if name == "none" else name]
    return base if float(share) == 0 else base.with_changes(sparse=float(share), span_frames="auto")


def real_pictures(plan: merge.Walk, world: int) -> list[Tensor]:
    """What is really to be seen from every place of a walk, [1, 1, 3, P, P] in -1..1."""
    map_of = torch.from_numpy(paint(world)).permute(2, 0, 1) * 2 - 1
    return [map_of[None, None, :, row : row + 64, col : col + 64] for row, col in (plan.positions * STEP_PIXELS).tolist()]


class Shared(KVCache):
    """An exact cache whose committed keys and values others remember too, each in its own way."""

    def __init__(self, model: DemoWorld, others: Sequence[KVCache]):
        super().__init__(model.config.cache_spec(), merge.ROTATED, model.config.rope())
        self.others = list(others)

    def place(self, origins: Any) -> None:
        """See `KVCache`."""
        for cache in (super(), *self.others):
            cache.place(origins)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        """See `KVCache`."""
        for cache in self.others:
            cache.layers[layer].append(k, v)
        return super().attend(layer, q, k, v, **more)

    def commit(self) -> None:
        """See `KVCache`."""
        for cache in (super(), *self.others):
            cache.commit()


@dataclass(frozen=True)
class Later:
    """Settings whose first block is another one's."""

    settings: SamplerSettings
    first: int

    def noise_levels(self) -> list[float]:
        """See `SamplerSettings`."""
        return self.settings.noise_levels()

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """See `SamplerSettings`."""
        return self.settings.noise(index + self.first, shape)


def coming_back(model: DemoWorld, world: int, ways: Sequence[str]) -> list[dict[str, Any]]:
    """See the module docstring, `return`. Keys and values of the first lap are those of the exact run, for every way."""
    plan, first = plan_walk(RETURN, RETURN_FRAMES, world), merge.RETURN_GIVEN
    given, spec, rope = real_pictures(plan, world)[:first], model.config.cache_spec(), model.config.rope()
    others = [KVCache(spec, config_of(way), rope) for way in ways]
    exact, pictures, denoiser = Shared(model, others), [], DemoWorldDenoiser(model)
    for _ in generate(denoiser, exact, plan.origins[:first], settings(plan.seed), given, verify=False):
        pass
    exact.others = []
    for cache in (exact, *others):
        blocks = generate(denoiser, cache, plan.origins[first:], Later(settings(plan.seed), first), verify=False)
        pictures.append(np.stack([picture(block.latent) for block in blocks]))
    real = np.stack([picture(each) for each in real_pictures(plan, world)[first:]])
    rows = []
    for way, cache, found in zip(("exact", *ways), (exact, *others), pictures, strict=True):
        size = cache.nbytes()
        row = {"way": way, "frames_judged": len(found), "truth_db": merge.psnr_db(real, found), "bytes": size.total}
        row |= {"bytes_of_exact": round(size.total / spec.exact_bytes(RETURN_FRAMES), 5), "tile_bytes": size.tiles}
        row |= {} if way == "exact" else {"psnr_db": merge.psnr_db(pictures[0], found)}
        rows.append(row | {"read": cache.explain()[-1]})
    return rows


def times(model: DemoWorld, world: int, ways: Sequence[str]) -> list[dict[str, Any]]:
    """See the module docstring, `time`. One layer; how many tiles are read does not depend on what is in them."""
    spec = replace(model.config.cache_spec(), layers=1)
    plan, rows = plan_walk(merge.LAPS, max(FRAMES) + 1, world), []
    video = make_keys_values(frames=max(FRAMES), heads=spec.heads, channels=spec.head_dim, rows=8, cols=8, seed=world)
    for way in ways:
        row: dict[str, Any] = {"way": way}
        with KVCache(spec, config_of(way), model.config.rope()) as cache:
            for frame in range(max(FRAMES)):
                tokens = slice(frame * spec.tokens_per_frame, (frame + 1) * spec.tokens_per_frame)
                cache.place(plan.origins[frame])
                cache.layers[0].append(*(x[:, :, tokens] for x in video))
                cache.commit()
                if cache.frames_committed in FRAMES:
                    cache.place(plan.origins[frame + 1])
                    row |= _timed(cache, cache.frames_committed)
            row["read"] = cache.explain()[-1]
        rows.append(row)
    return rows


def _timed(cache: KVCache, frame: int) -> dict[str, Any]:
    """Of one pass of attention, the least of some rounds, in turn with the yardstick."""
    spec, generator = cache.spec, torch.Generator().manual_seed(0)
    tokens = spec.tokens_per_frame * cache.frames_committed
    shape = (spec.batch, spec.heads, spec.tokens_per_frame, spec.head_dim)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    keys, values = (torch.randn(*shape[:2], tokens + shape[2], shape[3], generator=generator) for _ in range(2))
    own, plain = [], []
    for _ in range(_ROUNDS):
        own.append(_cpu_ms(lambda: cache.attend(0, q, k, v)))
        plain.append(_cpu_ms(lambda: _plain(q, keys, values)))
    return {
        f"ms_{frame}": round(min(own), 2),
        f"yardstick_ms_{frame}": round(min(plain), 2),
        f"ratio_{frame}": round(min(own) / min(plain), 3),
    }


def _plain(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, keys, values)


def _cpu_ms(run: Any) -> float:
    began = time.process_time()
    with torch.inference_mode():
        run()
    return 1e3 * (time.process_time() - began)


WALKS = {"return": coming_back, "time": times}


def main() -> int:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WALKS)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--worlds", default=",".join(map(str, merge.WORLDS)))
    parser.add_argument("--ways", default="balanced:0,none:0.15,balanced:0.15")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, where = load_demo_world(), conditions(torch.device("cpu"))
    for world in map(int, options.worlds.split(",")):
        began = time.perf_counter()
        for row in WALKS[options.what](model, world, options.ways.split(",")):
            took = {"took_s": round(time.perf_counter() - began)}
            report("sparse", {"walk": options.what, "world": world} | row | took | where, options.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
