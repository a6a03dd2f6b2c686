"""Every way to read a two-bit cache against a bf16 cache read by the fastest attention that torch has, in one run.

    python benchmarks/attention.py --save          the shapes of real models, on a GPU; rows go to results/attention.jsonl
    python benchmarks/attention.py --tiny          small shapes, on any machine; a rehearsal, not a result
    python benchmarks/attention.py --only 140k     shapes whose name holds the text
    python benchmarks/attention.py --codec klt     a cache of our own codec, at two bits per value, instead of the published one's

One layer, one call. The codes are random bytes: kernels take the same time for them, and 281 k keys need no encoding. Ratios are
against the faster of cuDNN's and flash attention in the same run. "official" is the published pack's read path restated in torch:
everything decoded twice, copied to [B, S, H, D] and back, all keys rotated in float64, concatenated, then attention.

A way whose result is further from attention over the decoded cache than TOLERANCES allow gets no row, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import bootstrap_package  # noqa: E402, F401 (makes the repository importable as comfyui_qvg)
from comfyui_qvg.benchmarks.cost_model import predicted_ms  # noqa: E402
from comfyui_qvg.benchmarks.rows import conditions, median_ms, peak_bytes, report  # noqa: E402
from comfyui_qvg.kernels.attention.library import choose_attention  # noqa: E402
from comfyui_qvg.kernels.rows8 import quantize_rows  # noqa: E402
from comfyui_qvg.qvg import ConfigError, GridRope, QVGConfig  # noqa: E402
from comfyui_qvg.qvg.attention.choice import Readings  # noqa: E402
from comfyui_qvg.qvg.attention.exact import attend  # noqa: E402
from comfyui_qvg.qvg.attention.history import History  # noqa: E402
from comfyui_qvg.qvg.attention.plan import DecodePlan, Pair  # noqa: E402
from comfyui_qvg.qvg.attention.workspace import Workspace  # noqa: E402
from comfyui_qvg.qvg.codec import KLTCodec, QVGCodec  # noqa: E402
from comfyui_qvg.qvg.codec.span import (  # noqa: E402
    Basis,
    Group,
    KMeansCodebook,
    QuantizedSpan,
    Span,
    TransformCodebook,
    TransformSpan,
    storage_bytes,
)
from comfyui_qvg.qvg.positions.rope import Rotation, geometric_frequencies, rotate  # noqa: E402

CHANNELS = 128


class Shape(NamedTuple):
    """A model's layer: heads, grid of a latent frame, queries and committed keys in tokens."""

    name: str
    heads: int
    rows: int
    cols: int
    queries: int
    keys: int


SHAPES = (
    Shape("Self-Forcing 37k", 12, 30, 52, 4680, 37_440),
    Shape("Self-Forcing 140k", 12, 30, 52, 4680, 140_400),
    Shape("Self-Forcing 281k", 12, 30, 52, 4680, 280_800),
    Shape("one frame, 281k", 12, 30, 52, 1560, 280_800),
    Shape("LongCat 29.6k", 32, 30, 52, 7800, 29_640),
    Shape("HY-WorldPlay 42k", 24, 20, 44, 3520, 42_240),
    Shape("128 queries, 281k", 12, 30, 52, 128, 280_800),
)
TINY = (Shape("tiny", 2, 3, 4, 24, 144), Shape("tiny, few queries", 2, 3, 4, 5, 480))
SPAN_FRAMES = 24
# Relative RMS: what 16-bit inputs and outputs may cost, and eight bits (0.8 % to 4 % published; docs/kernels.md, "Eight bits").
TOLERANCES = {"exact": 1e-2, "direct": 1e-2, "official": 1e-2, "fast": 4e-2}


class Bench:
    """One shape's cache, its bf16 twin, and the calls to compare."""

    def __init__(self, shape: Shape, device: torch.device, codec: str):
        self.shape, self.device = shape, device
        self.config = QVGConfig(codec, workspace_mb=512)
        self.codec = QVGCodec(self.config) if codec == "qvg" else KLTCodec(self.config)
        self.generator = torch.Generator(device).manual_seed(0)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.per_frame = shape.rows * shape.cols
        self.rope = GridRope(
            shape.rows, shape.cols, (geometric_frequencies(22, 8, 1e4), *[geometric_frequencies(21, 8, 1e4)] * 2)
        )
        self.q, k, v = (self._randn(shape.queries).to(dtype) for _ in range(3))
        step = SPAN_FRAMES * self.per_frame
        counts = [min(step, shape.keys - at) for at in range(0, shape.keys, step)]
        span = self._span if codec == "qvg" else self._transform_span
        pairs = [Pair(span(count), span(count)) for count in counts]
        self.history = History(DecodePlan(pairs), (k, v), self._decode, self._turns, tokens_per_frame=self.per_frame)

    def _randn(self, tokens: int) -> Tensor:
        return torch.randn(1, self.shape.heads, tokens, CHANNELS, generator=self.generator, device=self.device)

    def _bytes(self, *shape: int, low: int = 0, high: int = 256) -> Tensor:
        return torch.randint(low, high, shape, dtype=torch.uint8, generator=self.generator, device=self.device)

    def _span(self, tokens: int) -> QuantizedSpan:
        """Random codes below the level that the format leaves out, scales around 0.3."""
        heads = self.shape.heads
        codes = self._bytes(1, heads, tokens, CHANNELS // 4)
        codes &= ~((codes >> 1) & codes & 0x55) & 0xFF  # level 3 is not used
        codebook = KMeansCodebook(self._randn(256).unsqueeze(2).half())
        scales, ids = self._bytes(1, heads, 2, tokens, low=36, high=48), self._bytes(1, heads, 1, tokens)
        return QuantizedSpan(codes, scales, None, ids, codebook, 2, 64)

    def _transform_span(self, tokens: int) -> TransformSpan:
        """Two bits in every channel, gains around 0.3, directions and codewords as long as those of normal tokens."""
        heads = self.shape.heads
        rows = quantize_rows(torch.linalg.qr(self._randn(CHANNELS))[0])
        basis = Basis(*rows, ((CHANNELS, CHANNELS),))
        codes, gains = self._bytes(1, heads, tokens, CHANNELS // 4), self._bytes(1, heads, tokens, low=36, high=48)
        codebook = TransformCodebook(quantize_rows(self._randn(256)), basis, Group())
        return TransformSpan(codes, gains, self._bytes(1, heads, tokens), codebook)

    def _decode(self, span: Span, tokens: slice, heads: slice, out: Tensor, rotation: Rotation | None) -> None:
        self.codec.decode(span, tokens, heads, out, rotation)

    def _turns(self, which: int, start: int, stop: int) -> Rotation | None:
        return None if which else self._rotation(start, stop)

    def _rotation(self, start: int, stop: int) -> Rotation:
        first, last = start // self.per_frame, -(-stop // self.per_frame)
        origins = torch.zeros(last - first, 3, device=self.device)
        origins[:, 0] = torch.arange(first, last, device=self.device)
        return self.rope.rotation(origins).tokens(start - first * self.per_frame, stop - first * self.per_frame)

    @property
    def stored_bytes(self) -> int:
        """Of the spans, counted."""
        return sum(storage_bytes(span for pair in self.history.plan.pairs for span in pair).values())

    def decoded(self) -> tuple[Tensor, Tensor]:
        """The bf16 cache: rotated keys and values of everything, the current block included."""
        heads, total = slice(0, self.shape.heads), self.history.num_tokens
        parts = [torch.empty(1, self.shape.heads, total, CHANNELS, dtype=self.q.dtype, device=self.device) for _ in range(2)]
        for which, part in enumerate(parts):
            self.history.fill(which, 0, total, heads, part)
        return parts[0], parts[1]

    def reader(self, read: str) -> tuple[Callable[[], Tensor], Callable[[], str]]:
        """The product's own read path, and what it says of itself."""
        config = self.config.with_changes(read=read)
        readings, workspace = Readings(config), Workspace(config.workspace_mb << 20)
        return lambda: attend(self.q, self.history, workspace, readings.choose(self.q)), lambda: readings.choose(self.q).text()

    def official(self) -> Tensor:
        """The published pack's way, restated."""
        heads, tensors = slice(0, self.shape.heads), []
        for which in (0, 1):
            parts = []
            for pair in self.history.plan.pairs:
                for _ in range(2):  # each tensor is decoded twice, and one result is thrown away
                    out = torch.empty(
                        1, self.shape.heads, pair[which].num_tokens, CHANNELS, dtype=self.q.dtype, device=self.device
                    )
                    self.codec.decode(pair[which], slice(None), heads, out)
                parts.append(out.permute(0, 2, 1, 3).contiguous())
            tensors.append(torch.cat([*parts, self.history.current[which].permute(0, 2, 1, 3)], 1))
        committed = self.history.committed_tokens
        keys = tensors[0].transpose(1, 2)
        rotation = self._rotation(0, committed)
        rotated = rotate(keys[:, :, :committed].double(), Rotation(rotation.cos.double(), rotation.sin.double()))
        keys = torch.cat([rotated, keys[:, :, committed:].double()], 2).to(self.q.dtype)
        return choose_attention(self.q, False).call(self.q, keys, tensors[1].transpose(1, 2))[0]


def measure(shape: Shape, device: torch.device, codec: str, rehearsal: bool, save: bool) -> list[str]:
    """All ways of one shape; a row each. -> what is wrong: ways whose result is not attention's."""
    bench = Bench(shape, device, codec)
    keys, values = bench.decoded()
    plain = {op.name: op for op in (choose_attention(bench.q, lse) for lse in (False, True))}
    expected = choose_attention(bench.q, True).call(bench.q, keys, values)[0].float()
    bits = 8 * bench.stored_bytes / (2 * shape.heads * shape.keys * CHANNELS)
    common = {
        "shape": shape._asdict(),
        "codec": codec,
        "bits_per_value": round(bits, 3),
        "rehearsal": rehearsal,
        **conditions(device),
    }
    times = {name: median_ms(partial(op.call, bench.q, keys, values), device) for name, op in plain.items()}
    name = min(times, key=times.__getitem__)
    base = times[name]

    def timed(way: str, ms: float, **more: Any) -> None:
        # The model knows what the published codec's codes cost.
        known = codec == "qvg" or way == "bf16"
        predicted = predicted_ms(common["device"], way, shape.heads, shape.queries, shape.keys, bits) if known else None
        rounded = None if predicted is None else round(predicted, 3)
        found = {"way": way, "ms": round(ms, 3), "ratio": round(ms / base, 3), "predicted_ms": rounded, **more}
        report("attention", {**found, **common}, save)

    timed("bf16", base, attention=name, cache_bytes=keys.nbytes + values.nbytes)
    del keys, values
    ways: dict[str, tuple[Callable[[], Tensor], Callable[[], str]]] = {
        read: bench.reader(read) for read in ("exact", "fast", "direct")
    }
    if codec == "qvg":
        ways["official"] = (bench.official, lambda: "restated in torch")
    wrong = []
    for way, (call, says) in ways.items():
        try:
            out = call()
            error = float((out.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt())
            if not error <= TOLERANCES[way]:
                wrong.append(f"{shape.name}, {way}, {says()}: relative error {error:.2g}, allowed {TOLERANCES[way]:.2g}; no row")
                continue
            ms, peak = median_ms(call, device), peak_bytes(call, device)
        except (ConfigError, torch.cuda.OutOfMemoryError) as failure:
            report("attention", {"way": way, "failed": str(failure).splitlines()[0], **common}, save)
            continue
        timed(way, ms, relative_error=round(error, 5), attention=says(), peak_bytes=peak, cache_bytes=bench.stored_bytes)
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 1 where a way was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes on any machine")
    parser.add_argument("--save", action="store_true", help="append the rows to results/attention.jsonl")
    parser.add_argument("--only", default="", help="shapes whose name holds this text")
    parser.add_argument("--codec", choices=("qvg", "klt"), default="qvg", help="what keeps the cache")
    options = parser.parse_args(arguments)
    if options.save and options.tiny:
        parser.error("--save keeps measurements of a GPU at full size; leave it out here")
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("there is no GPU here; --tiny is a dry run without one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wrong = []
    for shape in TINY if options.tiny else SHAPES:
        if options.only in shape.name:
            wrong += measure(shape, device, options.codec, options.tiny, options.save)
    for fault in wrong:
        print(f"wrong: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
