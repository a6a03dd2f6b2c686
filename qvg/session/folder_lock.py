"""Who writes to a folder. The lock is the system's, on an open file: it goes with the process, however that ends."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

NAME = "lock"


class FolderLock:
    """Held from `__init__` until `release`. BlockingIOError: another run holds it, of this process or another one; OSError where
    the folder cannot be written to."""

    def __init__(self, folder: Path):
        self._file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(self._file)
        except OSError:
            os.close(self._file)
            raise
        with suppress(OSError):  # for people who look: which process it is
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0) if hasattr(os, "pwrite") else None

    def release(self) -> None:
        """Another run may write now. Once is enough, twice is no harm."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _lock(file: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        try:
            # Beyond what is in the file, so that it can be read.
            os.lseek(file, 1 << 30, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from None
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
