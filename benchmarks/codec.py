"""How fast the codecs encode and decode, beside what the memory can do. One row of JSON per measurement.

    python benchmarks/codec.py --save       on a GPU: a Self-Forcing history and a LongCat layer; rows go to results/codec.jsonl
    python benchmarks/codec.py --tiny       on any machine: a dry run, whose times mean nothing

Before anything is timed, the backend's result is compared with the torch reference's, and a wrong one ends the run. Times are the
median of the repetitions; bandwidth counts what is read and written, each byte once. Targets: decoding at 80 % of a copy's
bandwidth, encoding a LongCat layer (32 heads, 29,640 tokens, two iterations of `qvg`) in 3 ms. Codecs are those of presets.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import bootstrap_package  # noqa: F401  names the package, so that it can be imported
import torch
from comfyui_qvg.kernels import assign_clusters, dispatch, explain, reconstruct, update_centroids
from comfyui_qvg.qvg.codec import KLTCodec, QVGCodec
from comfyui_qvg.qvg.codec.base import EncodeHint
from comfyui_qvg.qvg.codec.span import QuantizedSpan
from comfyui_qvg.qvg.config import PRESETS, QVGConfig
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "codec.jsonl"


class Shape(NamedTuple):
    """What one layer keeps: keys or values [1, heads, tokens, 128]."""

    name: str
    heads: int
    tokens: int


DECODED = Shape("Self-Forcing, 8 chunks", 12, 37_440)
ENCODED = Shape("LongCat layer", 32, 29_640)
TINY = Shape("tiny", 2, 300)
CODECS: dict[str, type[Any]] = {"qvg": QVGCodec, "qvg-pro": QVGCodec, "balanced": KLTCodec, "near-exact": KLTCodec}
# Relative RMS that a backend may differ from torch by: the output's bfloat16, and float16 products in klt.
ALLOWED_ERROR = 6e-3


class Clock:
    """Times work on a device: median milliseconds of `repetitions`, after `warm_up` runs."""

    def __init__(self, device: torch.device, repetitions: int, warm_up: int):
        self.device, self.repetitions, self.warm_up = device, repetitions, warm_up

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Of one call of `work`."""
        for _ in range(self.warm_up):
            work()
        return statistics.median(self._once(work) for _ in range(self.repetitions))

    def _once(self, work: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            started = time.perf_counter()
            work()
            return 1000 * (time.perf_counter() - started)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        torch.cuda.synchronize()
        return float(first.elapsed_time(last))


def make_tokens(shape: Shape, device: torch.device) -> Tensor:
    """bfloat16 [1, H, S, 128]: a smooth field and noise, so that clusters mean something."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(shape.tokens)[:, None] * torch.rand(8, generator=generator) * 0.05
    fields = torch.randn(shape.heads, 8, 128, generator=generator).to(device)
    noise = torch.randn(1, shape.heads, shape.tokens, 128, device=device, dtype=torch.bfloat16)
    return (steps.sin().to(device) @ fields).bfloat16()[None] + 0.5 * noise


def configuration(name: str, backend: str) -> tuple[type[Any], QVGConfig]:
    """The codec class and settings of one of CODECS, which are presets."""
    return CODECS[name], PRESETS[name].with_changes(backend=backend)


def check(name: str, backend: str, x: Tensor) -> float:
    """Relative RMS between what `backend` and torch decode from the same span; SystemExit where it is too much."""
    kind, config = configuration(name, "torch")
    span = kind(config).encode(x, EncodeHint())
    outs = [
        kind(configuration(name, chosen)[1]).decode(span, slice(None), slice(None), torch.empty_like(x)).float()
        for chosen in ("torch", backend)
    ]
    error = float((outs[1] - outs[0]).square().mean().sqrt() / outs[0].square().mean().sqrt())
    if not error <= ALLOWED_ERROR:
        raise SystemExit(f"{name} on {backend} is wrong: relative error {error:.1e}, allowed {ALLOWED_ERROR:.0e}")
    return error


def copy_bandwidth(clock: Clock, like: Tensor) -> dict[str, Any]:
    """What a plain copy of the output does."""
    target = torch.empty_like(like)
    milliseconds = clock.milliseconds(lambda: target.copy_(like))
    return {"what": "copy", "ms": milliseconds, "gb_per_s": 2 * like.nbytes / milliseconds / 1e6}


def decoding(clock: Clock, shape: Shape, backends: list[str], device: torch.device) -> Iterator[dict[str, Any]]:
    """A copy, then every codec on every backend."""
    x = make_tokens(shape, device)
    copied = copy_bandwidth(clock, x)
    yield copied
    out = torch.empty_like(x)
    angles = torch.rand(shape.tokens, 64, generator=torch.Generator().manual_seed(1)).to(device)
    rotation = angles.cos(), angles.sin()
    for name in CODECS:
        kind, config = configuration(name, "auto")
        span = kind(config).encode(x, EncodeHint())
        moved = out.nbytes + sum(part.nbytes for part in span.tensors().values())
        for backend in backends:
            error = check(name, backend, x[:, :, :2000])
            codec = kind(configuration(name, backend)[1])
            milliseconds = clock.milliseconds(lambda codec=codec, span=span: codec.decode(span, slice(None), slice(None), out))
            speed = moved / milliseconds / 1e6
            yield {
                "what": "decode",
                "codec": name,
                "backend": backend,
                "ms": milliseconds,
                "gb_per_s": speed,
                "share_of_copy": speed / copied["gb_per_s"],
                "error": error,
            }
            if isinstance(span, QuantizedSpan):
                milliseconds = clock.milliseconds(lambda span=span, backend=backend: _rotated(span, out, rotation, backend))
                speed = (moved + 2 * rotation[0].nbytes) / milliseconds / 1e6
                found = {"ms": milliseconds, "gb_per_s": speed, "share_of_copy": speed / copied["gb_per_s"]}
                yield {"what": "decode and rotate", "codec": name, "backend": backend, **found}


def _rotated(span: QuantizedSpan, out: Tensor, rotation: tuple[Tensor, Tensor], backend: str) -> Tensor:
    parts = span.codes, span.scales, span.zero_points, span.ids, span.codebook.centroids
    return reconstruct(*parts, span.bits, span.group_size, out, backend, rotation)


def encoding(clock: Clock, shape: Shape, backends: list[str], device: torch.device) -> Iterator[dict[str, Any]]:
    """k-means alone, then every codec on every backend, with the memory that it takes beside its input."""
    x = make_tokens(shape, device)
    centroids = x[:, :, : min(256, shape.tokens)].float()
    for backend in backends:
        ids = assign_clusters(x, centroids, backend)
        yield {
            "what": "assign",
            "backend": backend,
            "ms": clock.milliseconds(lambda backend=backend: assign_clusters(x, centroids, backend)),
        }
        work = lambda backend=backend, ids=ids: update_centroids(x, ids, centroids, backend)  # noqa: E731
        yield {"what": "update", "backend": backend, "ms": clock.milliseconds(work)}
        for name in CODECS:
            kind, config = configuration(name, backend)
            codec = kind(config)
            milliseconds = clock.milliseconds(lambda codec=codec: codec.encode(x, EncodeHint()))
            yield {
                "what": "encode",
                "codec": name,
                "backend": backend,
                "ms": milliseconds,
                "peak_bytes": _peak_bytes(lambda codec=codec: codec.encode(x, EncodeHint()), device),
            }


def _peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """The allocator's own count of what `work` takes beside what is there; None without a GPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


def conditions(device: torch.device, shape: Shape, clock: Clock) -> dict[str, Any]:
    """What every row says about itself."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} processor"
    return {
        "date": datetime.date.today().isoformat(),
        "device": name,
        "torch": torch.__version__,
        "triton": dispatch.triton_version(),
        "python": platform.python_version(),
        "shape": shape.name,
        "heads": shape.heads,
        "tokens": shape.tokens,
        "dtype": "bfloat16",
        "repetitions": clock.repetitions,
    }


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a dry run")
    parser.add_argument("--save", action="store_true", help=f"append the rows to {RESULTS.name}")
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.save and (options.tiny or device.type != "cuda"):
        parser.error("--save keeps measurements of a GPU at full size; leave it out here")
    if device.type != "cuda" and not options.tiny:
        parser.error("there is no GPU here; --tiny is a dry run without one")
    backends = ["torch", *(["triton"] if all(choice == "triton" for choice in explain(device).values()) else [])]
    print(f"# {device}: {explain(device)}")
    clock = Clock(device, 2 if options.tiny else options.repetitions, 1 if options.tiny else 3)
    for measure, shape in ((decoding, TINY if options.tiny else DECODED), (encoding, TINY if options.tiny else ENCODED)):
        for found in measure(clock, shape, backends, device):
            line = json.dumps({**conditions(device, shape, clock), **_rounded(found)})
            print(line, flush=True)
            if options.save:
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    return 0


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


if __name__ == "__main__":
    sys.exit(main())
