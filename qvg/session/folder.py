"""A session's folder: who writes to it, what is in it, whether a run may go on in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CacheFileError, ConfigError, SessionError, SessionInUseError, shown
from ..files import force_to_disk
from .folder_lock import NAME as LOCK
from .folder_lock import FolderLock
from .manifest import INDEX, MANIFEST, REMEDY, Manifest
from .segment import ENDING, NAME, Segment

# Of files that are being written, see kernels/leftovers.py.
_UNFINISHED = ".qvg-unfinished-"
_MOST_DIFFERENCES = 8


def require_same(
    folder: Path, manifest: Manifest, identity: Mapping[str, Any] | None, settings: Mapping[str, Any] | None
) -> None:
    """SessionError that names what a run would do otherwise than the session was made."""
    differs = []
    for mine, asked in ((manifest.identity, identity), (manifest.settings, settings)):
        asked = mine if asked is None else json.loads(json.dumps(dict(asked)))
        names = [*asked, *(name for name in mine if name not in asked)]
        differs += [
            f"{shown(name)} {shown(json.dumps(mine.get(name)), 60)} and not {shown(json.dumps(asked.get(name)), 60)}"
            for name in names
            if mine.get(name) != asked.get(name)
        ]
    if differs:
        raise SessionError(
            f"{folder} was made with {'; '.join(differs[:_MOST_DIFFERENCES])}, so what came next would be another video; use "
            "what it was made with, or begin another session"
        )


def new_line(added: Sequence[Segment], gone: Sequence[str], origins: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint adds to the index."""
    return {"add": [[each.name, each.nbytes, each.crc32] for each in added], "gone": list(gone), "origins": dict(origins)}


def locked(folder: Path) -> FolderLock:
    """Nobody else writes to it. SessionInUseError, OSError."""
    try:
        return FolderLock(folder)
    except BlockingIOError:
        raise SessionInUseError(f"another run writes to {folder}; wait until it has ended, or branch the session off") from None


def require_empty(folder: Path) -> None:
    """What a beginning left that was cut off goes. ConfigError for anything else."""
    names = set(os.listdir(folder)) - {LOCK}
    ours = {name for name in names if name == INDEX or (name.endswith(ENDING) and NAME.fullmatch(name.removesuffix(ENDING)))}
    if MANIFEST in names or any(not name.startswith(_UNFINISHED) for name in names - ours):
        raise ConfigError(f"{folder} is to hold a new session, but has something in it; name another folder")
    for name in ours:
        (folder / name).unlink()


@contextmanager
def in_one_sentence(folder: Path) -> Iterator[None]:
    """Whatever is wrong with what is read inside is a SessionError."""
    try:
        yield
    except SessionError:
        raise
    except CacheFileError as error:
        raise SessionError(str(error)) from error
    except (ValueError, OverflowError) as error:
        raise SessionError(
            f"{folder} holds a session whose parts do not go together ({shown(str(error), 300)}); {REMEDY}"
        ) from error


def link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the disk has no such thing. FileNotFoundError."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        force_to_disk(target)
