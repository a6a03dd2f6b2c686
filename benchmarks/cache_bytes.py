"""Bytes of the cache at the 1.3B shape, 480 x 832, exact and with every preset: predicted, and counted in a run.

    python benchmarks/cache_bytes.py [--save] [--presets LIST] [--heads N] [--tiny]

Layers hold the same bytes, so one layer is run for real, with random keys and values in bf16, committed block by block as the
nodes do it; the worst moment of 30 layers follows from what this layer held before, during and after each commit. `--heads`: how
many of the 12 heads are run; they are independent, so bytes are multiplied up. `--save` writes results/cache_bytes.csv.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import bootstrap_package  # noqa: F401
from comfyui_qvg.qvg import PRESETS, CacheSpec, KVCache, QVGConfig
from comfyui_qvg.qvg.bench.cache_watch import CacheWatch
from comfyui_qvg.qvg.cache.growth import even_chunks
from comfyui_qvg.qvg.files import written_whole
from rows import RESULTS

SPEC = CacheSpec(layers=30, heads=12, head_dim=128, tokens_per_frame=1560, chunk_frames=3)
FRAMES = (21, 60, 180, 240)
FIELDS = (
    "preset",
    "frames",
    "exact_bytes",
    "end_bytes",
    "peak_bytes",
    "counted_end_bytes",
    "counted_peak_bytes",
    "counted_heads",
)
# Of Quant VideoGen's schedule (spans of 24 frames, the tail in bf16), at the end and at its worst (docs/memory.md, "Self-Forcing,
# counted").
OFFICIAL_GB = {21: (6.04, 6.04), 60: (5.43, 7.89), 180: (10.39, 12.84), 240: (15.82, 15.82)}


def counted(config: QVGConfig, spec: CacheSpec, heads: int, frames: int) -> Iterator[tuple[int, int]]:
    """Bytes of all layers and heads at the end and at the worst moment so far, after every block of a real run."""
    one = CacheSpec(1, heads, spec.head_dim, spec.tokens_per_frame, spec.chunk_frames)
    generator = torch.Generator().manual_seed(0)
    # Channels of falling energy, the same all along: a video without cuts, which needs no further codebooks.
    spectrum = torch.logspace(0, -1, spec.head_dim)
    most = before = 0
    with KVCache(one, config) as cache:
        held = CacheWatch(cache)
        for chunk in even_chunks(frames, spec.chunk_frames):
            shape = (1, heads, chunk * spec.tokens_per_frame, spec.head_dim)
            cache.layers[0].append(*((torch.randn(shape, generator=generator) * spectrum).bfloat16() for _ in range(2)))
            held.most = held.now()
            cache.commit_layer(0)
            after = cache.nbytes().total
            most = max(most, held.most + (spec.layers - 1) * max(before, after))
            before = after
            yield spec.layers * after * spec.heads // heads, most * spec.heads // heads


def rows(name: str, spec: CacheSpec, heads: int, lengths: tuple[int, ...]) -> Iterator[dict[str, object]]:
    """Of one preset, for every length; raises AssertionError where a count is not what was predicted."""
    config, began = PRESETS[name], time.perf_counter()
    for index, (end, most) in enumerate(counted(config, spec, heads, max(lengths))):
        frames = min((index + 1) * spec.chunk_frames, max(lengths))
        predicted = spec.predict(config, frames).total, spec.predict_peak(config, frames)
        assert (end, most) == predicted, f"{name}, {frames} frames: counted {(end, most)}, predicted {predicted}"
        if frames in lengths:
            print(
                f"{name}: {frames} frames, end {end / 1e9:.3f} GB, peak {most / 1e9:.3f} GB, {time.perf_counter() - began:.0f} s"
            )
            yield dict(zip(FIELDS, (name, frames, spec.exact_bytes(frames), *predicted, end, most, heads), strict=True))


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default=",".join(PRESETS), help="names, separated by commas; default all")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--tiny", action="store_true", help="a dry run with short frames of few tokens; not kept")
    parser.add_argument("--save", action="store_true", help="write results/cache_bytes.csv; presets not run keep their rows")
    options = parser.parse_args()
    if options.tiny and options.save:
        parser.error("--save keeps counts of the full shape, and --tiny is a dry run; leave one of them out")
    names = options.presets.split(",")
    if unknown := [name for name in names if name not in PRESETS]:
        parser.error(f"there is no preset {unknown[0]!r}; choose from {', '.join(PRESETS)}")
    spec = CacheSpec(2, 12, 128, 64, 3) if options.tiny else SPEC
    lengths = (9, 30) if options.tiny else FRAMES
    path = RESULTS / "cache_bytes.csv"
    kept = list(csv.DictReader(path.open(encoding="utf-8"))) if options.save and path.exists() else []
    for name in names:
        kept = [row for row in kept if row["preset"] != name] + list(rows(name, spec, options.heads, lengths))
        if options.save:
            kept.sort(key=lambda row: list(PRESETS).index(str(row["preset"])))
            with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, FIELDS, lineterminator="\n")
                table.writeheader()
                table.writerows(kept)


if __name__ == "__main__":
    main()
