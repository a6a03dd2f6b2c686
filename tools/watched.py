"""What something costs that is tried many times, and whether it ends at all."""

from __future__ import annotations

import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class HangsError(BaseException):
    """No Exception: nothing that is tried may take it for an error of its own."""


@dataclass(frozen=True)
class Watched:
    """Seconds of work, megabytes on top of what there was, and the traceback of what was raised, or that it hung."""

    seconds: float
    megabytes: float
    wrong: str


def watched(call: Callable[[], object], patience_seconds: int) -> Watched:
    """Call it; end it after so many seconds of the clock. In the main thread, and not on Windows."""
    begin, before = time.process_time(), peak_megabytes(reset=True)
    wrong = ""
    earlier = signal.signal(signal.SIGALRM, _late)
    try:
        signal.alarm(patience_seconds)
        call()
    except HangsError:
        wrong = f"hangs: not done after {patience_seconds} s"
    except Exception:
        wrong = traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
    return Watched(time.process_time() - begin, peak_megabytes() - before, wrong)


def peak_megabytes(reset: bool = False) -> float:
    """The most memory that this process had, on Linux since the last reset."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1000


def _late(number: int, frame: object) -> None:
    raise HangsError
