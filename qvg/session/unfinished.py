"""Finished blocks of a run that goes on: on disk one by one, so that however the run ends, what was finished is there.

A file that grows: eight letters, then records. A record is a line of JSON (`shape`, `dtype`, CRC-32 of the values) behind the
length of that line, and the values. A record is written in one piece at the end; of one that a kill cut short nothing is read.
The first record has no values and says what the run is. The file's name says which process writes it; it goes when the run ends
well, and what a killed process has left is found by `abandoned`.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...kernels.leftovers import is_abandoned, own_mark
from ..errors import CacheFileError
from ..safetensors_writer import DTYPES

ENDING = ".blocks"
_MAGIC = b"QVGBLOC1"
_LENGTH = struct.Struct("<Q")
_MOST_JSON_BYTES = 1 << 20
_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
# Of a run's time, at most so much for forcing blocks to the disk. A kill loses nothing that was written, a power cut what was
# not forced.
_FORCING_SHARE = 0.01


class UnfinishedRun:
    """A run's file. `seconds`: what writing has taken so far. Raises OSError where it cannot be written.

    about: what the run is, in JSON.
    """

    def __init__(self, folder: Path, stem: str, about: dict[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{stem}-{own_mark()}{ENDING}"
        self.seconds, self._began = 0.0, time.perf_counter()
        self._forcing = self._last_forcing = 0.0
        # Unbuffered: nothing is left to be written when a disk is full.
        self._file: RawIOBase | None = open(self.path, "xb", buffering=0)  # noqa: SIM115 (`close` closes it)
        self._write(_MAGIC + _record(about, b""))

    def add(self, block: Tensor) -> None:
        """A finished block, of any shape, on any device."""
        values = block.detach().cpu().contiguous()
        data = values.reshape(-1).view(torch.uint8).numpy().tobytes()
        entry = {"shape": list(values.shape), "dtype": DTYPES[values.dtype], "crc": zlib.crc32(data)}
        self._write(_record(entry, data))

    def close(self) -> None:
        """The file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """The run has ended, and what it made is elsewhere."""
        self.close()
        with suppress(OSError):
            self.path.unlink()

    def _write(self, record: bytes) -> None:
        assert self._file is not None, "it was closed"
        began, rest = time.perf_counter(), memoryview(record)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        self._force(time.perf_counter())
        self.seconds += time.perf_counter() - began

    def _force(self, now: float) -> None:
        if self._forcing + self._last_forcing > _FORCING_SHARE * (now - self._began):
            return
        assert self._file is not None
        with suppress(OSError):  # not every file system can
            os.fsync(self._file.fileno())
        self._last_forcing = time.perf_counter() - now
        self._forcing += self._last_forcing


def read_blocks(path: Path) -> tuple[dict[str, Any], list[Tensor]]:
    """What a run was, and its finished blocks, as far as they are whole. Raises CacheFileError for a file that is none, OSError
    for one that cannot be read."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise CacheFileError(f"{path.name} is no file of finished blocks; it begins as another kind of file does")
        records = _records(file)
        about = next(records, None)
        if about is None:
            raise CacheFileError(f"{path.name} ends before it says what its run was; nothing was finished, delete it")
        return about[0], [_tensor(entry, data) for entry, data in records if "shape" in entry]


def abandoned(folder: Path, stem: str) -> list[Path]:
    """Files of runs whose process has ended, the oldest first."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            mark = entry.name.removeprefix(f"{stem}-").removesuffix(ENDING)
            if entry.name != f"{stem}-{mark}{ENDING}":
                continue
            with suppress(OSError):
                changed = entry.stat().st_mtime
                if is_abandoned(mark, time.time() - changed):
                    found.append((changed, Path(entry.path)))
    return [path for _, path in sorted(found)]


def claim(path: Path, stem: str) -> Path | None:
    """Take over an abandoned file, under a name of this process's. None: another process was first."""
    mine = path.with_name(f"{stem}-{own_mark()}{ENDING}")
    try:
        os.rename(path, mine)
    except OSError:
        return None
    return mine


def _record(entry: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(entry).encode()
    return _LENGTH.pack(len(text)) + text + data


def _records(file: BinaryIO) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Until the end, or until one that is not whole."""
    while True:
        length = file.read(_LENGTH.size)
        if len(length) < _LENGTH.size or _LENGTH.unpack(length)[0] > _MOST_JSON_BYTES:
            return
        try:
            entry = json.loads(file.read(_LENGTH.unpack(length)[0]))
            size = torch.Size(entry["shape"]).numel() * _BY_NAME[entry["dtype"]].itemsize if "shape" in entry else 0
        except (ValueError, TypeError, KeyError, RuntimeError, RecursionError):
            return
        if size < 0 or size > _left(file):
            return
        data = file.read(size)
        if "shape" in entry and (len(data) != size or zlib.crc32(data) != entry.get("crc")):
            return
        yield entry, data


def _left(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size - file.tell()


def _tensor(entry: dict[str, Any], data: bytes) -> Tensor:
    dtype = _BY_NAME[entry["dtype"]]
    values = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return values.reshape(entry["shape"])
