"""What a session says of itself: a manifest that is replaced in one step, and an index that only grows.

    session.json    what the newest checkpoint is: how long the index was then, what the caches are, whose session it is
    index.jsonl     a line for every checkpoint: segments that came and went, positions of new frames

Neither gets slower to write while the run goes on: the manifest stays as long as it is, and of the index only the end is
written. What stands in the index behind the length that the manifest names belongs to a checkpoint that never was.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import SessionError, shown
from ..files import force_all_to_disk, written_whole
from ..json_text import read_json
from ..safetensors_writer import checksum
from .checked import Getter, MisfitError, as_it_is, as_list, as_object, as_text, as_whole
from .segment import NAME, Segment

FORMAT, VERSION = "qvg-session", 1
MANIFEST, INDEX = "session.json", "index.jsonl"
_MOST_MANIFEST_BYTES = 16 << 20
REMEDY = "copy the session's folder anew from where it is whole"
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Manifest:
    """The newest checkpoint.

    id        of this session, sixteen hexadecimal digits; `parent`: of the one that it was branched off, and behind which block
    model     its name; `identity`: what else says which weights it is
    settings  what a run must agree with to go on: noise, schedule, codec
    plan      what it may change: the path, prompts, how many frames
    blocks    finished blocks, of so many `frames`
    caches    of each cache its prefix and its state, see `CacheRecorder`
    """

    id: str
    model: str
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    plan: Mapping[str, Any]
    every: int = 1
    parent: Mapping[str, Any] | None = None
    blocks: int = 0
    frames: int = 0
    lives: int = 0
    index_bytes: int = 0
    index_crc32: str = checksum(b"")
    caches: tuple[Mapping[str, Any], ...] = ()

    def text(self) -> str:
        """As it stands in the file."""
        said = {"format": FORMAT, "version": VERSION, **asdict(self)}
        text = json.dumps(said, indent=1, sort_keys=True)
        return json.dumps({"crc32": checksum(text.encode()), "session": said}, indent=1, sort_keys=True)

    def write(self, folder: Path) -> None:
        """Replace the one that is there. OSError."""
        with written_whole(folder / MANIFEST) as unfinished:
            unfinished.write_text(self.text(), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """SessionError, in one sentence, for whatever is wrong with it."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MOST_MANIFEST_BYTES:
            raise MisfitError(f"it has {path.stat().st_size} bytes")
        return _manifest_of(read_json(path.read_bytes()))
    except FileNotFoundError:
        raise SessionError(f"{folder} holds no session ({MANIFEST} is not there); name a folder that a run has made") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SessionError(f"{path} cannot be read as a session's ({shown(str(error), 300)}); {REMEDY}") from error


def _manifest_of(found: Any) -> Manifest:
    outer = Getter("the file", found)
    said = as_object(outer("session"), "session")
    get = Getter("session", said)
    if get("format") != FORMAT:
        raise MisfitError(f"its format is no {FORMAT}")
    if type(get("version")) is not int or get("version") != VERSION:
        raise MisfitError(f"its version is {shown(str(get('version')), 20)}, this pack reads {VERSION}; update the pack")
    if outer("crc32") != checksum(json.dumps(said, indent=1, sort_keys=True).encode()):
        raise MisfitError("it is damaged, its checksum is another")
    parent = get("parent")
    return Manifest(
        _hexadecimal(get("id"), "id", 16),
        as_text(get("model"), "model"),
        as_object(get("identity"), "identity"),
        as_object(get("settings"), "settings"),
        as_object(get("plan"), "plan"),
        as_whole(get("every"), "every", 1),
        None if parent is None else as_object(parent, "parent"),
        as_whole(get("blocks"), "blocks"),
        as_whole(get("frames"), "frames"),
        as_whole(get("lives"), "lives"),
        as_whole(get("index_bytes"), "index_bytes"),
        _hexadecimal(get("index_crc32"), "index_crc32", 8),
        tuple(as_list(get("caches"), "caches", as_object)),
    )


def _hexadecimal(value: object, name: str, digits: int) -> str:
    text = as_text(value, name)
    if len(text) != digits or not _HEX.issuperset(text):
        raise MisfitError(f"{name} is {shown(text, 30)}, but must be {digits} hexadecimal digits")
    return text


@dataclass
class Index:
    """What the index says up to a length: segments that are there, by name, in the order in which they came, and the positions of
    all frames by the prefix of their cache."""

    segments: dict[str, Segment] = field(default_factory=dict)
    origins: dict[str, list[Any]] = field(default_factory=dict)
    checkpoints: int = 0

    @property
    def nbytes(self) -> int:
        """Of all segments."""
        return sum(segment.nbytes for segment in self.segments.values())

    def apply(self, line: Mapping[str, Any]) -> None:
        """One checkpoint more. MisfitError."""
        get = Getter("a line of the index", line)
        for segment in as_list(get("add"), "add", _segment):
            if segment.name in self.segments:
                raise MisfitError(f"segment {segment.name} comes twice")
            self.segments[segment.name] = segment
        for name in as_list(get("gone"), "gone", as_text):
            if self.segments.pop(name, None) is None:
                raise MisfitError(f"segment {shown(name)} goes, but was not there")
        for prefix, origins in as_object(get("origins"), "origins").items():
            self.origins.setdefault(prefix, []).extend(as_list(origins, "origins", as_it_is))
        self.checkpoints += 1


def _segment(value: object, name: str) -> Segment:
    entries = as_list(value, name, as_it_is, 3)
    found = as_text(entries[0], name)
    if not NAME.fullmatch(found):
        raise MisfitError(f"a segment is called {shown(found)}, but names are of small letters, digits and dashes")
    return Segment(found, as_whole(entries[1], "bytes"), _hexadecimal(entries[2], "crc32", 8))


def read_index(folder: Path, manifest: Manifest) -> Index:
    """As long as the manifest says. SessionError."""
    path, index = folder / INDEX, Index()
    if not manifest.index_bytes:
        return index
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < manifest.index_bytes:
                raise MisfitError(f"it has {os.fstat(file.fileno()).st_size} bytes of {manifest.index_bytes}")
            data = file.read(manifest.index_bytes)
        if checksum(data) != manifest.index_crc32:
            raise MisfitError("it is damaged, its checksum is another")
        for line in data.splitlines():
            index.apply(as_object(read_json(line), "a line of the index"))
    except (OSError, ValueError) as error:
        raise SessionError(f"{path} cannot be read as a session's ({shown(str(error), 300)}); {REMEDY}") from error
    return index


def append_line(folder: Path, manifest: Manifest, line: Mapping[str, Any]) -> Manifest:
    """A checkpoint joins the index, whose segments are forced to the disk first, and what is behind goes. -> the manifest that
    counts it, not written yet. OSError."""
    data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
    path = folder / INDEX
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(manifest.index_bytes)
        file.write(data)
        file.truncate()
    force_all_to_disk([*(Segment(*each).path(folder) for each in line["add"]), path])
    crc = f"{zlib.crc32(data, int(manifest.index_crc32, 16)):08x}"
    return replace(manifest, index_bytes=manifest.index_bytes + len(data), index_crc32=crc)
