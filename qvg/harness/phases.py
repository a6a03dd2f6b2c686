"""Where time and memory go: denoising, encoding, decoding. On a GPU by its allocator; elsewhere by a stand-in, which says so."""

from __future__ import annotations

import ctypes
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Any, TypeVar, cast

import torch

from ..cache import KVCache

PHASES = ("denoise", "encode", "decode")
SAMPLE_SECONDS = 0.02
STAND_IN = (
    "stand-in for a GPU's allocator: bytes that the process has from malloc above what it had before the run, where phases begin "
    "and end and every 20 ms"
)
BY_ALLOCATOR = "bytes that torch's allocator gave out on the GPU"
NOTHING = "not measured: no GPU, and this system's C library does not say what it gave out (glibc 2.33 does)"
_F = TypeVar("_F", bound=Callable[..., Any])


class _Given(ctypes.Structure):
    """glibc's struct mallinfo2; `hblkhd` are bytes by mmap, `uordblks` all others that are in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


@cache
def _mallinfo() -> Callable[[], _Given] | None:
    """None where the C library has no such function."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):  # another library, another system
        return None
    function.restype = _Given
    return cast(Callable[[], _Given], function)


class PhaseWatch:
    """Seconds and bytes by phase. Phases may lie within one another; time counts for the innermost.

    Exact up to its samples: of a phase the first, the last and one every 20 ms. On a GPU the peak is the allocator's own, and
    seconds are taken after waiting for it.
    """

    def __init__(self, device: torch.device | None = None):
        self._cuda = device is not None and device.type == "cuda"
        self._device, self._stack = device, list[str]()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._samples: dict[str, list[int]] = {name: [] for name in PHASES}
        self._peaks = dict.fromkeys(PHASES, 0)
        self._lock, self._ended = threading.RLock(), threading.Event()
        self.how = BY_ALLOCATOR if self._cuda else STAND_IN if _mallinfo() is not None else NOTHING

    def __enter__(self) -> PhaseWatch:
        self._before = self._now()
        self._turn = time.perf_counter()
        self._thread = threading.Thread(target=self._sample_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """All that is done inside is of this phase."""
        self._turn_to(name)
        try:
            yield
        finally:
            self._turn_to(None)

    def inside(self, name: str, function: _F) -> _F:
        """`function`, whose calls are of this phase."""

        def watched(*arguments: Any, **more: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **more)

        return watched  # type: ignore[return-value]

    def watch(self, cache: KVCache) -> KVCache:
        """The same cache, whose commits count as encoding. What a method encodes while it attends is of denoising."""
        cache.commit = self.inside("encode", cache.commit)  # type: ignore[method-assign]
        cache.commit_layer = self.inside("encode", cache.commit_layer)  # type: ignore[method-assign]
        return cache

    def _turn_to(self, name: str | None) -> None:
        """Begin a phase, or end the innermost."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        with self._lock:
            now = time.perf_counter()
            if self._stack:
                self.seconds[self._stack[-1]] += now - self._turn
                self._take()
            if name is None:
                self._stack.pop()
            else:
                self._stack.append(name)
            self._turn = now
            if self._cuda:
                torch.cuda.reset_peak_memory_stats(self._device)
            self._take()

    def _take(self) -> None:
        if not self._stack or self.how == NOTHING:
            return
        size = max(0, self._now() - self._before)
        self._samples[self._stack[-1]].append(size)
        peak = torch.cuda.max_memory_allocated(self._device) - self._before if self._cuda else size
        self._peaks[self._stack[-1]] = max(self._peaks[self._stack[-1]], peak)

    def _sample_on(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            with self._lock:
                self._take()

    def _now(self) -> int:
        if self._cuda:
            return torch.cuda.memory_allocated(self._device)
        given = _mallinfo()
        if given is None:
            return 0
        found = given()
        return int(found.hblkhd + found.uordblks)

    def memory(self) -> dict[str, Any]:
        """{phase: {"peak_bytes", "plateau_bytes"}} and "how" it was measured. The plateau is the median of the phase's last
        quarter: what it takes once it has grown to its size."""
        found: dict[str, Any] = {"how": self.how}
        for name in PHASES:
            samples = self._samples[name]
            if samples:
                last = samples[-max(1, len(samples) // 4) :]
                found[name] = {"peak_bytes": self._peaks[name], "plateau_bytes": int(statistics.median(last))}
        return found
