"""Writing what a run has made: video through PyAV, pictures side by side through PIL.

A run takes minutes, so a video is never all or nothing. After an exception or Ctrl-C every frame so far can be played; after a
full disk or a kill, all but the last seconds.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import ConfigError, MediaError
from ..files import force_to_disk

Picture = NDArray[np.uint8]

# Codecs in order of preference with their settings for "no visible loss"; mpeg4 is in every build of FFmpeg, libx264 is not.
_CODECS = {"libx264": {"crf": "16", "preset": "medium", "rc-lookahead": "10"}, "mpeg4": {"qmin": "2", "qmax": "3"}}
# Fragments while writing, an ordinary mp4 after closing: a file that was never closed still plays up to its last fragment.
_CONTAINER_OPTIONS = {"movflags": "hybrid_fragmented"}
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ATTEMPTS = 100
_BT709 = 1
_LIMITED_RANGE = 1

_DARK, _LIGHT = (0x14, 0x18, 0x1F), (0xE8, 0xEC, 0xF1)
_MIN_FONT_PIXELS = 9


class VideoWriter:
    """An mp4 file to which pictures are appended inside a `with`.

        with VideoWriter(path, 64, 64, fps=16) as video:
            video.write(picture)

    H.264 (MPEG-4 part 2 where this FFmpeg has no libx264), yuv420p, BT.709. Odd sizes get a row or column more, a copy of the
    last. `crf`: H.264's quality, 1 best to 51; None: no visible loss. Raises `ConfigError` for a size below 1, a rate outside
    0.01..1000 or a quality outside 1..51 and, on entering, `MediaError` where the file cannot be created. An exception inside
    the `with` closes the video first and then goes on its way; a video without frames is removed.

    What was at `path` makes way at the beginning: it is not written over, and a link is not followed. `MediaError` at the end
    where another program has put a file of its own there meanwhile.
    """

    def __init__(self, path: str | os.PathLike[str], width: int, height: int, fps: float | Fraction, *, crf: int | None = None):
        if width < 1 or height < 1:
            raise ConfigError(f"a video of {width}x{height} pixels cannot be written; both sides must be 1 or more")
        if not 0.01 <= fps <= 1000:
            raise ConfigError(f"a video cannot have {fps} frames per second; use a number from 0.01 to 1000")
        # 0 would be lossless, in a profile of H.264 that browsers do not play.
        if crf is not None and not 1 <= crf <= 51:
            raise ConfigError(f"crf is {crf}, but H.264's quality goes from 1, the best, to 51; 16 shows no loss")
        self.crf = crf
        self.path = Path(path)
        self.width, self.height = width, height
        self.fps = Fraction(fps).limit_denominator(1001)
        self.frames_written = 0

    def __enter__(self) -> VideoWriter:
        codec = next(name for name in _CODECS if name in av.codecs_available)
        try:
            self._place = self._begin()
            self._file = _TolerantFile(_created_anew(self._place))
        except OSError as error:
            raise self._refusal(error) from error
        self._container = av.open(self._file, "w", format="mp4", options=self._container_options())
        self._describe(self._container)
        options = _CODECS[codec] | ({"crf": str(self.crf)} if self.crf is not None and "crf" in _CODECS[codec] else {})
        self._stream = cast(av.VideoStream, self._container.add_stream(codec, rate=self.fps, options=options))
        self._stream.width, self._stream.height = self.width + self.width % 2, self.height + self.height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.gop_size = max(1, round(self.fps))  # a fragment, and so the most that a kill can cost, is a second
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        return self

    def write(self, picture: Picture) -> None:
        """Appends one picture, [height, width, 3] uint8.

        Raises `ConfigError` for another shape or dtype, `MediaError` if the disk is full or fails; what it took before stays.
        """
        if picture.dtype != np.uint8 or picture.shape != (self.height, self.width, 3):
            got, wanted = f"{picture.dtype} {list(picture.shape)}", f"uint8 {[self.height, self.width, 3]}"
            raise ConfigError(f"a picture of {got} does not fit {self.path.name}; give {wanted}")
        padded = np.pad(picture, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(padded, format="rgb24").reformat(format="yuv420p", dst_colorspace=_BT709)
        with _ctrl_c_held_back():
            self._container.mux(self._stream.encode(frame))
            if self._file.error:
                raise self._refusal(self._file.error) from self._file.error
            self.frames_written += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with _ctrl_c_held_back():
            try:
                if self.frames_written:
                    self._container.mux(self._stream.encode(None))
                self._container.close()
            finally:
                ours = self._file.is_at(self._place)
                self._file.close()
                # is_file: a device such as /dev/full is not ours to remove.
                if ours and self._place.is_file():
                    self._keep() if self.frames_written else self._place.unlink()
        # What ended the run matters more than what ended the video, and often is the same full disk.
        if self._file.error and error is None:
            raise self._refusal(self._file.error) from self._file.error
        if not ours and error is None:
            raise MediaError(
                f"another program has removed or replaced {self.path} meanwhile, so this video is lost; choose another --out"
            )

    def _keep(self) -> None:
        """Hook: the file is closed and has pictures."""
        try:
            force_to_disk(self._place)
        except OSError as error:  # as with a network disk that is full
            self._file.error = self._file.error or error

    def _begin(self) -> Path:
        """Hook: where the video is written. Raises OSError."""
        return self.path

    def _container_options(self) -> dict[str, str]:
        return _CONTAINER_OPTIONS

    def _describe(self, container: av.container.OutputContainer) -> None:
        """Hook: what the file says of itself, before anything is written."""

    def _refusal(self, error: OSError) -> MediaError:
        kept = f"the first {self.frames_written} frames are kept there as far as they reached the disk"
        rest = kept if self.frames_written else "no frame was written"
        if error.errno in FULL_DISK:
            return MediaError(f"the disk is full: the video {self.path} is cut short, {rest}; free space or choose another --out")
        reason = error.strerror or type(error).__name__
        return MediaError(f"cannot write the video {self.path} ({reason}), {rest}; choose another --out that can be written")


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Ctrl-C takes effect at the end of the `with`, milliseconds later.

    Between the encoder and the file it would lose a packet, and with it all frames up to the next key frame. Outside the main
    thread, where Python delivers no signals, there is nothing to hold back.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    pressed: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            handler(*pressed[-1])


class _TolerantFile:
    """A file that keeps its first error to itself and takes everything after it without writing.

    FFmpeg's mp4 writer, told that a write has failed, can crash the whole process when it is closed (seen with 8.1 at a full
    disk). And its last act is to turn the fragments at the front into an ordinary file, which must not be done by half.
    """

    def __init__(self, raw: io.FileIO):
        self.error: OSError | None = None
        self._raw = raw

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        try:
            while view and self.error is None:
                view = view[self._raw.write(view) :]
        except OSError as error:
            self.error = error
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def is_at(self, path: Path) -> bool:
        """Whether this is the file at `path`, not removed or replaced since it was opened."""
        if os.name == "nt":  # there an open file keeps its name
            return True
        try:
            return os.path.samestat(os.fstat(self._raw.fileno()), os.stat(path))
        except OSError:
            return False

    def close(self) -> None:
        try:
            self._raw.close()
        except OSError as error:  # a network disk may say only now that it is full
            self.error = self.error or error


def _created_anew(path: Path) -> io.FileIO:
    """A new file at `path`, whatever file or link was there. A device is written to as it is."""
    for attempt in itertools.count(1):
        if path.exists() and not path.is_file():
            break
        path.unlink(missing_ok=True)
        try:
            return path.open("xb", buffering=0)
        except FileExistsError:  # another program was faster: who comes last has the name
            if attempt == _ATTEMPTS:
                raise
    return path.open("wb", buffering=0)


def side_by_side(frames: Sequence[Picture], captions: Sequence[str], scale: int, columns: int | None = None) -> Picture:
    """Pictures in rows of `columns`, by default one row, on a dark ground, each with its caption above.

    `frames` are [H, W, 3] uint8 of one size, enlarged `scale` times without smoothing, so that a pixel stays a pixel. All
    captions get the largest font in which the longest fits; what does not fit even in the smallest ends in an ellipsis.
    -> [rows * (strip + scale*H) + gap, columns * (scale*W + gap) + gap, 3] uint8, both sides even; strip and gap depend on sizes
    and captions only by way of scale*W, so all frames of a video come out alike. Raises `ConfigError` for no frames, frames of
    several sizes or another dtype, captions that are not as many as frames, scale < 1 and columns < 1.
    """
    height, width = _check_row(frames, captions, scale)
    panel_height, panel_width = height * scale, width * scale
    gap = 2 * max(1, panel_width // 120)
    strip = 2 * max(11, round(panel_width / 18))
    columns = len(frames) if columns is None else min(columns, len(frames))
    if columns < 1:
        raise ConfigError(f"{columns} pictures in a row show none; use 1 or more")
    rows = -(-len(frames) // columns)
    size = (columns * (panel_width + gap) + gap, rows * (strip + panel_height) + gap)
    row = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), _DARK)
    draw = ImageDraw.Draw(row)
    font = _fitting_font(tuple(captions), panel_width, strip // 2)
    for index, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
        line, column = divmod(index, columns)
        left, top = gap + column * (panel_width + gap), line * (strip + panel_height)
        enlarged = Image.fromarray(frame).resize((panel_width, panel_height), Image.Resampling.NEAREST)
        row.paste(enlarged, (left, top + strip))
        draw.text((left + panel_width / 2, top + strip / 2), _shortened(caption, font, panel_width), _LIGHT, font, anchor="mm")
    return np.array(row)


def _check_row(frames: Sequence[Picture], captions: Sequence[str], scale: int) -> tuple[int, int]:
    """Height and width that all frames share. Raises `ConfigError` where `side_by_side` says so."""
    if not frames or len(frames) != len(captions):
        raise ConfigError(f"{len(frames)} pictures and {len(captions)} captions make no row; give one caption for each picture")
    if scale < 1:
        raise ConfigError(f"scale {scale} is no enlargement; use a whole number of 1 or more")
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or frame.shape != frames[0].shape or not frame.size:
            kinds = ", ".join(f"{frame.dtype} {list(frame.shape)}" for frame in frames)
            raise ConfigError(f"the pictures {kinds} do not make a row; give uint8 [H, W, 3], all of one size")
    return frames[0].shape[0], frames[0].shape[1]


@lru_cache
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


@lru_cache
def _fitting_font(captions: tuple[str, ...], width: int, pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font up to `pixels` high in which every caption fits into `width`."""
    while pixels > _MIN_FONT_PIXELS and any(_font(pixels).getlength(caption) > width for caption in captions):
        pixels -= 1
    return _font(pixels)


def _shortened(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(caption) <= width:
        return caption
    while caption and font.getlength(caption + "...") > width:
        caption = caption[:-1]
    return caption.rstrip() + "..."
