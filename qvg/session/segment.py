"""A segment of a session: one safetensors file, written once, with a checksum for every tensor and one for what it says."""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import SessionError, shown
from ..file_names import in_utf8
from ..json_text import read_json
from ..safetensors_writer import LateTensor, checksum, in_memory, safetensors_bytes, write_safetensors
from .checked import MisfitError
from .contents import CHECKSUMS, read_entry
from .tile_files import Entries

FORMAT, ENDING = "qvg-session-segment", ".safetensors"
ABOUT = "about"
# Letters, digits and dashes: no way out of the session's folder.
NAME = re.compile(r"[a-z][a-z0-9-]{0,79}")
_MOST_HEADER_BYTES = 256 << 20


@dataclass(frozen=True)
class Segment:
    """What the index knows of a segment: its name, its file's bytes, and the checksum of its header, which holds those of its
    tensors."""

    name: str
    nbytes: int
    crc32: str

    def path(self, folder: Path) -> Path:
        """Its file."""
        return folder / f"{self.name}{ENDING}"


def segment_bytes(tensors: Mapping[str, LateTensor], about: Mapping[str, Any]) -> int:
    """Size of the file that `write_segment` makes."""
    sums = json.dumps(dict.fromkeys([ABOUT, *tensors], checksum(b"")), separators=(",", ":"))
    return safetensors_bytes(tensors, {"format": FORMAT, ABOUT: _text(about), CHECKSUMS: sums})


def write_segment(folder: Path, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Segment:
    """Write it; to force it to the disk is the caller's. What has this name already belongs to a checkpoint that never was.
    OSError."""
    assert NAME.fullmatch(name), name
    path, text = folder / f"{name}{ENDING}", _text(about)
    with suppress(FileNotFoundError):
        path.unlink()
    write_safetensors(
        path, in_memory(tensors), {"format": FORMAT, ABOUT: text}, checksums=(CHECKSUMS, {ABOUT: checksum(text.encode())})
    )
    with path.open("rb") as file:
        return Segment(name, os.fstat(file.fileno()).st_size, checksum(_header(file)))


def _text(about: Mapping[str, Any]) -> str:
    return json.dumps(about, separators=(",", ":"))


def _header(file: BinaryIO) -> bytes:
    """The length and the JSON that a safetensors file begins with. ValueError."""
    begin = file.read(8)
    if len(begin) < 8:
        raise ValueError("it is empty")
    (length,) = struct.unpack("<Q", begin)
    if length > min(_MOST_HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
        raise ValueError(f"its header has {length} bytes")
    return begin + file.read(length)


class OpenSegment:
    """A segment whose header is read and compared with the index. Tensors are read when they are asked for, and compared with
    their checksums; with `mapped` they stay on the disk until they are looked at. SessionError, in one sentence."""

    def __init__(self, folder: Path, segment: Segment, mapped: bool = False):
        self._path, self._mapped = segment.path(folder), mapped
        try:
            with in_utf8(self._path) as name, safe_open(name, "pt"), self._path.open("rb") as file:  # safetensors' own look
                header = _header(file)
                nbytes = os.fstat(file.fileno()).st_size
            if nbytes != segment.nbytes or checksum(header) != segment.crc32:
                raise ValueError(f"it is not the one that was written, of {segment.nbytes} bytes")
            self._read_header(header)
        except FileNotFoundError:
            raise SessionError(f"{self._path} is missing; copy the session's folder anew from where it is whole") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SessionError(
                f"{self._path} cannot be read ({shown(str(error), 200)}); copy the session's folder anew from where it is whole"
            ) from error

    def _read_header(self, header: bytes) -> None:
        entries = read_json(header[8:])
        metadata = entries.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise MisfitError("it is no segment of a session")
        sums = read_json(metadata[CHECKSUMS])
        if sums.keys() != {ABOUT, *entries} or sums[ABOUT] != checksum(metadata[ABOUT].encode("utf-8", "surrogatepass")):
            raise MisfitError("its checksums are not those of its tensors")
        self.about: dict[str, Any] = read_json(metadata[ABOUT])
        if not isinstance(self.about, dict):
            raise MisfitError("what it says of itself is no object")
        self.entries: Entries = {name: read_entry(name, each["dtype"], each["shape"]) for name, each in entries.items()}
        self._places = {name: tuple(each["data_offsets"]) for name, each in entries.items()}
        self._checksums, self._first = sums, len(header)

    def read(self, name: str) -> Tensor:
        """A tensor, on the CPU. SessionError: it is not what was written."""
        (begin, end), (shape, dtype) = self._places[name], self.entries[name]
        try:
            with self._path.open("rb") as file:
                if self._mapped and end > begin:
                    data = self._map(file, begin, end)
                else:
                    file.seek(self._first + begin)
                    data = torch.empty(end - begin, dtype=torch.uint8)
                    if file.readinto(data.numpy().data) != end - begin:
                        raise OSError("it has become shorter")
        except OSError as error:
            raise SessionError(
                f"{self._path} cannot be read ({shown(str(error), 200)}); copy the session's folder anew from where it is whole"
            ) from error
        if self._checksums[name] != checksum(data.numpy().data):
            raise SessionError(
                f"{self._path} is damaged: {shown(name)} is not what was written; copy the session's folder anew from where it "
                "is whole"
            )
        return data.view(dtype).reshape(shape)

    def _map(self, file: BinaryIO, begin: int, end: int) -> Tensor:
        """The bytes as the system pages them in. They are private: nobody's writing reaches the file."""
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return torch.frombuffer(whole, dtype=torch.uint8, count=end - begin, offset=self._first + begin)
