"""Temporary files that say who writes them, so that those of killed writers can be told from those in work.

A folder may be shared: by threads, by programs, by containers that have the same process numbers, by hosts. A process is looked
up only where its number means the same as here; what others left is removed once nobody can be writing it any more.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import stat
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

# Place that process numbers belong to, process number, when it was started, and what keeps two files of one process apart.
_MARK = r"([0-9a-f]{8})-(\d{1,10})-(\d{1,20})-[0-9a-f]{16}"
_NAME = re.compile(rf"\.qvg-unfinished-{_MARK}")
# Nobody writes to one file for so long: not after a night's sleep of the machine, and not after a weekend's.
_OLD_SECONDS = 7 * 24 * 3600
_ZOMBIES = "ZX"
# When this process looks through a folder again; a folder of usual size at every file.
_LOOK_AGAIN: dict[Path, float] = {}
_MOST_FOLDERS, _FREE_SECONDS = 1000, 0.001


def own_name() -> str:
    """A new name for a file of this process, at most 70 letters long."""
    return f".qvg-unfinished-{own_mark()}"


def own_mark() -> str:
    """A new part of a file's name that says which process writes it, at most 57 letters long."""
    return f"{_place()}-{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(8)}"


def is_abandoned(mark: str, age_seconds: float) -> bool:
    """Whether nobody writes any more to a file with this mark, which was last written so long ago; no for what is no mark."""
    writer = re.fullmatch(_MARK, mark)
    return writer is not None and (age_seconds > _OLD_SECONDS or _dead(*writer.groups()))


def remove_leftovers(folder: Path, now: float) -> None:
    """Remove from `folder` what a writer has left that is dead, and what is old. Whatever cannot be removed stays.

    Who writes thousands of files into one folder looks through it so seldom that it takes a fiftieth of the time at most.

    now: the time in seconds as the folder's own disk tells it, which may be another machine's.
    """
    if time.monotonic() < _LOOK_AGAIN.get(folder, 0.0):
        return
    begun = time.thread_time()
    _look_through(folder, now)
    took = time.thread_time() - begun
    if len(_LOOK_AGAIN) > _MOST_FOLDERS:
        _LOOK_AGAIN.clear()
    _LOOK_AGAIN[folder] = time.monotonic() + 50 * max(0.0, took - _FREE_SECONDS)


def _look_through(folder: Path, now: float) -> None:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            writer = _NAME.fullmatch(entry.name)
            if writer is None:
                continue
            with suppress(OSError):
                found = os.lstat(entry.path)
                if stat.S_ISREG(found.st_mode) and (now - found.st_mtime > _OLD_SECONDS or _dead(*writer.groups())):
                    os.unlink(entry.path)


def _dead(place: str, process: str, started: str) -> bool:
    """Whether this writer is known to have ended."""
    return place == _place() and not _runs(int(process), int(started))


def _place() -> str:
    """Eight letters for what process numbers belong to: a start of a kernel and, in containers, a set of numbers of its own."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            facts = f"{file.read()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        # A Linux that does not say: no process is looked up.
        facts = secrets.token_hex() if sys.platform == "linux" else str(uuid.getnode())
    return hashlib.sha256(f"{platform.node()} {facts}".encode()).hexdigest()[:8]


def _started(process: int) -> int:
    """When a process was started, in ticks since the machine was; 0 where nothing tells, or it is dead."""
    state, ticks = _linux_status(process)
    return 0 if state in _ZOMBIES else ticks


def _linux_status(process: int) -> tuple[str, int]:
    """State and start of a process, as Linux lists them; ("?", 0) elsewhere."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()  # its name, in brackets, may hold anything
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return "?", 0


def _runs(process: int, started: int) -> bool:
    """Whether the process that was started then still runs. In doubt it does."""
    if sys.platform == "win32":
        return _runs_on_windows(process)
    try:
        os.kill(process, 0)  # asks, and does nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another user's
    state, ticks = _linux_status(process)
    return state not in _ZOMBIES and not (ticks and started and ticks != started)


def _runs_on_windows(process: int) -> bool:
    # os.kill(process, 0) would send it Ctrl-C.
    import ctypes

    synchronize, still_running, no_such_process = 0x00100000, 0x102, 87
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel32.OpenProcess.restype = ctypes.c_void_p
    handle = kernel32.OpenProcess(synchronize, False, process)
    if not handle:
        return bool(ctypes.get_last_error() != no_such_process)  # type: ignore[attr-defined,unused-ignore]
    try:
        return bool(kernel32.WaitForSingleObject(ctypes.c_void_p(handle), 0) == still_running)
    finally:
        kernel32.CloseHandle(ctypes.c_void_p(handle))
