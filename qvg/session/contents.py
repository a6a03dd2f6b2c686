"""A cache's file, opened: its metadata, its tensors' shapes, and each tensor when it is asked for, compared with its checksum."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CacheFileError, ConfigError, shown
from ..file_names import in_utf8
from ..json_text import read_json
from ..safetensors_writer import DTYPES, checksum
from .checked import MisfitError
from .state import CHECKED_VERSION
from .tile_files import Entry

FORMAT = "qvg-cache"
READABLE_VERSIONS = (1, 2, 3, 4, 5)
CHECKSUMS, STATE = "crc32", "state"
_TORCH_TYPES = {name: dtype for dtype, name in DTYPES.items()}


class Contents:
    """What is in a file of ours. Tensors are read, not mapped: what somebody does to the file later does not reach a run."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file = path, file
        (length,) = struct.unpack("<Q", file.read(8))
        header = read_json(file.read(length))
        metadata, self._first = header.pop("__metadata__", {}), 8 + length
        self.version = self._version(metadata)
        self._checksums = self._read_checksums(metadata)
        self.state = metadata.get(STATE, "")
        self._check(STATE, self.state.encode("utf-8", "surrogatepass"))
        self._places = {name: tuple(about["data_offsets"]) for name, about in header.items()}
        self.entries = {name: read_entry(name, about["dtype"], about["shape"]) for name, about in header.items()}
        if self._checksums is not None and self._checksums.keys() != {STATE, *self.entries}:
            raise MisfitError(f"it has {len(self._checksums) - 1} checksums for {len(self.entries)} tensors, or of other names")

    def read(self, name: str) -> Tensor:
        """A tensor, on the CPU. CacheFileError: it is not what was saved."""
        (begin, end), (shape, dtype) = self._places[name], self.entries[name]
        data = torch.empty(end - begin, dtype=torch.uint8)
        self._file.seek(self._first + begin)
        if self._file.readinto(data.numpy().data) != end - begin:  # type: ignore[attr-defined]
            raise CacheFileError(f"{self._path} has become shorter while it was read; copy it anew from where it is whole")
        self._check(name, data.numpy().data)
        return data.view(dtype).reshape(shape)

    def _version(self, metadata: dict[str, str]) -> int:
        if metadata.get("format") != FORMAT:
            raise CacheFileError(
                f"{self._path} is a safetensors file, but not a saved cache (no format {FORMAT!r} in it); "
                "choose one made by save_cache"
            )
        version = metadata.get("version", "")
        if version not in map(str, READABLE_VERSIONS):
            known = ", ".join(map(str, READABLE_VERSIONS[:-1]))
            raise CacheFileError(
                f"{self._path} has cache format version {shown(version, 20)}, this version reads {known} and "
                f"{READABLE_VERSIONS[-1]}; update the pack to open a newer one"
            )
        return int(version)

    def _read_checksums(self, metadata: dict[str, str]) -> dict[str, str] | None:
        """What was computed from the state and from every tensor; None in a version without."""
        if (self.version >= CHECKED_VERSION) != (CHECKSUMS in metadata):
            has = "has checksums" if CHECKSUMS in metadata else "has no checksums"
            raise MisfitError(f"it says that it is of version {self.version}, but {has}")
        if CHECKSUMS not in metadata:
            return None
        try:
            found = read_json(metadata[CHECKSUMS])
        except ValueError as error:
            raise MisfitError(f"its checksums are no JSON: {error}") from None
        if not isinstance(found, dict) or STATE not in found:
            raise MisfitError("its checksums are no object with one of its state")
        return found

    def _check(self, name: str, data: bytes | memoryview) -> None:
        if self._checksums is not None and self._checksums[name] != checksum(data):
            raise CacheFileError(
                f"{self._path} is damaged: {shown(name)} is not what was saved; copy the file anew from where it is whole, or "
                "save the cache again"
            )


def read_entry(name: str, kind: str, shape: list[int]) -> Entry:
    """A tensor's shape and type as a file's header has them. MisfitError."""
    if kind not in _TORCH_TYPES:
        raise MisfitError(f"{shown(name)} is of the type {shown(kind)}, which no saved cache has")
    return Entry(tuple(shape), _TORCH_TYPES[kind])


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """The contents of a cache's file. CacheFileError, in one sentence, for whatever is wrong with them, inside the `with` too."""
    _require_file(path)
    try:
        with in_utf8(path) as name, safe_open(name, "pt"), path.open("rb") as file:  # safetensors' own look at it: it is whole
            yield Contents(path, file)
    except (CacheFileError, ConfigError):
        raise
    except MisfitError as error:
        raise CacheFileError(
            f"{path} says it is a {FORMAT} file, but its contents do not fit together ({shown(str(error), 300)}); update the "
            "pack or save it again"
        ) from error
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise CacheFileError(
            f"{path} cannot be read as a saved cache ({shown(str(error), 200)}); it may be truncated or foreign, save the cache "
            "again"
        ) from error


def _require_file(path: Path) -> None:
    """A folder or a pipe is told before anybody waits for what comes out of it."""
    try:
        found = path.stat().st_mode
        if stat.S_ISREG(found):
            with path.open("rb"):
                return
    except OSError as error:
        reason = error.strerror
    except ValueError:  # a name with a zero byte
        reason = "no file has such a name"
    else:
        reason = "it is a folder" if stat.S_ISDIR(found) else "it is no file"
    raise CacheFileError(f"{shown(str(path), 300)} cannot be opened ({reason}); name a file that save_cache has made")
