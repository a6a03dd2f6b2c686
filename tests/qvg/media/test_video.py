"""Videos that play whatever ended them, and rows of pictures."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from comfyui_qvg.qvg.errors import ConfigError, MediaError
from comfyui_qvg.qvg.media import VideoWriter, side_by_side
from comfyui_qvg.qvg.media import video as media

from .small_disk import ROOT, write_on_small_disks


def pictures(frames, height=48, width=64):
    """A smooth ground whose brightness tells the frame, with a red square that wanders."""
    rows, cols = np.mgrid[:height, :width]
    for frame in range(frames):
        picture = np.stack([40 + rows, 60 + cols, np.full_like(rows, 20 + 3 * (frame % 60))], -1).astype(np.uint8)
        picture[8:24, 2 * frame % 40 : 2 * frame % 40 + 16] = (220, 30, 40)
        yield picture


def decoded(path):
    """Frames [H, W, 3] uint8 and frames per second; of a file that was cut short, what comes before the cut."""
    frames = []
    with av.open(os.fspath(path)) as video:
        rate = video.streams.video[0].average_rate
        with contextlib.suppress(av.error.InvalidDataError):
            frames.extend(frame.to_ndarray(format="rgb24") for frame in video.decode(video=0))
    return frames, rate


@pytest.fixture(params=["libx264", "mpeg4"])
def codec(request, monkeypatch):
    """Runs a test with each codec; mpeg4 as on a machine without libx264."""
    if request.param not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {request.param}")
    monkeypatch.setattr(av, "codecs_available", {request.param})
    return request.param


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63)])
def test_what_is_written_can_be_played(tmp_path, codec, height, width):
    originals = list(pictures(30, height, width))
    with VideoWriter(tmp_path / "walk.mp4", width, height, fps=12) as video:
        for picture in originals:
            video.write(picture)
    assert video.frames_written == 30
    frames, rate = decoded(tmp_path / "walk.mp4")
    assert len(frames) == 30 and rate == 12
    for frame, picture in zip(frames, originals, strict=True):
        assert frame.shape == (48, 64, 3)
        assert np.abs(frame[:height, :width].astype(int) - picture).mean() < 6  # measured 1.8 (libx264) and 2.3 (mpeg4)


def test_colours_survive(tmp_path):
    """Tag and conversion agree: a wrong matrix would shift pure colours by 10 levels and more."""
    colours = ((220, 30, 40), (30, 200, 60), (40, 60, 210), (240, 240, 240))
    patches = np.repeat(np.repeat(np.array([colours], np.uint8).reshape(2, 2, 3), 32, 0), 32, 1)
    with VideoWriter(tmp_path / "colours.mp4", 64, 64, fps=8) as video:
        video.write(patches)
    with av.open(os.fspath(tmp_path / "colours.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1)
        shown = frame.reformat(format="rgb24", src_colorspace=1, dst_color_range=2).to_ndarray()
    for row, col in np.ndindex(2, 2):
        middle = shown[32 * row + 8 : 32 * row + 24, 32 * col + 8 : 32 * col + 24].reshape(-1, 3).mean(0)
        assert np.abs(middle - colours[2 * row + col]).max() < 4


@pytest.mark.parametrize(("fps", "rate"), [(Fraction(24000, 1001), Fraction(24000, 1001)), (12.5, Fraction(25, 2))])
def test_fractional_rates(tmp_path, fps, rate):
    with VideoWriter(tmp_path / "walk.mp4", 64, 48, fps) as video:
        for picture in pictures(10):
            video.write(picture)
    assert decoded(tmp_path / "walk.mp4")[1] == rate


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_video_plays_to_the_last_frame(tmp_path, codec, interruption):
    with pytest.raises(interruption), VideoWriter(tmp_path / "walk.mp4", 64, 48, fps=12) as video:
        for index, picture in enumerate(pictures(30)):
            if index == 7:
                raise interruption
            video.write(picture)
    assert len(decoded(tmp_path / "walk.mp4")[0]) == 7


def test_ctrl_c_between_encoder_and_file_loses_nothing(tmp_path, monkeypatch):
    """A real signal, raised while a packet is on its way to the file."""
    path = tmp_path / "walk.mp4"
    pressed = []
    write = media._TolerantFile.write

    def write_and_press(file, data):
        if video.frames_written >= 50 and not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)
        return write(file, data)

    monkeypatch.setattr(media._TolerantFile, "write", write_and_press)
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 64, 48, fps=12) as video:
        for picture in pictures(200):
            video.write(picture)
    assert 50 < video.frames_written < 200
    assert len(decoded(path)[0]) == video.frames_written
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_video_written_outside_the_main_thread(tmp_path):
    def record():
        with VideoWriter(tmp_path / "walk.mp4", 64, 48, fps=12) as video:
            for picture in pictures(5):
                video.write(picture)

    thread = threading.Thread(target=record)
    thread.start()
    thread.join()
    assert len(decoded(tmp_path / "walk.mp4")[0]) == 5


def test_a_video_without_frames_leaves_no_file(tmp_path):
    with VideoWriter(tmp_path / "none.mp4", 64, 48, fps=12):
        pass
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "none.mp4", 64, 48, fps=12):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the device that is always full")
def test_a_full_device_gets_one_sentence():
    with pytest.raises(MediaError) as refused, VideoWriter("/dev/full", 64, 48, fps=12) as video:
        for picture in pictures(200):
            video.write(picture)
    message = str(refused.value)
    assert message.startswith("the disk is full: the video /dev/full is cut short, ") and "\n" not in message
    assert "free space or choose another --out" in message
    assert isinstance(refused.value, OSError) and Path("/dev/full").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the device that is always full")
def test_a_device_that_is_full_only_at_the_end_gets_the_same_sentence():
    with pytest.raises(MediaError, match="the disk is full.*the first 2 frames"), VideoWriter("/dev/full", 64, 48, 12) as video:
        for picture in pictures(2):
            video.write(picture)


def test_a_disk_that_fills_up_keeps_what_it_took(tmp_path, codec):
    path = tmp_path / "100000.mp4"
    sentence, written = write_on_small_disks("VideoWriter", codec, tmp_path, 400, 100_000)[100_000]
    assert sentence.startswith(f"the disk is full: the video {path} is cut short, the first {written} frames are kept")
    assert path.stat().st_size <= 100_000
    assert written - 3 * 12 <= len(decoded(path)[0]) <= written < 400


@pytest.mark.parametrize("frames", [2, 30])
def test_a_disk_that_is_full_from_the_start_does_not_crash(tmp_path, codec, frames):
    """FFmpeg's mp4 writer, left to meet failed writes itself, ends the process with a segmentation fault at some of these."""
    ends = write_on_small_disks("VideoWriter", codec, tmp_path, frames, 0, 1, 40, 700, 760, 800, 1000, 4096)
    assert all(end.sentence.startswith("the disk is full") for end in ends.values()), ends


def test_a_small_disk_is_not_that_of_the_tests_own_log(tmp_path):
    """`python install.py --test > file`, when the file is longer already than any of the limits: pytest goes on writing it."""
    pytest.importorskip("resource", reason="no limit on the size of files on Windows")
    log = tmp_path / "log.txt"
    log.write_bytes(b"." * 200_000 + b"\n")
    run = "import sys; sys.path.remove(''); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    tests = [str(Path(__file__).with_name(name)) for name in ("test_video.py", "test_video_file.py")]
    chosen = ["-k", "mpeg4 and (fills_up or a_full_disk)", "--basetemp", str(tmp_path / "temp"), "-p", "no:cacheprovider"]
    with log.open("ab") as file:
        command = [sys.executable, "-c", run, "-v", f"--rootdir={ROOT}", *chosen, *tests]
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, timeout=600)
    said = log.read_bytes()[200_000:].decode()
    assert done.returncode == 0, said
    assert "= 2 passed" in said


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on Windows")
def test_a_killed_run_leaves_a_video(tmp_path):
    path = tmp_path / "walk.mp4"
    script = (
        "import os, signal, sys, types\n"
        "package = sys.modules['comfyui_qvg'] = types.ModuleType('comfyui_qvg')\n"
        f"package.__path__ = [{os.fspath(ROOT)!r}]\n"
        "import numpy as np\n"
        "from comfyui_qvg.qvg.media import VideoWriter\n"
        "still = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)\n"
        f"with VideoWriter({os.fspath(path)!r}, 64, 48, fps=12) as video:\n"
        "    for shift in range(120):\n"
        "        video.write(np.roll(still, shift, axis=0))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    assert len(decoded(path)[0]) >= 120 - 3 * 12  # all but the seconds that the encoder and the open fragment held


def test_what_was_there_makes_way_and_a_link_is_not_followed(tmp_path):
    mine, walk = tmp_path / "mine", tmp_path / "walk.mp4"
    mine.write_bytes(b"mine")
    for before in (mine, tmp_path / "nowhere"):
        walk.unlink(missing_ok=True)
        walk.symlink_to(before)
        with VideoWriter(walk, 64, 48, fps=12) as video:
            for picture in pictures(5):
                video.write(picture)
        assert not walk.is_symlink() and len(decoded(walk)[0]) == 5
    assert sorted(tmp_path.iterdir()) == [mine, walk] and mine.read_bytes() == b"mine"


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps others away from an open file")
@pytest.mark.parametrize("frames", [0, 5])
def test_of_two_writers_one_has_a_whole_video_and_the_other_a_sentence(tmp_path, frames):
    walk = tmp_path / "walk.mp4"
    sentence = rf"^another program has removed or replaced {walk} meanwhile, so this video is lost; choose another --out$"
    writers = [VideoWriter(walk, 64, 48, fps=12) for _ in range(2)]
    with pytest.raises(MediaError, match=sentence), writers[0], writers[1]:
        for writer, count in zip(writers, (frames, 7), strict=True):
            for picture in pictures(count):
                writer.write(picture)
    assert len(decoded(walk)[0]) == 7 and list(tmp_path.iterdir()) == [walk]


def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path):
    for path in (tmp_path / "missing" / "walk.mp4", tmp_path):
        with pytest.raises(MediaError, match=r"cannot write the video .*, no frame was written; choose another --out"):
            VideoWriter(path, 64, 48, fps=12).__enter__()


@pytest.mark.parametrize("size", [(0, 48), (64, -1)])
def test_sizes_that_are_refused(tmp_path, size):
    with pytest.raises(ConfigError, match="both sides must be 1 or more"):
        VideoWriter(tmp_path / "walk.mp4", *size, fps=12)


@pytest.mark.parametrize("fps", [0, -1, 0.0004, float("nan"), float("inf")])
def test_rates_that_are_refused(tmp_path, fps):
    with pytest.raises(ConfigError, match="frames per second"):
        VideoWriter(tmp_path / "walk.mp4", 64, 48, fps)


def test_pictures_that_are_refused(tmp_path):
    with VideoWriter(tmp_path / "walk.mp4", 64, 48, fps=12) as video:
        for picture in (np.zeros((64, 48, 3), np.uint8), np.zeros((48, 64, 3), np.float32), np.zeros((48, 64), np.uint8)):
            with pytest.raises(ConfigError, match=r"give uint8 \[48, 64, 3\]"):
                video.write(picture)


def test_a_row_keeps_every_pixel():
    row = list(pictures(3, 16, 40))
    picture = side_by_side(row, ["exact", "2-bit QVG", "cut"], scale=4)
    gap, strip = 2, 22
    assert picture.dtype == np.uint8 and picture.shape == (strip + 64 + gap, 3 * (160 + gap) + gap, 3)
    for index, frame in enumerate(row):
        left = gap + index * (160 + gap)
        assert (picture[strip : strip + 64, left : left + 160] == frame.repeat(4, 0).repeat(4, 1)).all()
        caption = picture[:strip, left : left + 160]
        assert caption.min() == 0x14 and caption.max() > 0xC0  # dark ground, light letters
    assert (picture[:, :gap] == (0x14, 0x18, 0x1F)).all() and (picture[-gap:] == (0x14, 0x18, 0x1F)).all()


def test_rows_have_even_sides_and_do_not_depend_on_captions():
    row = list(pictures(3, 17, 21))
    shapes = {side_by_side(row, captions, 3).shape for captions in (["", "", ""], ["exact"] * 3, ["exact · 103.5 MB" * 4] * 3)}
    assert len(shapes) == 1 and all(side % 2 == 0 for side in shapes.pop()[:2])


def test_a_long_caption_stays_within_its_picture():
    row = list(pictures(2, 16, 64))
    picture = side_by_side(row, ["", "exact, cut to the same bytes, and some more words that nobody reads"], scale=2)
    assert (picture[:20, : 2 + 128 + 2] == (0x14, 0x18, 0x1F)).all() and (picture[:20, -2:] == (0x14, 0x18, 0x1F)).all()


def test_more_pictures_stand_in_several_rows():
    shown = list(pictures(5, 16, 40))
    picture = side_by_side(shown, list("ABCDE"), scale=4, columns=3)
    gap, strip = 2, 22
    assert picture.shape == (2 * (strip + 64) + gap, 3 * (160 + gap) + gap, 3)
    for index, frame in enumerate(shown):
        top, left = index // 3 * (strip + 64), gap + index % 3 * (160 + gap)
        assert (picture[top + strip : top + strip + 64, left : left + 160] == frame.repeat(4, 0).repeat(4, 1)).all()
        assert picture[top : top + strip, left : left + 160].max() > 0xC0
    assert (picture[strip + 64 :, 2 * (160 + gap) :] == (0x14, 0x18, 0x1F)).all()  # nobody's place
    for columns in (5, 9, None):
        assert (side_by_side(shown, list("ABCDE"), 4, columns) == side_by_side(shown, list("ABCDE"), 4)).all()


def test_rows_that_are_refused():
    row = list(pictures(2))
    with pytest.raises(ConfigError, match="0 pictures in a row show none; use 1 or more"):
        side_by_side(row, ["one", "two"], 2, 0)
    with pytest.raises(ConfigError, match="2 pictures and 1 captions"):
        side_by_side(row, ["one"], 2)
    with pytest.raises(ConfigError, match="0 pictures"):
        side_by_side([], [], 2)
    with pytest.raises(ConfigError, match="scale 0"):
        side_by_side(row, ["one", "two"], 0)
    for odd_one in (row[0][:-1], row[0].astype(np.float32), row[0][..., :1]):
        with pytest.raises(ConfigError, match="all of one size"):
            side_by_side([row[0], odd_one], ["one", "two"], 2)
