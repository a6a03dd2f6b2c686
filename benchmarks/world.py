"""What a walking world costs: seconds and peak memory of a chunk in the three modes of its memory, and bytes of that memory.

    python benchmarks/world.py --save         HY-WorldPlay on Wan 2.2 5B at 704 x 1280 with random weights, on a GPU; rows go to
                                              results/world.jsonl
    python benchmarks/world.py --tiny         the same with a small network, on any machine: a rehearsal, not a result
    python benchmarks/world.py --bytes        bytes of the memory and operations of a chunk at full size, of both variants,
                                              anywhere; one head's memory is made, of random numbers, and must be what was
                                              predicted

Chunks are counted from 1. A timed chunk finds a memory of random keys and values, as long as that of a walk would be, and takes a
context pass and four denoise steps. Vendor and persistent run the same context pass over everything; vendor may select frames
instead (`--select`), which is what the official pipeline does. Operations are multiplications and additions of the network's
matrix products alone.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import bootstrap_package  # noqa: F401  names the package, so that it can be imported
import torch
from comfyui_qvg.benchmarks.rows import conditions, report
from comfyui_qvg.benchmarks.wan import Meter, random_weights
from comfyui_qvg.qvg import CacheSpec, KVCache, QVGConfig, QVGError
from comfyui_qvg.qvg.camera import parse_path
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.camera.poses import camera_poses
from comfyui_qvg.qvg.camera.selection import WAN_MEMORY
from comfyui_qvg.qvg.files import written_whole
from comfyui_qvg.qvg.models.common.world_memory import WorldMemory, world_memory
from comfyui_qvg.qvg.models.common.world_schedule import CHUNK_FRAMES, MODES, ChunkPlan, plan_chunk
from comfyui_qvg.qvg.models.worldplay_wan.network import WorldPlay, WorldPlayConfig
from comfyui_qvg.qvg.sampling.world import World
from torch import Tensor

WALK = "w-8,s-8,a-8,d-8,up-8,down-8"
# Quant-VideoGen's settings for this model: two chunks are encoded together, nothing else is exact.
NOTHING_EXACT = {"sink_frames": 0, "recent_frames": 0}
PUBLISHED = QVGConfig(clusters=256, span_frames=8, sink_frames=0, recent_frames=0, iterations=2)
STEPS = 4


class Setup(NamedTuple):
    """What is run; `chunks` are timed, the first is 1."""

    name: str
    config: WorldPlayConfig
    latent_rows: int
    latent_cols: int
    chunks: tuple[int, ...]
    dtype: torch.dtype


FULL = Setup("5B, 704 x 1280", WorldPlayConfig(), 44, 80, (2, 6, 12), torch.bfloat16)
TINY = Setup("tiny", WorldPlayConfig(2, 2, mlp=256, channels=4, text_channels=64), 8, 12, (2, 12), torch.float32)


class Variant(NamedTuple):
    """What its memory is, one attention wide."""

    name: str
    layers: int
    heads: int
    tokens_per_frame: int


VARIANTS = (Variant("5B", 30, 24, 880), Variant("8B", 54, 16, 1560))


class MeteredWorld(World):
    """The product's, with a meter around its two phases."""

    meter: Meter

    def _record(self, plan: ChunkPlan, *rest: Any) -> None:
        with self.meter.phase("context"):
            super()._record(plan, *rest)

    def _paint(self, plan: ChunkPlan, *rest: Any) -> Tensor:
        with self.meter.phase("denoise"):
            return super()._paint(plan, *rest)


def measure(setup: Setup, presets: list[str], select: bool, device: torch.device, save: bool) -> None:
    """A row for every mode, preset and timed chunk."""
    config = setup.config
    model = random_weights(config, setup.dtype, device, WorldPlay)
    assert isinstance(model, WorldPlay)
    prompt = model.read_prompt(torch.randn(1, 60, config.text_channels, generator=torch.Generator().manual_seed(1)).to(device))
    common = {"what": "chunk", "model": setup.name, "rehearsal": setup is not FULL, **conditions(device)}
    for mode in MODES:
        for preset in presets:
            for chunk in setup.chunks:
                row = {"mode": mode, "preset": preset, "chunk": chunk, "selected": select and mode == "vendor", **common}
                rule = WAN_MEMORY if row["selected"] else None
                try:
                    memory = _memory(setup, mode, QVGConfig.preset(preset), (chunk - 1) * CHUNK_FRAMES)
                    with memory:
                        world = MeteredWorld(model, memory, prompt, mode, rule)
                        row |= _time(world, setup, chunk, device)
                except (QVGError, torch.cuda.OutOfMemoryError) as failure:
                    row |= {"failed": str(failure).splitlines()[0]}
                report("world", row, save)


def _memory(setup: Setup, mode: str, config: QVGConfig, context_frames: int) -> WorldMemory:
    together = max(CHUNK_FRAMES, context_frames) if mode == "vendor" else CHUNK_FRAMES
    spec = setup.config.cache_spec(setup.latent_rows, setup.latent_cols, together, 1, setup.dtype)
    config = _made_anew(config, together) if mode == "vendor" else config
    return world_memory(spec, config, setup.config.rope(setup.latent_rows, setup.latent_cols))


def _made_anew(config: QVGConfig, frames: int) -> QVGConfig:
    """All of a context is one span: nothing of it outlives the chunk."""
    return config if config.codec == "none" else config.with_changes(span_frames=frames, **NOTHING_EXACT)


def _time(world: MeteredWorld, setup: Setup, chunk: int, device: torch.device) -> dict[str, Any]:
    """Twice, the second time for the clock: what is compiled and tuned is so by then."""
    shape = (1, CHUNK_FRAMES, setup.config.channels, setup.latent_rows, setup.latent_cols)
    generator = torch.Generator(device).manual_seed(0)
    cameras = Cameras(camera_poses(parse_path(WALK), chunk * CHUNK_FRAMES, "again"))
    for _ in range(2):
        world.meter, world.latents = Meter(device), [_random(generator, device, shape, setup.dtype) for _ in range(chunk - 1)]
        _remember(world, chunk, setup.dtype, generator, device)
        world.next_chunk(_random(generator, device, shape, setup.dtype), cameras)
    seconds = {f"{name}_seconds": round(value, 4) for name, value in world.meter.seconds.items()}
    cache = world.memory.cache
    held = {"cache_bytes": cache.nbytes().total, "context_frames": cache.layout.frames, "peak_bytes": world.meter.peaks}
    return {**seconds, **held, "read": cache.explain()}


def _remember(world: World, chunk: int, dtype: torch.dtype, generator: torch.Generator, device: torch.device) -> None:
    """What the chunks before the last one left, of random numbers; its own context pass is timed."""
    cache = world.memory.cache
    cache.reset()
    if world.mode == "vendor":
        return
    tokens = CHUNK_FRAMES * cache.spec.tokens_per_frame
    for index in range(1, chunk - 1):
        cache.place([(place, 0, 0) for place in range(CHUNK_FRAMES * (index - 1), CHUNK_FRAMES * index)])
        for layer in range(cache.spec.layers):
            shape = (1, cache.spec.heads, tokens, cache.spec.head_dim)
            cache.layers[layer].append(*(_random(generator, device, shape, dtype) for _ in range(2)))
            cache.commit_layer(layer)


def _random(generator: torch.Generator, device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def bytes_rows(variant: Variant, frames: int, count: bool) -> Iterator[dict[str, Any]]:
    """Every way to keep `frames` frames. `count`: one head of one layer is made, too."""
    for layout, width in (("vendor", 256), ("once", 128)):
        for name, config in _kept(layout):
            for mode, together in (("vendor", frames), ("persistent", CHUNK_FRAMES)):
                spec = CacheSpec(variant.layers, variant.heads, width, variant.tokens_per_frame, together)
                kept = _made_anew(config, frames) if mode == "vendor" else config
                predicted = spec.predict(kept, frames).total
                row = {
                    "what": "bytes",
                    "variant": variant.name,
                    "frames": frames,
                    "layout": layout,
                    "settings": name,
                    "mode": mode,
                }
                row |= {"bytes": predicted, "mib": round(predicted / 2**20, 1)}
                if count:
                    row["counted_head_bytes"] = counted = _counted(replace(spec, layers=1, heads=1), kept, frames)
                    if counted * variant.layers * variant.heads != predicted:
                        raise SystemExit(f"{counted} bytes per head were counted, but {predicted} predicted for all: {row}")
                yield row


def _all_bytes(count: bool) -> Iterator[dict[str, Any]]:
    for variant in VARIANTS:
        for frames in (16, 20, 48):
            yield from bytes_rows(variant, frames, count)
    yield from work_rows(FULL)


def _kept(layout: str) -> list[tuple[str, QVGConfig]]:
    found = [("exact", QVGConfig(codec="none")), ("published, 2 bit", PUBLISHED)]
    if layout == "once":
        # A sink and a recent chunk of exact frames would outweigh everything that is encoded.
        found += [
            (f"{name}, no exact frames", QVGConfig.preset(name).with_changes(**NOTHING_EXACT)) for name in ("qvg", "balanced")
        ]
    return found


def _counted(spec: CacheSpec, config: QVGConfig, frames: int) -> int:
    generator = torch.Generator().manual_seed(0)
    with KVCache(spec, config) as cache:
        for start in range(0, frames, spec.chunk_frames):
            tokens = min(spec.chunk_frames, frames - start) * spec.tokens_per_frame
            shape = (1, spec.heads, tokens, spec.head_dim)
            # Channels of falling energy, the same all along: a walk that asks for no further codebooks.
            spectrum = torch.logspace(0, -1, spec.head_dim)
            cache.layers[0].append(*((torch.randn(shape, generator=generator) * spectrum).bfloat16() for _ in range(2)))
            cache.commit()
        return cache.nbytes().total


def work_rows(setup: Setup) -> Iterator[dict[str, Any]]:
    """Operations of a chunk in every mode, the prompt's keys being there already."""
    config, tokens = setup.config, setup.latent_rows * setup.latent_cols // 4
    width, layers = config.width, config.layers
    # Two attentions' projections (one more on the way out), cross-attention's q and o, the MLP; scores and sums of the prompt.
    per_frame = tokens * 2 * (5 * width**2 + 2 * width**2 + 2 * width * config.mlp + 2 * config.text_tokens * width)
    per_pair = 2 * 4 * tokens**2 * width
    for chunk in setup.chunks:
        vendor = 0.0
        for mode in MODES:
            plan = plan_chunk(chunk - 1, mode)
            denoise = layers * STEPS * CHUNK_FRAMES * per_frame + per_pair * layers * (plan.attended_pairs(STEPS) - _own(plan))
            context = (layers - 1) * (len(plan.encode) * per_frame + per_pair * _own(plan))  # the last layer's is not needed
            vendor = vendor or context + denoise
            row = {"what": "work", "model": setup.name, "mode": mode, "chunk": chunk, "context_frames": len(plan.context)}
            row |= {"context_tflop": round(context / 1e12, 1), "denoise_tflop": round(denoise / 1e12, 1)}
            yield {**row, "times_less_than_vendor": round(vendor / (context + denoise), 2)}


def _own(plan: ChunkPlan) -> int:
    """Pairs of frames of the context pass."""
    return plan.attended_pairs(0)


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """As CSV, for reading."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: list[str] | None = None) -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--tiny", action="store_true", help="a small network on any machine")
    kind.add_argument("--bytes", action="store_true", help="bytes and operations, on any machine")
    parser.add_argument("--save", action="store_true", help="append the rows to results/world.jsonl")
    parser.add_argument("--table", type=Path, metavar="CSV", help="also write the rows of --bytes as a table")
    parser.add_argument("--predict-only", action="store_true", help="--bytes without making a head's memory")
    parser.add_argument("--presets", nargs="+", default=["exact", "qvg"])
    parser.add_argument("--select", action="store_true", help="let mode vendor select 16 frames")
    options = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    if options.save and (options.tiny or options.bytes or not has_gpu):
        parser.error("--save keeps measurements of a GPU at full size; leave it out here")
    if not (has_gpu or options.tiny or options.bytes):
        parser.error("there is no GPU here; --tiny is a dry run without one")
    if options.bytes:
        rows = []
        for row in _all_bytes(not options.predict_only):
            rows.append(row)
            report("world", row, False)
        if options.table:
            write_table(rows, options.table)
        return
    setup = TINY if options.tiny else FULL
    with torch.inference_mode():
        measure(setup, options.presets, options.select, torch.device("cuda" if has_gpu else "cpu"), options.save)


if __name__ == "__main__":
    main()
