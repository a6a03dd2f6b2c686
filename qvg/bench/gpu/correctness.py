"""Is every kernel right on this machine? Caches of all presets are written and read by the backend that runs here, and held
against torch's own, the definition of attention included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...config import PRESETS, QVGConfig
from .layer_run import LayerRun, Shape

# Relative RMS of attention's output: what 16-bit inputs and outputs may cost, and eight bits (docs/kernels.md, "Eight bits").
READ_TOLERANCES = {"exact": 1e-2, "direct": 1e-2, "fast": 4e-2}
# What one backend's encoding may lose more than torch's, as a share of what that loses: 0.1 dB.
ENCODE_TOLERANCE = 10**0.005 - 1
# Of decoded tokens, relative RMS: the output's 16 bits, and float16 products.
DECODE_TOLERANCE = 6e-3
SHAPE = Shape("small", 3, 12, 22)
FRAMES = 15


class Checked(NamedTuple):
    """One comparison. `error` is of the kind that `allowed` bounds; NaN is never allowed."""

    name: str
    error: float
    allowed: float

    @property
    def is_right(self) -> bool:
        """Whether it holds."""
        return self.error <= self.allowed

    def text(self) -> str:
        """For people."""
        says = "ok" if self.is_right else "WRONG"
        return f"{self.name}: {says}, off by {self.error:.1e}, allowed {self.allowed:.1e}"


def configurations() -> dict[str, QVGConfig]:
    """What is tried: every preset, with spans short enough for a small cache, and settings whose kernels no preset needs."""
    changes = {"sink_frames": 3, "recent_frames": 3, "workspace_mb": 64}
    found = {}
    for name, config in PRESETS.items():
        short = {"qvg": {"span_frames": 6, "clusters": 64}, "klt": {"span_frames": 3}}.get(config.codec, {})
        found[name] = config.with_changes(**changes, **short)
    found["qvg, 4 bits, from min to max"] = found["qvg"].with_changes(bits=4, symmetric=False)
    found["balanced, Hadamard"] = found["balanced"].with_changes(transform="hadamard")
    return found


def check_kernels(
    device: torch.device, backend: str, shape: Shape = SHAPE, frames: int = FRAMES, only: tuple[str, ...] = ()
) -> Iterator[Checked]:
    """Everything that is compared, one after the other. `backend`: "triton" or "torch"; `only`: some of `configurations`."""
    for name, config in ((name, config) for name, config in configurations().items() if name in (only or (name,))):
        run = LayerRun(shape, config.with_changes(backend=backend), device)
        run.grow(frames)
        if config.codec != "none":
            yield _encoding(name, run, LayerRun(shape, config.with_changes(backend="torch"), device), frames)
            yield from _decoding(name, run)
        yield from _reading(name, run, backend)


def _encoding(name: str, run: LayerRun, plain: LayerRun, frames: int) -> Checked:
    """Both backends' caches of the same video against the video."""
    original = LayerRun(run.shape, PRESETS["exact"].with_changes(backend="torch"), run.device)
    original.grow(frames)
    plain.grow(frames)
    errors = []
    for which in (0, 1):
        wanted = original.stored_tokens(which, torch.float32)
        ours, theirs = (relative_error(one.stored_tokens(which, torch.float32), wanted) for one in (run, plain))
        errors.append(ours / theirs - 1 if theirs > 0 else math.nan)
    return Checked(f"{name}: encoded", math.nan if any(map(math.isnan, errors)) else max(errors), ENCODE_TOLERANCE)


def _decoding(name: str, run: LayerRun) -> Iterator[Checked]:
    """Spans decoded by the backend against torch."""
    codec = run.cache.layers[0].codecs.keys
    for which, kind in enumerate(("keys", "values")):
        span = run.cache.layers[0].state.spans[0][which]
        shape = (1, run.shape.heads, span.num_tokens, run.shape.channels)
        start = sum(pair.keys.num_tokens for pair in run.cache.layers[0].state.sink)
        wanted = run.stored_tokens(which, torch.float32)[:, :, start : start + span.num_tokens]
        got = codec.decode(span, slice(None), slice(None), torch.empty(shape, dtype=run.dtype, device=run.device))
        yield Checked(f"{name}: decoded {kind}", relative_error(got, wanted), DECODE_TOLERANCE)


def _reading(name: str, run: LayerRun, backend: str) -> Iterator[Checked]:
    """Every way to read, with many queries and few, along a rope and by cameras, against the definition."""
    q, k, v = run.block()
    keys, values = run.visible(k, v, torch.float32)
    wanted = defined_attention(run.rotated(q), keys, values)
    few = slice(0, run.cache.spec.tokens_per_frame)
    projector = run.projector()
    by_cameras = _defined_by_cameras(run, q, k, v)
    for read, allowed in READ_TOLERANCES.items():
        reader = run.reader(read, backend)
        yield Checked(f"{name}: read {read}", relative_error(reader.attend(0, q, k, v), wanted), allowed)
        # Codes are not projected by every kernel that reads them: those then run in torch, and are right all the same.
        reader = reader if read != "direct" else run.reader(read, "auto" if backend == "triton" else backend)
        got = reader.attend_projected(0, q, k, v, projector)
        yield Checked(f"{name}: read {read}, by cameras", relative_error(got, by_cameras), allowed)
        reader = run.reader(read, backend, workspace_mb=16)  # several tiles, whose results are merged
        got = reader.attend(0, q, k, v)[:, :, few]
        yield Checked(f"{name}: read {read}, tile by tile", relative_error(got, wanted[:, :, few]), allowed)


def _defined_by_cameras(run: LayerRun, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    projector = run.projector()
    queries, *block = projector.block(q.float(), k.float(), v.float())
    sides = []
    for which in (0, 1):
        stored = run.stored_tokens(which, torch.float32)
        encoding = projector.encoding(which, 0, stored.shape[2])
        sides.append(torch.cat([encoding.apply_(stored), block[which]], 2))
    return projector.leave(defined_attention(queries, *sides))


def defined_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, some queries of one head at a time, in float64 where there is float64."""
    precise = torch.float64 if q.device.type in ("cpu", "cuda") else torch.float32
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    for head in range(q.shape[1]):
        k, v = (x[:, head].to(precise) for x in (keys, values))
        for start in range(0, q.shape[2], 1024):
            scores = q[:, head, start : start + 1024].to(precise) @ k.transpose(1, 2) / math.sqrt(q.shape[3])
            out[:, head, start : start + 1024] = (scores.softmax(-1) @ v).float()
    return out


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """RMS of the difference as a share of what was wanted."""
    difference = (got.float() - wanted.float()).square().mean().sqrt()
    return float(difference / wanted.float().square().mean().sqrt())
