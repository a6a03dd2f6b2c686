"""Names in ComfyUI's output folder, made of what a user typed: such that every system takes them, and known to fit before hours
of sampling are spent on what gets them.

Imports nothing heavy: prompts are validated with it.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import folder_paths

from ...qvg.errors import ConfigError, quoted
from ...qvg.file_names import parts_of, safe_part
from ..placeholders import filled

VIDEO = ".mp4"
_NO_NAME = "video"
# ComfyUI's own placeholders, and the most letters that each becomes.
_CORES = {"width": 5, "height": 5, "year": 4, "month": 2, "day": 2, "hour": 2, "minute": 2, "second": 2}
_NUMBER = "_00001_"
# Of Windows: a name that it does not take, one that is too long.
_REFUSED_ON_WINDOWS = (123, 206)


def output_prefix(prefix: str, ending: str, prompt: Any = None, workflow: Any = None) -> str:
    """Folders and beginning of a name in the output folder, for `folder_paths.get_save_image_path`.

    Placeholders are filled in as far as `prompt` and `workflow` tell them, see `placeholders.filled`; folders may be separated in
    the way of any system; letters that Windows refuses become underscores. ConfigError: it leads out of the output folder, or the
    disk does not take the name with its number and `ending`.
    """
    text = filled(prefix, prompt, workflow, datetime.now())
    parts = _parts_inside(text) or [_NO_NAME]
    _require_room(parts, ending)
    return os.path.join(*parts)


def complaint(prefix: str | None, ending: str) -> str | None:
    """What is wrong with a prefix, as far as it can be known before other nodes have run; None: linked, not known at all."""
    if prefix is None:
        return None
    try:
        output_prefix(re.sub(r"%[^%:]+\.[^%.]+%", "", prefix), ending)
    except ConfigError as error:
        return str(error)
    return None


def save_names(prefix: str, folder: str, ending: str, width: int = 0, height: int = 0) -> tuple[Iterator[Path], str]:
    """The next free names in `folder`, such as video_00001_.mp4, as core's nodes give them, and the subfolder they are in. Where
    another ComfyUI that writes to the same folder takes the first meanwhile, the next is free. Raises OSError where the folder
    cannot be made."""
    place, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder, width, height)
    return (Path(place) / f"{name}_{number:05}_{ending}" for number in itertools.count(counter)), subfolder


def _parts_inside(text: str) -> list[str]:
    """Folders and name below the output folder, without . and .. ; ConfigError: above it."""
    output = os.path.realpath(folder_paths.get_output_directory())
    parts = _parts(text, output)
    inside = None if parts is None else os.path.realpath(os.path.join(output, *parts[:-1]))  # a link may lead out, too
    if parts is None or inside is None or not Path(inside).is_relative_to(output):
        raise ConfigError(f"filename_prefix {quoted(text)} leads out of the output folder; use a name in it, such as QVG/video")
    return parts


def _parts(text: str, output: str) -> list[str] | None:
    if os.path.isabs(text):
        try:
            text = os.path.relpath(text, output)
        except ValueError:  # on another of Windows' drives, or no path at all
            return None
    elif text[:1] in ("/", "\\"):
        return None
    parts: list[str] = []
    for part in parts_of(text):
        if part == ".." and not parts:
            return None
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(safe_part(part))
    return parts


def _require_room(parts: list[str], ending: str) -> None:
    """ConfigError: the disk of the output folder does not take one of these names, or a folder's name is a file's."""
    longest = [re.sub(r"%(\w+)%", lambda found: "0" * _CORES.get(found[1], len(found[0])), part) for part in parts]
    longest[-1] += _NUMBER + ending
    output = Path(folder_paths.get_output_directory())
    there = next(folder for folder in (output, *output.parents) if folder.is_dir())
    for path in (*(there / name for name in longest), output.joinpath(*longest)):
        if (reason := _refused(path)) is not None:
            raise ConfigError(
                f"the disk takes no file or folder called {quoted(path.name)}, {len(path.name.encode())} bytes ({reason}); "
                "use a shorter filename_prefix"
            )
    for count in range(1, len(parts)):
        folder = output.joinpath(*longest[:count])
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file, and no folder for videos; use another filename_prefix")


def _refused(path: Path) -> str | None:
    """Why there can be nothing at `path`."""
    try:
        os.lstat(path)
    except OSError as error:
        absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
        if not absent or getattr(error, "winerror", None) in _REFUSED_ON_WINDOWS:
            return error.strerror or type(error).__name__
    return None
