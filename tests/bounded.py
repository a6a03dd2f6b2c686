"""How much time and memory something takes, on a machine that others work on too."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def bounded(seconds: float, megabytes: float) -> Iterator[None]:
    """Fail where the block takes more of this process's own time, or, on Linux, of memory at its peak."""
    begin_bytes, begin = _peak_bytes(), time.process_time()
    yield
    took, grew = time.process_time() - begin, _peak_bytes(reset=False) - begin_bytes
    assert took < seconds, f"{took:.1f} s, and {seconds:.0f} are allowed"
    assert grew < megabytes * 1e6, f"{grew / 1e6:.0f} MB, and {megabytes:.0f} are allowed"


def _peak_bytes(reset: bool = True) -> int:
    """Most memory that the process had, since it was last reset to what it has."""
    if not _RESET.exists():
        return 0
    if reset:
        _RESET.write_text("5")
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


@contextmanager
def own_memory() -> Iterator[list[int]]:
    """How many bytes the block adds at most to memory that is this process's own, pages of files aside, as looked at every
    millisecond; 0 where the system does not say. In the list when the block has ended."""
    most, ended = [0], threading.Event()
    began = _own_bytes()

    def look() -> None:
        while not ended.wait(0.001):
            most[0] = max(most[0], _own_bytes() - began)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield most
    finally:
        ended.set()
        looking.join()


def _own_bytes() -> int:
    if not _STATUS.exists():
        return 0
    return next((1024 * int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith("RssAnon:")), 0)
