"""How much time and memory something takes, on a machine that others work on too."""

from __future__ import annotations

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
