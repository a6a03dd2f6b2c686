"""Paths of keys become poses, poses become labels; the official code's numbers, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from comfyui_qvg.qvg.camera import Move, parse_path
from comfyui_qvg.qvg.camera.cameras import DEFAULT_INTRINSICS, Cameras, invert_rigid
from comfyui_qvg.qvg.camera.labels import action_labels
from comfyui_qvg.qvg.camera.pose_files import read_poses, write_poses
from comfyui_qvg.qvg.camera.poses import camera_poses, walk_poses
from comfyui_qvg.qvg.errors import CameraPathError

from ...bounded import bounded
from ...golden_worldplay import GOLDEN, text

RETURN = "w-8,s-8,a-8,d-8,up-8,down-8"


@pytest.mark.parametrize("name", ["walk", "turns"])
def test_poses_and_labels_of_a_path(name):
    poses = walk_poses(parse_path(text(name)))
    np.testing.assert_allclose(poses, GOLDEN[f"{name}.poses"].numpy(), atol=1e-12)
    assert action_labels(poses).tolist() == GOLDEN[f"{name}.labels"].tolist()


def test_poses_of_keys_held_together():
    """The official path language has no such keys, but its motions do."""
    axes = (("w", "s"), ("d", "a"), ("right", "left"), ("up", "down"))
    poses = [np.eye(4)]
    for motion in GOLDEN["mixed.motions"].tolist():
        keys = tuple(axis[sign < 0] for sign, axis in zip(motion, axes, strict=True) if sign)
        poses.append(walk_poses([Move(keys, 1)], poses[-1])[1] if keys else poses[-1])
    np.testing.assert_allclose(poses, GOLDEN["mixed.poses"].numpy(), atol=1e-12)


@pytest.mark.parametrize("third_person", [False, True])
@pytest.mark.parametrize("name", ["mixed", "free"])
def test_labels_of_any_poses(name, third_person):
    """81 labels, dead zones of 1e-4 units and 0.05 degrees: 60 random steps of keys, and 39 rigid motions around the zones."""
    labels = GOLDEN[f"{name}.labels.{int(third_person)}"].tolist()
    assert len(set(labels)) >= 10
    assert action_labels(GOLDEN[f"{name}.poses"].numpy(), third_person).tolist() == labels


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        ("w", 9),
        ("s", 18),
        ("d", 27),
        ("a", 36),
        ("right", 1),
        ("left", 2),
        ("up", 3),
        ("down", 4),
        ("w+d", 45),
        ("w+a", 54),
        ("s+d", 63),
        ("s+a", 72),
        ("right+up", 5),
        ("right+down", 6),
        ("left+up", 7),
        ("left+down", 8),
        ("s+a+left+down", 80),
    ],
)
def test_label_of_keys(keys, label):
    assert action_labels(walk_poses(parse_path(f"{keys}-3"))).tolist() == [0, label, label, label]


def test_a_path_and_back():
    poses = walk_poses(parse_path(RETURN))
    assert len(poses) == 49
    assert action_labels(poses).tolist() == [0, *[9] * 8, *[18] * 8, *[36] * 8, *[27] * 8, *[3] * 8, *[4] * 8]
    np.testing.assert_allclose(poses[-1], np.eye(4), atol=1e-14)
    assert action_labels(poses[[0, 0, 0]]).tolist() == [0, 0, 0]


def test_a_walk_goes_on_from_its_last_pose():
    whole = walk_poses(parse_path("w+right-5,up-3,a-2"))
    first = walk_poses(parse_path("w+right-5"))
    np.testing.assert_allclose(np.concatenate([first, walk_poses(parse_path("up-3,a-2"), first[-1])[1:]]), whole, atol=1e-14)


def test_a_path_is_fitted_only_when_asked():
    moves = parse_path("w-4,right-4")
    assert len(camera_poses(moves, 9)) == 9
    with pytest.raises(CameraPathError, match="9 poses .* 12 latent frames; add 3"):
        camera_poses(moves, 12)
    with pytest.raises(CameraPathError, match="9 poses .* 8 latent frames; drop 1"):
        camera_poses(moves, 8)
    np.testing.assert_array_equal(camera_poses(moves, 8, "again"), walk_poses(moves)[:8])
    np.testing.assert_array_equal(camera_poses(moves, 8, "stay"), walk_poses(moves)[:8])
    again = camera_poses(moves, 24, "again")
    np.testing.assert_allclose(again, walk_poses([*moves, *moves, *moves])[:24], atol=1e-14)
    stay = camera_poses(moves, 12, "stay")
    assert (stay[9:] == stay[8]).all()
    assert action_labels(stay).tolist()[9:] == [0, 0, 0]


def test_a_path_that_cannot_be_walked():
    with pytest.raises(CameraPathError, match="no moves"):
        camera_poses((), 8)
    with pytest.raises(CameraPathError, match="0 latent frames"):
        camera_poses(parse_path("w-4"), 0)
    with pytest.raises(CameraPathError, match="'loop'.*'again'"):
        camera_poses(parse_path("w-4"), 8, "loop")


def test_views_and_intrinsics():
    cameras = Cameras(GOLDEN["turns.poses"].numpy())
    np.testing.assert_allclose(cameras.views() @ cameras.poses, np.broadcast_to(np.eye(4), (len(cameras), 4, 4)), atol=1e-14)
    np.testing.assert_allclose(cameras.normalised_intrinsics()[:1], GOLDEN["turns.intrinsics"].numpy(), atol=1e-15)
    assert [round(float(cameras.normalised_intrinsics()[0, i, i]), 5) for i in (0, 1)] == [0.50505, 0.89787]


def test_a_world_is_recentred():
    cameras = Cameras(GOLDEN["turns.poses"].numpy())
    moved = cameras.recentred(30)
    np.testing.assert_allclose(moved.views()[30], np.eye(4), atol=1e-14)
    relative = [c.views()[[3, 50]] @ c.poses[[40, 40]] for c in (cameras, moved)]
    np.testing.assert_allclose(*relative, atol=1e-13)


def test_pose_files_round_trip():
    cameras = Cameras(GOLDEN["turns.poses"].numpy())
    again = read_poses(write_poses(cameras))
    np.testing.assert_array_equal(again.poses, cameras.poses)
    np.testing.assert_array_equal(again.intrinsics, cameras.intrinsics)
    shuffled = dict(reversed(list(json.loads(write_poses(cameras)).items())))
    np.testing.assert_array_equal(read_poses(json.dumps(shuffled)).poses, cameras.poses)


def _file(**changes):
    frame = {"extrinsic": np.eye(4).tolist(), "K": DEFAULT_INTRINSICS.tolist()}
    return json.dumps({"0": frame, "1": {key: value for key, value in {**frame, **changes}.items() if value is not None}})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        (None, "not JSON"),
        ("[1]", "are list"),
        ("{}", "are dict"),
        ('{"0": 1}', "frame 0 of the camera's poses is int"),
        ('{"1": {}}', "1 frames, but not '0'"),
        (_file(K=None), "frame 1 of the camera's poses lacks 'K'"),
        (_file(extrinsic=None), "frame 1 of the camera's poses lacks 'extrinsic'"),
        (_file(K=[[1, 2], [3, 4]]), "'K' that is no 3 x 3"),
        (_file(extrinsic=[[1]] * 4), "'extrinsic' that is no 4 x 4"),
        (_file(extrinsic="north"), "'extrinsic' that is no 4 x 4"),
        (_file(K=np.zeros((3, 3)).tolist()), "frame 1 of the camera's poses has a singular K"),
        (_file(K=np.eye(3).tolist()), "without a principal point"),
        (_file(extrinsic=np.zeros((4, 4)).tolist()), "frame 1 of the camera's poses is singular"),
        (_file(extrinsic=(2 * np.eye(4)).tolist()), "frame 1 of the camera's poses is not rigid"),
        (_file(extrinsic=np.diag([1.0, 1.0, -1.0, 1.0]).tolist()), "not rigid"),
        (_file(extrinsic=np.eye(4)[:, ::-1].tolist()), "frame 1 of the camera's poses is"),
        (_file(extrinsic=[[float("nan")] * 4] * 4), "holds NaN"),
    ],
)
def test_bad_pose_files(content, said):
    with pytest.raises(CameraPathError) as refused:
        read_poses(content)
    assert said in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_rounded_poses_are_taken():
    poses = np.round(GOLDEN["turns.poses"].numpy(), 4)
    assert len(read_poses(write_poses(Cameras(poses)))) == len(poses)
    np.testing.assert_allclose(invert_rigid(poses) @ poses, np.broadcast_to(np.eye(4), poses.shape), atol=1e-3)


@pytest.mark.parametrize(("poses", "intrinsics"), [(np.eye(4), None), (np.zeros((0, 4, 4)), None), (np.eye(4)[None], np.eye(4))])
def test_cameras_refuse_other_shapes(poses, intrinsics):
    with pytest.raises(CameraPathError, match="shape"):
        Cameras(poses, *([] if intrinsics is None else [intrinsics]))


def test_a_path_walked_again_goes_on_from_where_it_is():
    moves = parse_path("w-2,right+d-3")
    poses = walk_poses(moves)
    for _ in range(3):
        poses = np.concatenate([poses, walk_poses(moves, poses[-1])[1:]])
    for frames in (1, 6, 7, 17):
        assert np.array_equal(camera_poses(moves, frames, "again"), poses[:frames])
    stays = camera_poses(moves, 9, "stay")
    assert np.array_equal(stays[:6], walk_poses(moves)) and np.array_equal(stays[6:], np.repeat(stays[5:6], 3, axis=0))


def test_a_hundred_thousand_frames_take_no_minutes():
    """As many as the nodes take."""
    with bounded(10, 200):
        cameras = Cameras(camera_poses(parse_path("w-1"), 100_000, "again"))
    assert len(cameras) == 100_000


@pytest.mark.parametrize("frame", [0, 70_000, 99_999])
def test_a_wrong_pose_among_many_is_found(frame):
    poses = np.repeat(np.eye(4)[None], 100_000, axis=0)
    intrinsics = np.repeat(DEFAULT_INTRINSICS[None], 100_000, axis=0)
    for change, said in ((np.nan, "holds NaN"), (2.0, "is not rigid"), (0.0, "is singular"), (-1.0, "is not rigid")):
        wrong = poses.copy()
        wrong[frame, 0, 0] = change
        with pytest.raises(CameraPathError, match=f"frame {frame} of the camera's poses {said}"):
            Cameras(wrong)
    for change, said in ((np.inf, "has a K with NaN"), (0.0, "has a singular K"), (-5.0, "has a singular K")):
        odd = intrinsics.copy()
        odd[frame, 1, 1] = change
        with pytest.raises(CameraPathError, match=f"frame {frame} of the camera's poses {said}"):
            Cameras(poses, odd)
