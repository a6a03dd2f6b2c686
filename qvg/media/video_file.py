"""A video that is there whole or not at all, and says which workflow made it.

The demo's writer (`media.VideoWriter`) keeps what a broken run has made. Here a run can be repeated from its latent, and half a
video under the name of a whole one would be taken for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av

from ..errors import MediaError
from .video import FULL_DISK, VideoWriter

# Most that the index of an mp4 takes for a frame (size, place, time, order, whether it is a key frame), and for everything else.
_INDEX_BYTES_PER_FRAME = 48
_INDEX_BYTES = 8192
_BYTES_PER_TAG = 128


class WholeVideo(VideoWriter):
    """An mp4 file to which pictures are appended inside a `with`, and which gets its name when the `with` ends well.

        with WholeVideo(path, 832, 480, fps=16, frames=957) as video:
            video.write(picture)

    `frames`: how many there will be at most. `metadata`: texts under names of one's own, as ComfyUI writes "prompt" and
    "workflow". The index stands in front of the pictures, so a browser plays the file before it has all of it, and finds these
    texts in the first bytes. After an exception what was at `path` is as before, and nothing else is left. Raises what
    `VideoWriter` raises.
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
    ):
        self.final = Path(path)
        self.frames, self.metadata = frames, dict(metadata or {})
        super().__init__(self.final.with_name(self.final.name + ".unfinished"), width, height, fps, crf=crf)

    def __enter__(self) -> WholeVideo:
        super().__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, trace)
            if error is None and self.frames_written:
                self._name()
        finally:
            self.path.unlink(missing_ok=True)

    def _name(self) -> None:
        try:
            os.replace(self.path, self.final)
        except OSError as error:
            raise self._refusal(error) from error

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
            return MediaError(f"the disk is full: the video {self.final} was given up {done}; free space, then run again")
        reason = error.strerror or type(error).__name__
        return MediaError(f"cannot write the video {self.final} ({reason}), {done}; use a folder that can be written")
