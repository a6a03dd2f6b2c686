"""Videos that get their name when they are done: whole or not at all, or as far as they came."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil

import av
import pytest
from comfyui_qvg.qvg.errors import ConfigError, MediaError
from comfyui_qvg.qvg.media import video as media
from comfyui_qvg.qvg.media.video_file import KeptVideo, WholeVideo

from .small_disk import noise, write_on_small_disks

WORKFLOW = {"prompt": json.dumps({"1": {"class_type": "KSampler"}}), "workflow": json.dumps({"nodes": ["é漢字"] * 4000})}


def write(path, frames=30, declared=None, **options):
    with WholeVideo(path, 64, 48, 16, frames=declared or frames, **options) as video:
        for picture in noise(frames):
            video.write(picture)
    return video


def boxes(path):
    """Names and sizes of an mp4's outermost boxes, in order."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
        found.append((data[at + 4 : at + 8].decode(), size))
        at += size
    assert at == len(data)
    return found


@pytest.fixture(params=["libx264", "mpeg4"])
def codec(request, monkeypatch):
    """Runs a test with each codec; mpeg4 as on a machine without libx264."""
    if request.param not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {request.param}")
    monkeypatch.setattr(av, "codecs_available", {request.param})
    return request.param


@pytest.mark.parametrize("frames", [1, 30, 1500])
def test_the_index_and_the_workflow_stand_in_front(tmp_path, codec, frames):
    path = tmp_path / "walk.mp4"
    assert write(path, frames, metadata=WORKFLOW).frames_written == frames
    names = [name for name, _ in boxes(path)]
    assert names.index("moov") == 1 and names.index("mdat") > 1
    moov, room = boxes(path)[1][1], dict(boxes(path))["free"]
    assert room < 0.6 * (moov + room) + 8192  # what was kept free is not far from what was needed
    with av.open(os.fspath(path)) as video:
        assert {name: video.metadata[name] for name in WORKFLOW} == WORKFLOW
        assert sum(1 for _ in video.decode(video=0)) == frames
    assert list(tmp_path.iterdir()) == [path]


def test_fewer_frames_than_promised_are_a_whole_video(tmp_path):
    write(tmp_path / "walk.mp4", 20, declared=2000)
    with av.open(os.fspath(tmp_path / "walk.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 20


def test_quality_is_what_is_asked_for(tmp_path):
    if "libx264" not in av.codecs_available:
        pytest.skip("this FFmpeg has no libx264")
    sizes = []
    for crf in (8, 16, 30):
        sizes.append(write(tmp_path / f"{crf}.mp4", crf=crf).path.stat().st_size)
    assert sizes[0] > 1.3 * sizes[1] > 2 * sizes[2]


@pytest.mark.parametrize("crf", [0, 52, -1])
def test_a_quality_that_h264_lacks_is_refused(tmp_path, crf):
    with pytest.raises(ConfigError, match=rf"crf is {crf}, but H\.264's quality goes from 1"):
        write(tmp_path / "walk.mp4", crf=crf)


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_a_broken_run_leaves_everything_as_it_was(tmp_path, codec, there_before, failure):
    path = tmp_path / "walk.mp4"
    if there_before:
        path.write_bytes(b"an older one")
    with pytest.raises(failure), WholeVideo(path, 64, 48, 16, frames=30) as video:
        for picture in noise(20):
            video.write(picture)
        raise failure
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"an older one"] * there_before


def test_a_full_disk_leaves_nothing(tmp_path, codec):
    for refused in write_on_small_disks("WholeVideo", codec, tmp_path, 60, 0, 1, 40, 800, 4096, 10_000, 25_000).values():
        assert re.match(r"the disk is full: the video .*\d\.mp4 was given up after \d+ of 60 pictures; ", refused.sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named_without_the_unfinished_name(tmp_path):
    (tmp_path / "walk.mp4").write_bytes(b"a file")
    sentence = r"^cannot write the video .*walk\.mp4 \(.*use a folder that can be written$"
    for path in (tmp_path / "missing" / "walk.mp4", tmp_path / "walk.mp4" / "walk.mp4"):
        with pytest.raises(MediaError, match=sentence) as error:
            write(path)
        assert "unfinished" not in str(error.value)
    assert [each.name for each in tmp_path.iterdir()] == ["walk.mp4"]


def test_nothing_is_overwritten(tmp_path):
    """Not even what has come there while the video was made, by another ComfyUI that has chosen the same next name."""
    names = [tmp_path / f"walk_{number}.mp4" for number in (1, 2, 3)]
    with WholeVideo(names[0], 64, 48, 16, frames=30, otherwise=names[1:]) as video:
        for picture in noise(30):
            video.write(picture)
        names[0].write_bytes(b"theirs")
        names[1].symlink_to(tmp_path / "nowhere")
    assert video.path == names[2] and names[0].read_bytes() == b"theirs" and names[1].is_symlink()
    with av.open(os.fspath(names[2])) as opened:
        assert sum(1 for _ in opened.decode(video=0)) == 30
    with pytest.raises(MediaError, match=r"^something else is at .*walk_1\.mp4 and is not overwritten, .*; use another name$"):
        write(names[0])
    assert sorted(tmp_path.iterdir()) == names


def test_two_videos_of_one_name_at_once(tmp_path):
    names = [tmp_path / f"walk_{number}.mp4" for number in (1, 2, 3)]
    with WholeVideo(names[0], 64, 48, 16, frames=30, otherwise=names[1:]) as first:
        with WholeVideo(names[0], 64, 48, 16, frames=10, otherwise=names[1:]) as second:
            for picture, _ in zip(noise(30), range(10), strict=False):
                first.write(picture)
                second.write(picture)
        for picture in noise(20):
            first.write(picture)
    assert (second.path, first.path) == (names[0], names[1])
    for path, frames in zip(names, (10, 30), strict=False):
        with av.open(os.fspath(path)) as opened:
            assert sum(1 for _ in opened.decode(video=0)) == frames
    assert len(list(tmp_path.iterdir())) == 2


def test_the_demo_s_writer_has_no_such_index(tmp_path):
    """It must be able to lose its end."""
    with media.VideoWriter(tmp_path / "walk.mp4", 64, 48, 16) as video:
        for picture in noise(30):
            video.write(picture)
    assert [name for name, _ in boxes(tmp_path / "walk.mp4")].index("moov") > 1


def played(path):
    """How many pictures a video has."""
    with av.open(os.fspath(path)) as video:
        return sum(1 for _ in video.decode(video=0))


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt, RuntimeError])
def test_a_kept_video_takes_the_name_when_it_is_closed(tmp_path, codec, failure):
    path = tmp_path / "walk.mp4"
    path.write_bytes(b"an older one")
    with contextlib.suppress(KeyboardInterrupt, RuntimeError), KeptVideo(path, 64, 48, 12) as video:
        for picture in noise(20):
            video.write(picture)
            assert path.read_bytes() == b"an older one"
        if failure:
            raise failure
    assert played(path) == video.frames_written == 20 and [each.name for each in tmp_path.iterdir()] == ["walk.mp4"]


def test_a_kept_video_without_pictures_leaves_what_was_there(tmp_path):
    path = tmp_path / "walk.mp4"
    path.write_bytes(b"an older one")
    with contextlib.suppress(KeyboardInterrupt), KeptVideo(path, 64, 48, 12):
        raise KeyboardInterrupt
    assert path.read_bytes() == b"an older one" and [each.name for each in tmp_path.iterdir()] == ["walk.mp4"]


def test_a_kept_video_keeps_what_a_small_disk_took(tmp_path, codec):
    ends = write_on_small_disks("KeptVideo", codec, tmp_path, 400, 0, 40, 800, 100_000)
    assert all(end.sentence.startswith("the disk is full: the video ") for end in ends.values())
    assert [each.name for each in tmp_path.iterdir()] == ["100000.mp4"]
    assert (tmp_path / "100000.mp4").stat().st_size <= 100_000


def test_of_two_kept_videos_the_last_one_stays(tmp_path):
    path = tmp_path / "walk.mp4"
    with KeptVideo(path, 64, 48, 12) as first:
        with KeptVideo(path, 64, 48, 12) as second:
            for picture in noise(7):
                second.write(picture)
        assert played(path) == 7
        for picture in noise(9):
            first.write(picture)
    assert played(path) == 9 and [each.name for each in tmp_path.iterdir()] == ["walk.mp4"]


def test_a_kept_video_whose_folder_is_gone_is_named(tmp_path):
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(MediaError, match=r"^another program has removed or replaced .*walk\.mp4"),
        KeptVideo(tmp_path / "out" / "walk.mp4", 64, 48, 12) as video,
    ):
        video.write(next(noise(1)))
        shutil.rmtree(tmp_path / "out")
