"""Attention whose packed spans wait in CPU memory against the same attention with all of them on the GPU, in one run.

    python benchmarks/offload.py --save          the 1.3B's layer at 21, 60 and 180 latent frames, on a GPU; rows go to
                                                 results/offload.jsonl
    python benchmarks/offload.py --tiny          small shapes, on any machine; a rehearsal, not a result

Layers attend one after the other, as in a pass of the network, and do nothing in between: a network's linear layers are more time
for the copies to hide in. `copy_ms` is what a layer's copies take alone. Caches are filled by `KVCache` and presets.
Both ways must give the same bits, or nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import bootstrap_package  # noqa: E402, F401 (makes the repository importable as comfyui_qvg)
from comfyui_qvg.benchmarks.rows import conditions, median_ms, peak_bytes, report  # noqa: E402
from comfyui_qvg.qvg import PRESETS, CacheSpec, KVCache, QVGConfig  # noqa: E402
from comfyui_qvg.qvg.bench.gpu.layer_run import LayerRun  # noqa: E402
from comfyui_qvg.qvg.bench.gpu.layer_run import Shape as LayerShape  # noqa: E402
from comfyui_qvg.qvg.cache.offload import Offloader  # noqa: E402
from comfyui_qvg.qvg.positions.rope import wan_rope  # noqa: E402

CHANNELS, CHUNK_FRAMES = 128, 3


class Shape(NamedTuple):
    """Heads, grid of a latent frame, committed latent frames, and layers that attend in turn."""

    name: str
    heads: int
    rows: int
    cols: int
    frames: int
    layers: int


SHAPES = tuple(Shape(f"Self-Forcing 1.3B, {frames} frames", 12, 30, 52, frames, 4) for frames in (21, 60, 180))
TINY = (Shape("tiny", 2, 3, 4, 15, 3),)
NAMES = ("qvg", "balanced")


def random_kv(shape: Shape, device: torch.device, seed: int) -> Tensor:
    """[3, 1, H, S, D]: queries, keys and values of one chunk."""
    generator = torch.Generator(device).manual_seed(seed)
    tokens = CHUNK_FRAMES * shape.rows * shape.cols
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.randn(3, 1, shape.heads, tokens, CHANNELS, generator=generator, device=device).to(dtype)


def filled(shape: Shape, config: QVGConfig, home: str, device: torch.device) -> KVCache:
    """A cache as after so many frames: every block is committed, and due ones are encoded."""
    spec = CacheSpec(shape.layers, shape.heads, CHANNELS, shape.rows * shape.cols, CHUNK_FRAMES)
    cache = KVCache(spec, config, wan_rope(shape.rows, shape.cols, CHANNELS), home)
    layer = LayerShape(shape.name, shape.heads, shape.rows, shape.cols, CHUNK_FRAMES, CHANNELS)
    videos = [LayerRun(layer, config, device, seed=number) for number in range(shape.layers)]  # still pictures, and noise
    with torch.no_grad():
        for start in range(0, shape.frames, CHUNK_FRAMES):
            cache.place([(float(start + frame), 0.0, 0.0) for frame in range(CHUNK_FRAMES)])
            for number, video in enumerate(videos):
                cache.layers[number].append(*video.block()[1:])
            cache.commit()
    return cache


def measure(shape: Shape, preset: str, device: torch.device, rehearsal: bool, save: bool) -> None:
    """One row with spans on the device, one with spans in CPU memory. SystemExit where their results differ."""
    config = PRESETS[preset].with_changes(**({"span_frames": 3} if rehearsal else {}))
    # Without a GPU a second name of the CPU stands for the other memory, so that there is something to copy.
    home = "cpu" if device.type == "cuda" else "cpu:0"
    q, k, v = random_kv(shape, device, 9)
    rows, expected = [], None
    for way in ("gpu", "cpu"):
        cache = filled(shape, config.with_changes(offload=way), home, device)
        cache.place([(float(shape.frames + frame), 0.0, 0.0) for frame in range(CHUNK_FRAMES)])

        def one_pass(cache: KVCache = cache) -> list[Tensor]:
            return [cache.attend(layer, q, k, v) for layer in range(shape.layers)]

        out = one_pass()
        if expected is not None and not all(torch.equal(a, b) for a, b in zip(expected, out, strict=True)):
            raise SystemExit(f"{shape.name}, {preset}: with offload {way} attention gives other bits; nothing was written")
        expected = out
        row = {"way": way, "ms": round(median_ms(one_pass, device) / shape.layers, 3), "peak_bytes": peak_bytes(one_pass, device)}
        rows.append(row | whereabouts(cache, shape, device))
    for row in rows:
        more = {"ratio": round(row["ms"] / rows[0]["ms"], 3), "shape": shape._asdict(), "preset": preset, "rehearsal": rehearsal}
        report("offload", {**row, **more, **conditions(device)}, save)


def whereabouts(cache: KVCache, shape: Shape, device: torch.device) -> dict[str, object]:
    """Where a cache's bytes are, and what copying those of one layer takes."""
    placement = cache.placement()
    found: dict[str, object] = {
        "device_bytes": placement.device,
        "home_bytes": placement.home,
        "visiting_bytes": placement.copied,
    }
    if not placement.home:
        return found
    offloader, spans = Offloader(cache.offloader.home if cache.offloader else "cpu"), cache.layers[0].state.spans

    def copies() -> None:
        offloader.clear()
        offloader.fetch(device, (0, spans), (0, spans))

    ms = median_ms(copies, device)
    layer_bytes = placement.home // shape.layers
    return found | {"copy_ms": round(ms, 3), "copied_bytes": layer_bytes, "gb_per_s": round(layer_bytes / ms / 1e6, 2)}


def main(arguments: list[str] | None = None) -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes on any machine")
    parser.add_argument("--save", action="store_true", help="append the rows to results/offload.jsonl")
    options = parser.parse_args(arguments)
    if options.save and options.tiny:
        parser.error("--save keeps measurements of a GPU at full size; leave it out here")
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("there is no GPU here; --tiny is a dry run without one")
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    for shape in TINY if options.tiny else SHAPES:
        for preset in NAMES:
            measure(shape, preset, device, options.tiny, options.save)


if __name__ == "__main__":
    main()
