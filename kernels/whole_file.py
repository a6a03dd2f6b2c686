"""Files that appear whole or not at all, whoever else writes there.

While it is written, a file has a name of its own in the same folder. No second process chooses that name, no file or link of
the user's can stand there, and what killed writers left is removed by the next (`leftovers.py`). Then it is forced to the disk
and gets its name in one step. Here, and not in `qvg/`, because the outcome of Triton's probe is such a file too.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .leftovers import own_name, remove_leftovers

_CANNOT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EROFS)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place to write to, which becomes `path` when the `with` ends well; otherwise what was at `path` stays, as it does where
    nothing is left at that place.

    A file that was there keeps its permissions, a link is replaced, not followed. Of several writers the last one's file stays.
    A device or a pipe is no file: there the place is `path` itself. Raises OSError: `path` is a folder, or cannot be written.
    """
    found = _mode(path)
    if found is not None and not stat.S_ISREG(found) and not stat.S_ISLNK(found):
        yield path
        return
    with _unfinished(path) as unfinished:
        yield unfinished
        if not os.path.lexists(unfinished):
            return
        if found is not None and stat.S_ISREG(found):
            with suppress(OSError):  # a share that has no permissions
                os.chmod(unfinished, found & 0o777)
        force_to_disk(unfinished)
        os.replace(unfinished, path)
        _force_folder_to_disk(path.parent)


@dataclass
class NewFile:
    """A file in work: to be written at `unfinished`; `path` is its name once the `with` has ended well. Whoever sets `given_up`
    wants no file."""

    unfinished: Path
    path: Path
    given_up: bool = False


@contextmanager
def written_new(names: Iterable[Path]) -> Iterator[NewFile]:
    """A place to write to, which gets the first of `names`, all in one folder, at which nothing is when the `with` ends well.

    Nothing is ever overwritten. Raises FileExistsError where something stands at every name, OSError where none can be written.
    """
    rest = iter(names)
    first = next(rest)
    with suppress(FileNotFoundError):
        os.lstat(first)  # a name that the disk does not take is refused before anything is written
    with _unfinished(first) as unfinished:
        new = NewFile(unfinished, first)
        yield new
        if new.given_up:
            return
        force_to_disk(unfinished)
        while not _named(unfinished, new.path):
            following = next(rest, None)
            if following is None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new.path))
            new.path = following
        _force_folder_to_disk(first.parent)


def try_folder(folder: Path) -> None:
    """Raises OSError unless files can be made in `folder`."""
    with _unfinished(folder / own_name()):
        pass


@contextmanager
def _unfinished(final: Path) -> Iterator[Path]:
    """A new, empty file beside `final`, gone after the `with` unless it was renamed."""
    made: list[Path] = []
    try:
        path = _created(final, made)
        remove_leftovers(final.parent, now=path.stat().st_mtime)
        yield path
    finally:
        for each in made:
            with suppress(OSError):
                each.unlink()


def _created(final: Path, made: list[Path]) -> Path:
    """An empty file with the permissions that the user's files get, under a name that nothing else has. It is in `made` from
    before it is there: an interrupt may come at any moment."""
    # Where a path may have but 260 letters, ours may be too long though the final one is not. Then a name that is no longer
    # than the final one, but does not tell whose it is: nobody removes it after a kill.
    short = f".{secrets.token_hex(8)}"[: max(len(final.name), 9)]
    for name in (own_name(), short):
        path = final.with_name(name)
        made.append(path)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return path
        except OSError as error:
            made.remove(path)
            # Windows says of a path that is too long that it is not there.
            if name == short or error.errno not in (errno.ENAMETOOLONG, errno.ENOENT):
                raise OSError(error.errno, error.strerror, str(final)) from error
    raise AssertionError("the second name was taken or refused")


def _mode(path: Path) -> int | None:
    """Kind and permissions of what is at `path`; None where nothing is. IsADirectoryError."""
    try:
        found = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return found


def _named(unfinished: Path, final: Path) -> bool:
    """Give the file its name unless something has it. -> whether it got it"""
    try:
        _name(unfinished, final)
    except FileExistsError:
        # A file server whose first answer was lost is asked again, and then sees its own work.
        return _is_same(unfinished, final)
    return True


def _name(unfinished: Path, final: Path) -> None:
    """FileExistsError: something has that name."""
    if os.name == "nt":
        os.rename(unfinished, final)  # there it does not overwrite
        return
    try:
        os.link(unfinished, final)
    except FileExistsError:
        raise
    except OSError:
        # No links on this disk (FAT, exFAT, some shares). An empty file of that name keeps everybody else out.
        os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            os.replace(unfinished, final)
        except BaseException:
            os.unlink(final)
            raise


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def force_to_disk(path: Path) -> None:
    """The bytes of a file, and that it is in its folder: or a power cut could leave an empty file, or none, under its name."""
    force_all_to_disk([path])


def force_all_to_disk(paths: Sequence[Path]) -> None:
    """The same of files of one folder, which is asked for once."""
    for path in paths:
        descriptor = os.open(path, os.O_RDWR)  # Windows does this for nobody who may not write
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                raise
        finally:
            os.close(descriptor)
    for folder in {path.parent for path in paths}:
        _force_folder_to_disk(folder)


def _force_folder_to_disk(folder: Path) -> None:
    """Names are kept in the folder. Windows has no way to ask for this, and not every file system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
