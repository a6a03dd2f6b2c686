"""Videos that get their name when they are done.

One is there whole or not at all, and says which workflow made it: its run can be repeated from the latent, and half a video under
the name of a whole one would be taken for it. The other keeps what a broken run has made, as `VideoWriter` does.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import av

from ..errors import MediaError
from ..files import written_new, written_whole
from .video import FULL_DISK, VideoWriter

# Most that the index of an mp4 takes for a frame (size, place, time, order, whether it is a key frame), and for everything else.
_INDEX_BYTES_PER_FRAME = 48
_INDEX_BYTES = 8192
_BYTES_PER_TAG = 128


_Video = TypeVar("_Video", bound="_LateVideo")


class _LateVideo(VideoWriter):
    """Is written elsewhere: `_stack` gives it its name in the end, or removes it."""

    def __enter__(self: _Video) -> _Video:
        self._stack = ExitStack()
        with ExitStack() as stack:
            stack.push(self._stack)  # where the video cannot begin, nothing is left either
            super().__enter__()
            stack.pop_all()
        return self

    def _keep(self) -> None:
        """It is forced to the disk when it gets its name."""


class KeptVideo(_LateVideo):
    """As `VideoWriter`, but what was at `path` stays until this video is closed: whole, or as far as an exception or a full disk
    let it come. Of several programs that write one video the last one's stays; a kill leaves what was there."""

    def _begin(self) -> Path:
        return self._stack.enter_context(written_whole(self.path))

    def _keep(self) -> None:
        # What a full disk took of a short video may be less than one picture.
        if self._file.error and not _can_be_played(self._place):
            self._place.unlink()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            refused = self._named()
        if refused is not None and error is None:
            raise self._refusal(refused) from refused

    def _named(self) -> OSError | None:
        try:
            self._stack.close()
        except OSError as refused:
            return refused
        return None


def _can_be_played(path: Path) -> bool:
    try:
        with av.open(os.fspath(path)) as video:
            return next(video.decode(video=0), None) is not None
    except (OSError, IndexError, av.error.FFmpegError):
        return False


class WholeVideo(_LateVideo):
    """An mp4 file to which pictures are appended inside a `with`, and which gets its name when the `with` ends well.

        with WholeVideo(path, 832, 480, fps=16, frames=957) as video:
            video.write(picture)

    `frames`: how many there will be at most. `metadata`: texts under names of one's own, as ComfyUI writes "prompt" and
    "workflow". The index stands in front of the pictures, so a browser plays the file before it has all of it, and finds these
    texts in the first bytes. Nothing is overwritten: where something is at `path` at the end, the video takes the first free name
    of `otherwise`, in the same folder, and `path` is that name from then on. After an exception nothing is left. Raises what
    `VideoWriter` raises, and `MediaError` where no name is free.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        fps: float | Fraction,
        *,
        frames: int,
        crf: int | None = None,
        metadata: Mapping[str, str] | None = None,
        otherwise: Iterable[Path] = (),
    ):
        super().__init__(path, width, height, fps, crf=crf)
        self.frames, self.metadata = frames, dict(metadata or {})
        self._names = itertools.chain([self.path], otherwise)

    def _begin(self) -> Path:
        self._new = self._stack.enter_context(written_new(self._names))
        return self._new.unfinished

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with self._stack:
                self._new.given_up = error is not None or not self.frames_written
                super().__exit__(kind, error, trace)
        except MediaError:
            raise
        except OSError as refused:
            raise self._refusal(refused) from refused
        self.path = self._new.path

    def _container_options(self) -> dict[str, str]:
        tags = sum(len(name.encode()) + len(text.encode()) + _BYTES_PER_TAG for name, text in self.metadata.items())
        room = _INDEX_BYTES + _INDEX_BYTES_PER_FRAME * self.frames + tags
        # Room kept free for the index: moving everything afterwards would write the file twice, past our eyes on a full disk.
        return {"movflags": "use_metadata_tags", "moov_size": str(room)}

    def _describe(self, container: av.container.OutputContainer) -> None:
        container.metadata.update(self.metadata)

    def _refusal(self, error: OSError) -> MediaError:
        done = f"after {self.frames_written} of {self.frames} pictures; nothing is left of it"
        if error.errno in FULL_DISK:
            return MediaError(f"the disk is full: the video {self.path} was given up {done}; free space, then run again")
        if isinstance(error, FileExistsError):
            return MediaError(f"something else is at {self.path} and is not overwritten, {done}; use another name")
        reason = error.strerror or type(error).__name__
        return MediaError(f"cannot write the video {self.path} ({reason}), {done}; use a folder that can be written")
