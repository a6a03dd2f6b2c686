"""Cameras in space and what a walk starts from, as far as it needs no ComfyUI."""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np
import pytest
from comfyui_qvg.qvg import CacheBytes, ConfigError, QVGConfig
from comfyui_qvg.qvg.camera import parse_path
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.camera.pose_files import write_poses
from comfyui_qvg.qvg.camera.poses import camera_poses
from comfyui_qvg.qvg.errors import CameraPathError

from ..golden_worldplay import selections, text

PATH = "w-3,right-4"


@pytest.fixture
def camera(nodes: Any) -> Any:
    return importlib.import_module("comfyui_qvg.nodes.camera")


@pytest.fixture
def world(nodes: Any) -> Any:
    return importlib.import_module("comfyui_qvg.nodes.world")


def poses(frames: int = 8) -> str:
    return write_poses(Cameras(camera_poses(parse_path(PATH), frames, "stay")))


def test_a_path_is_cameras_in_space(camera: Any) -> None:
    made = camera.QVGCameraPath.execute(PATH, 8, "refuse").args[0].cameras()
    assert np.array_equal(made.poses, camera_poses(parse_path(PATH), 8))


@pytest.mark.parametrize(("frames", "change"), [(6, "drop 2"), (12, "add 4")])
def test_a_path_of_another_length_than_the_video(camera: Any, frames: int, change: str) -> None:
    with pytest.raises(CameraPathError, match=change):
        camera.QVGCameraPath.execute(PATH, frames, "refuse")


def test_fewer_poses_than_frames(camera: Any) -> None:
    with pytest.raises(CameraPathError, match="there are 8 camera poses, but the video has 12 latent frames; add 4"):
        camera.QVGCameraPoses.execute(poses(), 12)


@pytest.mark.parametrize(("there", "frames", "taken"), [(33, 32, 32), (33, 0, 32), (8, 6, 6), (8, 0, 8), (3, 0, 3)])
def test_further_poses_are_left_out_and_said(camera: Any, there: int, frames: int, taken: int) -> None:
    """HY-WorldPlay's own example has 33 for 32 frames, of which its own tools take the first ones."""
    given = camera.QVGCameraPoses.execute(poses(there), frames)
    assert given.args[0].frames == taken and given.args[1] == write_poses(given.args[0].poses)
    assert np.array_equal(given.args[0].poses.poses, camera_poses(parse_path(PATH), there, "stay")[:taken])
    said = given.ui.get("text")
    assert said == ((f"{there} camera poses: the first {taken} are taken, {there - taken} left out",) if there > taken else None)


def test_a_path_that_ends_early_goes_on_or_stands_still(camera: Any) -> None:
    again, stay = (camera.QVGCameraPath.execute(PATH, 15, beyond).args[0].cameras() for beyond in ("again", "stay"))
    assert np.array_equal(again.poses[:8], stay.poses[:8]) and np.array_equal(stay.poses[7:], np.repeat(stay.poses[7:8], 8, 0))
    assert np.linalg.norm(again.poses[10, :3, 3] - again.poses[7, :3, 3]) == pytest.approx(3 * 0.08)


def test_the_demo_world_walks_its_path_again_or_says_that_it_would(camera: Any) -> None:
    assert camera.QVGCameraPath.execute("w-3", 4, "stay").args[0].keys() == "w-3"
    with pytest.raises(ConfigError, match="the demo world walks its path again"):
        camera.QVGCameraPath.execute("w-3", 9, "stay").args[0].keys()
    with pytest.raises(ConfigError, match="the demo world walks by keys"):
        camera.QVGCameraPoses.execute(poses(), 0).args[0].keys()


def test_pose_files_in_and_out(camera: Any) -> None:
    read, written = camera.QVGCameraPoses.execute(poses(), 0).args
    assert read.frames == 8 and written == poses()
    path = camera.QVGCameraPath.execute(PATH, 8).args[0]
    assert camera.QVGCameraPoses.execute("", 8, path).args[1] == written
    assert np.allclose(read.from_above()[:4], [(0, 0), (-1, 0), (-2, 0), (-3, 0)])


def broken(**changes: Any) -> str:
    data = json.loads(poses())
    for name, value in changes.items():
        data["2"][name] = value
    return json.dumps({number: {k: v for k, v in entry.items() if v is not None} for number, entry in data.items()})


@pytest.mark.parametrize(
    ("poses_", "sentence"),
    [
        ("{", "the camera poses are not JSON"),
        ("[]", "the camera poses are list"),
        (broken(K=None), "frame 2 of the camera's poses lacks 'K'"),
        (broken(K=[[0, 0, 960], [0, 969, 540], [0, 0, 1]]), "has a singular K"),
        (broken(K=[[969, 0, 960], [0, 969, 540], [0, 0, 0]]), "frame 2 of the camera's poses has a K that is no camera's"),
        (broken(extrinsic=np.zeros((4, 4)).tolist()), "frame 2 of the camera's poses is singular"),
        (broken(extrinsic=(2 * np.eye(4)).tolist()), "is not rigid"),
        (broken(extrinsic=[[1]]), "has 'extrinsic' that is no 4 x 4 of numbers"),
    ],
)
def test_pose_files_that_are_none(camera: Any, poses_: str, sentence: str) -> None:
    assert sentence in str(camera.QVGCameraPoses.validate_inputs(poses_))
    with pytest.raises(CameraPathError, match="camera"):
        camera.QVGCameraPoses.execute(poses_, 0)


def test_poses_come_from_one_place(camera: Any) -> None:
    assert camera.QVGCameraPoses.validate_inputs("") is True and camera.QVGCameraPoses.validate_inputs(None) is True
    with pytest.raises(ConfigError, match="neither a text nor a camera is given"):
        camera.QVGCameraPoses.execute(" ", 0)
    with pytest.raises(ConfigError, match="both a text and a camera are given"):
        camera.QVGCameraPoses.execute(poses(), 0, camera.QVGCameraPath.execute(PATH, 8).args[0])


@pytest.mark.parametrize(("memory", "rule"), [("worldplay-5b", "wan"), ("worldplay-8b", "hunyuan")])
def test_the_frames_that_are_drawn_are_those_that_the_official_code_selects(camera: Any, memory: str, rule: str) -> None:
    official = selections(rule)
    frames = 4 + max(official) // 4 * 4
    seen = camera.remembered(Cameras(camera_poses(parse_path(text("turns")), frames, "again")), memory)
    assert {current: list(seen[current // 4]) for current in official if current % 4 == 0} == {
        current: chosen for current, chosen in official.items() if current % 4 == 0
    }


def test_the_picture_shows_memory_beside_the_path(camera: Any) -> None:
    plain = camera.QVGCameraPath.execute("right-20,left-27", 48).ui.image
    both = camera.QVGCameraPath.execute("right-20,left-27", 48, memory="worldplay-5b").ui.image
    assert plain.shape == (1, 384, 384, 3) and both.shape == (1, 384, 768, 3)
    orange = ((both[0, :, 384:] * 255 - both.new_tensor([0xF0, 0x92, 0x4A])).abs().sum(-1) < 12).any(1)
    # Twelve rows of 27 pixels: the chunk at frame 32 finds frames 4 to 7 again, the next one frames 0 to 3.
    rows = [bool(orange[46 + row * 27 : 42 + (row + 1) * 27].any()) for row in range(12)]
    assert [row for row, found in enumerate(rows) if found] == [8, 9]
    with pytest.raises(ConfigError, match="a world of 27 latent frames is not whole chunks"):
        camera.QVGCameraPath.execute("right-10", 27, memory="worldplay-5b")
    # What is looked through grows with the square of the frames: these would have taken weeks.
    with pytest.raises(ConfigError, match="walks for 100000 latent frames, but a session has at most 240"):
        camera.QVGCameraPath.execute("right-10", 100_000, memory="worldplay-5b")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"start": "image"}, "nothing is connected to image; connect a first picture, or choose another start"),
        (
            {"start": "image", "image": 1},
            "nothing is connected to vae; connect the VAE of Wan 2.2 (HY-WorldPlay 5B) or HunyuanVideo 1.5 (HY-WorldPlay 8B)",
        ),
        ({"start": "extend"}, "nothing is connected to extend; connect a sampled world"),
        ({"start": "text", "extend": {}}, "extend is connected and would be left out; choose extend as start, or disconnect it"),
        ({"start": "extend", "extend": {}, "image": 1}, "image is connected and would be left out"),
        ({"start": "walk"}, "start is 'walk', but must be one of image, text, extend; choose one of these"),
        ({"start": "text", "height": 90}, "height is 90, but must be a multiple of 32 from 64 to 4096; use 96"),
    ],
)
def test_what_a_walk_cannot_start_from(camera: Any, world: Any, given: dict[str, Any], sentence: str) -> None:
    path = camera.QVGCameraPath.execute(PATH, 8).args[0]
    with pytest.raises(ConfigError) as caught:
        world.QVGWorldStart.check_lazy_status(**{"conditioning": None, "camera": path, "width": 128, "height": 64, **given})
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("frames", "sentence"), [(6, "is not whole chunks of 4"), (244, "a session has at most 240")])
def test_a_walk_has_a_length_before_anything_else_is_made(camera: Any, world: Any, frames: int, sentence: str) -> None:
    path = camera.QVGCameraPath.execute(PATH, frames).args[0]
    with pytest.raises(ConfigError, match=sentence):
        world.QVGWorldStart.check_lazy_status(conditioning=None, camera=path, start="text", width=128, height=64)


def test_the_licence_s_territory_is_stated(world: Any) -> None:
    said = world.QVGLoadWorldPlay.define_schema().description
    assert all(place in said for place in ("European Union", "United Kingdom", "South Korea")) and "Nothing is downloaded" in said


def test_a_world_s_report_speaks_of_what_it_remembers(nodes: Any) -> None:
    records = importlib.import_module("comfyui_qvg.nodes.records")
    shared: dict[str, Any] = {"model": "WorldPlay 5B", "device": "cpu", "config": QVGConfig.preset("balanced"), "span_frames": 16}
    run = records.RunRecord(
        **shared,
        cache_bytes=(0, 0, 500, 500),
        exact_bytes=(0, 0, 2000, 2000),
        seconds=(1.0,) * 4,
        components=CacheBytes(codes=500),
        workspace_bytes=0,
        given_frames=0,
        remembers="mode vendor: the last chunk sees 2 earlier frames",
    )
    assert "ratio 4.00x over what it remembers" in run.text() and "mode vendor: the last chunk sees 2" in run.text()
    nothing = records.RunRecord(
        **shared, cache_bytes=(0,), exact_bytes=(0,), seconds=(1.0,), components=CacheBytes(), workspace_bytes=0, given_frames=0
    )
    assert nothing.ratio == 1.0 and nothing.text() and nothing.headline()
