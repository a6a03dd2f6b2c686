"""Folders of runs that go on, named so that those of killed processes can be told from those in work."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from ...kernels.leftovers import is_abandoned, own_mark


def own_folder(parent: Path, stem: str) -> Path:
    """A name for a folder of this process, that nothing else has. It is not made."""
    return parent / f"{stem}-{own_mark()}"


def abandoned(parent: Path, stem: str) -> list[Path]:
    """Folders in `parent` whose process has ended, the oldest first."""
    found = []
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            with suppress(OSError):
                changed = entry.stat(follow_symlinks=False).st_mtime
                mark = entry.name.removeprefix(f"{stem}-")
                if entry.name == f"{stem}-{mark}" and entry.is_dir() and is_abandoned(mark, time.time() - changed):
                    found.append((changed, Path(entry.path)))
    return [path for _, path in sorted(found)]


def claim(folder: Path, stem: str) -> Path | None:
    """Take over an abandoned folder, under a name of this process's. None: it is not there, or another process was first."""
    mine = own_folder(folder.parent, stem)
    try:
        os.rename(folder, mine)
    except OSError:
        return None
    return mine
