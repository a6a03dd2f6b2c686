"""How long something takes on a device, what memory it takes, and under which conditions that was found."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def conditions(device: torch.device) -> dict[str, Any]:
    """Device, versions and date."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.version.hip:
        versions["hip"] = torch.version.hip
    for name in ("triton", "triton-windows"):
        if importlib.util.find_spec("triton"):
            try:
                versions["triton"] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {"device": name, "system": platform.system(), "date": today, "versions": versions}


def median_ms(call: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Median time of one call: events on a GPU, a clock elsewhere. Two more are made first where there are several."""
    for _ in range(min(2, repeats - 1)):
        call()
    times: list[float] = []
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


def host_ms(call: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median time until one call returns, the GPU not waited for: what the host takes to ask for the work."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1e3)
    synchronize(device)
    return statistics.median(times)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """What the allocator held at most during one call beyond what it held before; None without a GPU."""
    if device.type != "cuda":
        call()
        return None
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
