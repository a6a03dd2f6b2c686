"""How fast a preset's codec encodes a block into memory and decodes it, beside what a copy does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from ...config import PRESETS
from .layer_run import LayerRun, Shape
from .timing import median_ms, peak_bytes, synchronize


def coding_rows(
    shape: Shape, presets: tuple[str, ...], device: torch.device, spans: int = 3, repeats: int = 7
) -> Iterator[dict[str, Any]]:
    """A copy, and for every preset the commits that encode (the first, and the median of `spans` later ones) and the decoding of
    a span's keys and values."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = torch.zeros(shape.block, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / median_ms(lambda: target.copy_(source), device, repeats) / 1e6
    yield {"what": "copy", "gb_per_s": round(copied, 1)}
    for preset in presets:
        run = LayerRun(shape, PRESETS[preset], device)
        times = list[float]()
        while len(times) <= spans:
            before = run.cache.layers[0].state.spans_encoded
            synchronize(device)
            began = time.perf_counter()
            peak = peak_bytes(run.commit, device)
            if run.cache.layers[0].state.spans_encoded > before:
                times.append((time.perf_counter() - began) * 1e3)
        yield {
            "what": "encode",
            "preset": preset,
            "frames": run.cache.layout.spans[-1],
            "first_ms": round(times[0], 3),
            "ms": round(statistics.median(times[1:]), 3),
            "peak_bytes": peak,
        }
        yield _decoded(run, preset, copied, repeats)


def _decoded(run: LayerRun, preset: str, copied: float, repeats: int) -> dict[str, Any]:
    pair, codec = run.cache.layers[0].state.spans[-1], run.cache.layers[0].codecs.keys
    shape = (1, run.shape.heads, pair.keys.num_tokens, run.shape.channels)
    out = torch.empty(shape, dtype=run.dtype, device=run.device)

    def both() -> None:
        for span in pair:
            codec.decode(span, slice(None), slice(None), out)

    ms = median_ms(both, run.device, repeats)
    own = sum(x.nbytes for span in pair for x in span.tensors().values())
    speed = (own + 2 * out.nbytes) / ms / 1e6
    row = {"what": "decode", "preset": preset, "frames": pair.keys.num_tokens // run.cache.spec.tokens_per_frame}
    return row | {"ms": round(ms, 3), "gb_per_s": round(speed, 1), "share_of_copy": round(speed / copied, 3)}
