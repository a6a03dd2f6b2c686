"""Which frames are remembered, and when what is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from comfyui_qvg.qvg.camera import parse_path
from comfyui_qvg.qvg.camera.cameras import invert_rigid
from comfyui_qvg.qvg.camera.overlap import POINTS, RADIUS, FieldOfView, ball_points
from comfyui_qvg.qvg.camera.poses import walk_poses
from comfyui_qvg.qvg.camera.selection import HUNYUAN_MEMORY, WAN_MEMORY, MemoryRule, select_context
from comfyui_qvg.qvg.errors import ConfigError
from comfyui_qvg.qvg.models.common.world_schedule import chunks_of, latent_frames, plan_chunk, timesteps, video_frames

from ....golden_worldplay import GOLDEN, selections


def _views(path: str) -> torch.Tensor:
    return torch.from_numpy(invert_rigid(walk_poses(parse_path(path))))


def test_points_are_the_official_ones():
    points = ball_points()
    assert points.shape == (POINTS, 3)
    torch.testing.assert_close(points[:4], GOLDEN["points.first"], rtol=0, atol=1e-6)
    assert float(points.norm(dim=1).max()) <= RADIUS
    # Evenly filled: half the points lie beyond the radius that halves the volume.
    assert float((points.norm(dim=1) > RADIUS / 2 ** (1 / 3)).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_points_move_nobody_elses_dice():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ball_points(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_overlap():
    views = torch.from_numpy(invert_rigid(GOLDEN["turns.poses"].numpy()))
    field = FieldOfView()
    found = [field.overlap(views[a], views[b]) for a, b in GOLDEN["overlap.pairs"].tolist()]
    np.testing.assert_allclose(found, GOLDEN["overlap.float32"].numpy(), atol=1e-4)
    assert min(found) < 0.1 and max(found) == 1.0


def test_a_camera_that_looks_away_has_seen_nothing():
    views = _views("right-60")
    field = FieldOfView()
    assert field.overlap(views[0], views[60]) == 0.0
    assert field.overlap(views[7], views[7]) == 1.0
    assert FieldOfView(torch.tensor([[0.0, 0.0, -1.0]])).overlap(views[0], views[0]) == 0.0


@pytest.mark.parametrize(
    ("name", "rule", "dtype"),
    [("wan", WAN_MEMORY, torch.float32), ("hunyuan", HUNYUAN_MEMORY, torch.float64)],
    ids=["wan", "hunyuan"],
)
def test_selection_along_a_path(name, rule, dtype):
    views, field = torch.from_numpy(invert_rigid(GOLDEN["turns.poses"].numpy())), FieldOfView(dtype=dtype)
    official = selections(name)
    assert len(official) == 16 and len({tuple(frames[:8]) for frames in official.values()}) >= 4
    assert {current: select_context(rule, views, current, field) for current in official} == official


def test_equal_clips_give_the_oldest():
    views = torch.eye(4, dtype=torch.float64).expand(40, 4, 4)
    field = FieldOfView()
    assert select_context(WAN_MEMORY, views, 36, field) == [*range(4), *range(24, 36)]
    assert select_context(HUNYUAN_MEMORY, views, 36, field) == [*range(8), *range(24, 36)]


def test_short_histories_are_remembered_whole():
    views, field = _views("right-40"), FieldOfView()
    for current in (0, 4, 12, 16):
        assert select_context(WAN_MEMORY, views, current, field) == list(range(current))
    for current in (0, 16, 20):
        assert select_context(HUNYUAN_MEMORY, views, current, field) == list(range(current))
    assert len(select_context(WAN_MEMORY, views, 20, field)) == 16
    assert len(select_context(HUNYUAN_MEMORY, views, 24, field)) == 20


def test_a_longer_memory_takes_more_clips():
    rule = MemoryRule(context_frames=24, recent_frames=12, everything_below=24)
    assert rule.select(40, 44, lambda queries, clip: -clip) == list(range(16, 40))
    assert rule.select(40, 44, lambda queries, clip: clip) == [*range(12), *range(28, 40)]


def test_bad_memory():
    with pytest.raises(ConfigError, match="16 frames has no room for 12 recent.*4 first.*4"):
        MemoryRule(16, 12, 16, first_frames=4)
    with pytest.raises(ConfigError, match="starts at frame 44.*41 frames"):
        select_context(WAN_MEMORY, _views("right-40"), 44, FieldOfView())


def test_timesteps():
    assert timesteps(4, 8.0) == pytest.approx((1000, 960, 8000 / 9, 727.27272727, 0))
    assert timesteps(4, 5.0) == pytest.approx((1000, 937.5, 2500 / 3, 625, 0))
    with pytest.raises(ConfigError, match="steps 0"):
        timesteps(0, 8.0)


def test_frames_of_a_video():
    assert [video_frames(count) for count in (0, 1, 4, 8, 48)] == [0, 1, 13, 29, 189]
    assert [plan_chunk(index, "vendor").video_frames for index in (0, 1, 2)] == [range(13), range(13, 29), range(29, 45)]
    assert [latent_frames(count) for count in (1, 13, 189)] == [1, 4, 48]
    assert chunks_of(48) == 12
    with pytest.raises(ConfigError, match="50 latent frames.*use 48 latent frames, 189 video frames"):
        chunks_of(50)
    with pytest.raises(ConfigError, match="188 frames.*use 189"):
        latent_frames(188)


@pytest.mark.parametrize("mode", ["vendor", "persistent", "incremental"])
def test_the_first_chunk_has_no_context(mode):
    plan = plan_chunk(0, mode)
    assert (plan.encode, plan.store, plan.context, plan.positions) == ((), (), (), range(4))


def test_vendor_plan():
    plan = plan_chunk(6, "vendor", lambda current: [0, 1, 2, 3, *range(12, 24)])
    assert plan.frames == range(24, 28) and plan.afresh and not plan.recalls
    assert plan.encode == plan.store == plan.context == (0, 1, 2, 3, *range(12, 24))
    assert plan.encode_positions == tuple(range(16)) and plan.positions == range(16, 20)
    assert plan_chunk(3, "vendor").context == tuple(range(12))


def test_persistent_and_incremental_plans():
    persistent, incremental = plan_chunk(6, "persistent"), plan_chunk(6, "incremental")
    assert persistent.encode == persistent.context == tuple(range(24))
    assert incremental.encode == incremental.store == persistent.store == (20, 21, 22, 23)
    assert incremental.encode_positions == (20, 21, 22, 23) and incremental.positions == range(24, 28)
    assert incremental.recalls and not persistent.recalls and not (persistent.afresh or incremental.afresh)


@pytest.mark.parametrize("mode", ["persistent", "incremental"])
def test_every_frame_is_stored_once(mode):
    stored = [frame for index in range(12) for frame in plan_chunk(index, mode).store]
    assert stored == list(range(44))
    assert all(plan_chunk(index, mode).context == tuple(stored[: 4 * index]) for index in range(12))


def test_what_a_chunk_costs():
    """Pairs of frames before 44 frames of context: 44 * 44, or 4 * 44, and 4 steps of 4 * 48."""
    assert plan_chunk(11, "vendor").attended_pairs(4) == plan_chunk(11, "persistent").attended_pairs(4) == 44 * 44 + 16 * 48
    assert plan_chunk(11, "incremental").attended_pairs(4) == 4 * 44 + 16 * 48


def test_bad_plans():
    with pytest.raises(ConfigError, match="'online'"):
        plan_chunk(1, "online")
    with pytest.raises(ConfigError, match="'persistent' keeps one unbroken history"):
        plan_chunk(5, "persistent", lambda current: [0])
