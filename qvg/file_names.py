"""Names of files: the same file whichever system wrote its name, and names that every system takes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Bytes of a name: 255 on Linux and macOS; Windows counts 255 letters, which are never more.
MOST_BYTES = 255
_SEPARATORS = re.compile(r"[/\\]+")
# What Windows refuses in a name; half a letter of two, which no disk takes; and what a terminal obeys or turns around.
_REFUSED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
_PORTS = (f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789\u00b9\u00b2\u00b3")
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *_PORTS}
_LONGEST_ENDING = 32


def parts_of(name: str) -> list[str]:
    """Folders and file of a relative path, separated in the way of any system."""
    return _SEPARATORS.split(name)


def same_file(name: str, listed: Iterable[str]) -> str | None:
    """The one of `listed`, as this system lists its files, that `name` means: `folder/file` and `folder\\file` are one."""
    names = list(listed)
    if name in names:
        return name
    wanted = parts_of(name)
    return next((each for each in names if parts_of(each) == wanted), None)


def safe_part(name: str) -> str:
    """A folder's or file's name that every system takes, out of any text but the empty one: letters that Windows refuses become
    underscores, as does what it drops at the end, and a device's name gets one in front."""
    plain = _REFUSED.sub("_", name)
    plain = re.sub(r"[ .]+$", lambda dropped: "_" * len(dropped[0]), plain)
    return f"_{plain}" if plain.split(".")[0].rstrip().upper() in _DEVICES else plain


def fitted(stem: str, ending: str, most_bytes: int = MOST_BYTES) -> str:
    """`stem` and `ending` in one name, of which the disk takes `most_bytes`; what is too much is cut from the stem."""
    room = most_bytes - len(ending.encode())
    return stem.encode()[: max(0, room)].decode(errors="ignore") + ending


def stem_and_ending(name: str) -> tuple[str, str]:
    """`walk`, `.mp4`. What is very long behind a dot is no ending."""
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if stem and len(ending.encode()) <= _LONGEST_ENDING else (name, "")


@contextmanager
def in_utf8(path: Path) -> Iterator[str]:
    """A name of the file at `path` for readers that know UTF-8 alone, as torch's and safetensors' do. A name on a disk may be of
    any bytes, and in a plain C locale all letters but ASCII's are such bytes: then a name of the open file."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield name
