"""Rows of results: one JSON object per line, each with the conditions under which it was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).with_name("results")


def conditions(device: torch.device) -> dict[str, Any]:
    """Device, versions and date."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if importlib.util.find_spec("triton"):
        versions["triton"] = importlib.metadata.version("triton")
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    return {"device": name, "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(), "versions": versions}


def report(name: str, row: dict[str, Any], save: bool) -> None:
    """Print a row, and with `save` append it to `results/<name>.jsonl`."""
    line = json.dumps(row)
    print(line, flush=True)
    if not save:
        return
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def median_ms(call: Callable[[], object], device: torch.device, repeats: int = 7, warmup: int = 2) -> float:
    """Median time of one call: events on a GPU, a clock elsewhere."""
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop))
        else:
            began = time.perf_counter()
            call()
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """What the allocator held at most during one call beyond what it held before; None without a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
