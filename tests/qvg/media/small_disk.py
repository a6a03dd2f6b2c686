"""A disk that fills up: a process of its own in which no file can grow beyond so many bytes.

The limit (RLIMIT_FSIZE) holds for every file of a process, its log among them. Set in pytest's own process it would end pytest
as soon as its output, sent to a file, is longer: so it is set in a child whose output is a pipe.

python small_disk.py WRITER CODEC FOLDER FRAMES LIMIT_BYTES ...    a video in FOLDER for every limit; prints what became of each
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]


class Refused(NamedTuple):
    """How a video ended: the sentence of a MediaError, or None, and the frames that were written until then."""

    sentence: str | None
    frames_written: int


def noise(frames: int, height: int = 48, width: int = 64) -> Iterator[Any]:
    """Pictures that do not compress: about 3 kB each."""
    still = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return (np.roll(still, shift, axis=0) for shift in range(frames))


def write_on_small_disks(writer: str, codec: str, folder: Path, frames: int, *limits: int) -> dict[int, Refused]:
    """Videos of noise by "VideoWriter", "KeptVideo" or "WholeVideo", as `folder`/LIMIT.mp4 for every limit in bytes, all in one
    process."""
    pytest.importorskip("resource", reason="no limit on the size of files on Windows")
    command = [sys.executable, __file__, writer, codec, str(folder), str(frames), *map(str, limits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"ended with {done.returncode} after {done.stdout}: {done.stderr}"
    return {limit: Refused(*json.loads(line)) for limit, line in zip(limits, done.stdout.splitlines(), strict=True)}


def _main(writer: str, codec: str, folder: str, frames: str, *limits: str) -> None:
    import resource

    sys.path.insert(0, str(ROOT / "tools"))
    __import__("bootstrap_package")
    import av
    from comfyui_qvg.qvg.errors import MediaError
    from comfyui_qvg.qvg.media import VideoWriter
    from comfyui_qvg.qvg.media.video_file import KeptVideo, WholeVideo

    av.codecs_available = {codec}
    hard, count = resource.getrlimit(resource.RLIMIT_FSIZE)[1], int(frames)
    for limit in limits:
        path, sentence = Path(folder, f"{limit}.mp4"), None
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
        late = KeptVideo if writer == "KeptVideo" else VideoWriter
        video = WholeVideo(path, 64, 48, 16, frames=count) if writer == "WholeVideo" else late(path, 64, 48, fps=12)
        try:
            with video:
                for picture in noise(count):
                    video.write(picture)
        except MediaError as error:
            sentence = str(error)
        sys.stdout.write(json.dumps(Refused(sentence, video.frames_written)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
