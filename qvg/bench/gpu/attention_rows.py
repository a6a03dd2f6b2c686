"""Attention over caches of real sizes: every way to read against the same keys and values in 16 bits, read by the fastest
attention that torch has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....kernels.attention.library import choose_attention
from ....kernels.errors import BackendError
from ...codec.span import storage_bytes
from ...config import PRESETS
from ...errors import ConfigError
from .correctness import READ_TOLERANCES, relative_error
from .cost_model import Work, predicted_ms
from .layer_run import LayerRun, Shape
from .timing import host_ms, median_ms, peak_bytes

SELF_FORCING = Shape("Self-Forcing 1.3B", 12, 30, 52)
SIZES = (24, 90, 180)  # latent frames in memory
READS = ("exact", "fast", "direct")


class Way(NamedTuple):
    """A call, and what it says of itself afterwards."""

    call: Callable[[], Tensor]
    says: Callable[[], str]


# Further ways for a run and the queries, keys and values of its block.
Others = Callable[[LayerRun, Tensor, Tensor, Tensor], dict[str, Way]]


def attention_rows(
    shape: Shape,
    preset: str,
    sizes: Sequence[int],
    device: torch.device,
    deadline: float = float("inf"),
    others: Others = lambda run, q, k, v: {},
    repeats: int = 7,
) -> Iterator[dict[str, Any]]:
    """A row for every size and way. One that is wrong has `wrong`, a sentence, and no time; one that cannot run has `failed`.
    `others` names further ways. Sizes that would begin after `deadline` (time.monotonic) are left out,
    and a row says so."""
    run = LayerRun(shape, PRESETS[preset].with_changes(workspace_mb=512), device)
    for frames in sizes:
        common: dict[str, Any] = {"preset": preset, "shape": shape.name, "frames": frames}
        if time.monotonic() > deadline:
            yield {**common, "way": "all", "failed": "left out, because the time was up"}
            continue
        try:
            run.grow(frames)
            for row in _one_size(run, others, repeats):
                yield {**common, **row}
        except torch.cuda.OutOfMemoryError:
            yield {**common, "way": "all", "failed": "out of memory, with the 16-bit cache that this is compared with"}
            torch.cuda.empty_cache()


def _one_size(run: LayerRun, others: Others, repeats: int) -> Iterator[dict[str, Any]]:
    device, (q, k, v) = run.device, run.block()
    keys, values = run.visible(k, v, run.dtype)
    rotated = run.rotated(q)
    expected = choose_attention(rotated, True).call(rotated, keys, values)[0].float()
    plain = {op.name: op for op in (choose_attention(rotated, lse) for lse in (False, True))}
    times = {name: median_ms(partial(op.call, rotated, keys, values), device, repeats) for name, op in plain.items()}
    name = min(times, key=times.__getitem__)
    work = _work(run, keys.shape[2])
    base = {"way": "bf16", "ms": round(times[name], 3), "ratio": 1.0, "attention": name, "cache_bytes": 2 * keys.nbytes}
    yield base | {"keys": keys.shape[2], "predicted_ms": _predicted(device, "bf16", work)}
    del keys, values
    ways = {read: _reader(run, read, q, k, v) for read in READS} | others(run, q, k, v)
    for way, one in ways.items():
        yield _measured(run, way, one, expected, times[name], work, repeats)


def _measured(run: LayerRun, way: str, one: Way, expected: Tensor, base_ms: float, work: Work, repeats: int) -> dict[str, Any]:
    allowed = READ_TOLERANCES.get(way, READ_TOLERANCES["exact"])
    try:
        error = relative_error(one.call(), expected)
        if not error <= allowed:
            return {"way": way, "wrong": f"{way}, {one.says()}: off by {error:.2g}, allowed {allowed:.2g}"}
        ms = median_ms(one.call, run.device, repeats)
        peak, host = peak_bytes(one.call, run.device), host_ms(one.call, run.device, repeats)
    except (ConfigError, BackendError, torch.cuda.OutOfMemoryError) as failure:
        return {"way": way, "failed": str(failure).splitlines()[0]}
    return {
        "way": way,
        "ms": round(ms, 3),
        "ratio": round(ms / base_ms, 3),
        "host_ms": round(host, 3),
        "predicted_ms": _predicted(run.device, way, work),
        "relative_error": round(error, 5),
        "attention": one.says(),
        "peak_bytes": peak,
        "cache_bytes": stored_bytes(run),
    }


def _reader(run: LayerRun, read: str, q: Tensor, k: Tensor, v: Tensor) -> Way:
    """The product's own read path, and what it says of itself."""
    reader = run.reader(read)
    return Way(lambda: reader.attend(0, q, k, v), lambda: "; ".join(reader.explain()))


def stored_bytes(run: LayerRun) -> int:
    """Of the cache, counted."""
    return sum(storage_bytes(span for pair in run.cache.layers[0].state.history for span in pair).values())


def _work(run: LayerRun, keys: int) -> Work:
    shape = run.shape
    tokens = run.cache.layout.frames * run.cache.spec.tokens_per_frame
    bits = 8 * stored_bytes(run) / (2 * shape.heads * tokens * shape.channels)
    return Work(shape.heads, shape.block[2], keys, bits, run.cache.config.codec)


def _predicted(device: torch.device, way: str, work: Work) -> float | None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found = predicted_ms(name, way, work)
    return None if found is None else round(found, 3)
