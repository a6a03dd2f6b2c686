"""DreamX-World's network, cameras and loop make the official code's numbers (`tests/golden_dreamx.py`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from comfyui_qvg.qvg import KVCache, QVGConfig
from comfyui_qvg.qvg.cache.spec import CacheSpec
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.camera.paths import KEYS
from comfyui_qvg.qvg.camera.pictures import Action, action_pictures, latent_poses, picture_poses, read_actions
from comfyui_qvg.qvg.models.dreamx.cameras import STEPS, block_cameras
from comfyui_qvg.qvg.models.dreamx.network import DreamX, load_dreamx
from comfyui_qvg.qvg.models.dreamx.variants import VARIANTS
from comfyui_qvg.qvg.models.wan.solved import SolvedDenoiser
from comfyui_qvg.qvg.sampling import SolverSchedule, generate, place_blocks
from torch import Tensor

from .... import golden_dreamx as made

GOLDEN = made.golden()
EXACT = VARIANTS["dreamx-world-exact"].solver
TOKENS = made.SIDE**2 // 4
assert EXACT is not None


@pytest.fixture(scope="module")
def network() -> DreamX:
    return load_dreamx(made.weights())


def cameras() -> Cameras:
    return Cameras(np.linalg.inv(GOLDEN["views"].double().numpy()))


class Drawn(SolverSchedule):
    """With the official run's noise between steps."""

    def fresh_noise(self, index: int, step: int, shape: tuple[int, ...]) -> Tensor:
        return made.draws()[index, step - 1]


def largest(out: Tensor, reference: Tensor) -> float:
    assert out.shape == reference.shape
    return float((out - reference).abs().max() / reference.abs().max())


def run(network: DreamX, config: QVGConfig, reindexed: bool = True) -> tuple[Tensor, dict[str, float]]:
    """The whole video, [1, F, C, h, w]; and how far each pass that the official code recorded is from it."""
    noise, text = made.inputs()
    spec = CacheSpec(made.LAYERS, made.HEADS, 128, TOKENS, made.BLOCK, 1, torch.float32)
    rope = network.config.rope(made.SIDE, made.SIDE)
    places = place_blocks(made.FRAMES, 1, made.BLOCK, in_block=True)
    schedule = Drawn(EXACT, places, noise, picture=noise[:, :1], axis=1)
    denoiser = SolvedDenoiser(network, network.read_prompt(text), made.SIDE, made.SIDE, EXACT)
    seen = cameras()
    latents: list[Tensor] = []
    with KVCache(spec, config, rope) as cache:

        def begin(index: int) -> None:
            place = places[index]
            denoiser.kept_frames = place.kept_frames
            denoiser.beside = block_cameras(seen, place.first_frame, place.frames, TOKENS)
            if reindexed:
                cache.replace_origins([(float(frame), 0.0, 0.0) for frame in range(cache.layout.frames)])
            held = cache.layout.frames if reindexed else place.first_frame
            origins[index][:] = [(float(held + frame), 0.0, 0.0) for frame in range(place.frames)]

        origins: list[list[tuple[float, float, float]]] = [[(0.0, 0.0, 0.0)] * place.frames for place in places]
        begin(0)
        for block in generate(denoiser, cache, origins, schedule, verify=False):
            latents.append(block.latent)
            if block.index + 1 < len(places):
                begin(block.index + 1)
    return torch.cat(latents, 1), {}


WINDOW = QVGConfig.preset("exact").with_changes(window_frames=12, sink_frames=3)


def test_seven_blocks_are_the_official_ones(network: DreamX) -> None:
    latents, _ = run(network, WINDOW)
    assert largest(latents, GOLDEN["latents"]) < made.TOLERANCE
    # What the numbers must be able to tell: positions of the video in place of those in memory, which differ from block 4 on.
    absolute, _ = run(network, WINDOW, reindexed=False)
    first = 4 * made.BLOCK
    assert largest(absolute[:, :first], GOLDEN["latents"][:, :first]) < made.TOLERANCE
    assert largest(absolute[:, first:], GOLDEN["latents"][:, first:]) > 10 * made.TOLERANCE


def test_a_pass_is_the_official_one(network: DreamX) -> None:
    """Of the first block, whose memory is empty: all five, the picture's frame told 0 in four of them."""
    _, text = made.inputs()
    prompt, beside = network.read_prompt(text), block_cameras(cameras(), 0, made.BLOCK, TOKENS)
    spec = CacheSpec(made.LAYERS, made.HEADS, 128, TOKENS, made.BLOCK, 1, torch.float32)
    for step in range(5):
        x, t, flow = (GOLDEN[f"{name}.0.{step}"] for name in ("x", "t", "flow"))
        with KVCache(spec, QVGConfig.preset("exact"), network.config.rope(made.SIDE, made.SIDE)) as cache, torch.inference_mode():
            cache.place([(float(frame), 0.0, 0.0) for frame in range(made.BLOCK)])
            assert largest(network(x, t, prompt, cache.attend, beside), flow) < made.TOLERANCE
            cache.place([(float(frame), 0.0, 0.0) for frame in range(made.BLOCK)])
            blind = network(x, t, prompt, cache.attend)
        assert largest(blind, flow) > 100 * made.TOLERANCE


def test_any_camera_may_be_the_worlds_origin(network: DreamX) -> None:
    """Attention among a block's frames knows how they stand towards one another: views relative to the block before are the
    same."""
    for first in (0, 3, 12):
        views = torch.linalg.inv(GOLDEN["views.by_block"].double())[first : first + 3]
        ours, theirs = block_cameras(cameras(), first, 3, TOKENS), block_cameras(Cameras(views.numpy()), 0, 3, TOKENS)
        assert torch.allclose(ours.to_picture, theirs.to_picture, atol=2e-6)


def test_poses_are_the_official_ones() -> None:
    pictures = 4 * made.FRAMES - 3
    text = '[{"action_seq": ["w", "wj", "dl", "i"], "action_speed_list": [4, 3, 3, 2]}]'
    keys = action_pictures(read_actions(text), pictures)
    assert [sum(1 for each in keys if each == held) for held in dict.fromkeys(keys)] == [27, 20, 20, 14]
    poses = picture_poses(keys, STEPS)
    # Theirs are written down in float32.
    assert np.abs(poses - GOLDEN["poses"].numpy()).max() < 1e-6
    ours = np.linalg.inv(latent_poses(poses)[0]) @ latent_poses(poses)
    assert np.abs(np.linalg.inv(ours) - GOLDEN["views"].numpy()).max() < 2e-6
    focal = cameras().normalised_intrinsics()[0]
    assert np.abs(focal - GOLDEN["intrinsics"][0].numpy()).max() < 1e-7
    assert len(KEYS) == 8 and action_pictures([Action((), 1.0)], 5) == [()] * 5


def test_both_timesteps_are_the_official_ones() -> None:
    rounded, exact = VARIANTS["dreamx-world"].solver, EXACT
    assert rounded is not None and rounded.timesteps == tuple(GOLDEN["timesteps"].tolist()) == (1000, 936, 832, 624)
    assert rounded.levels == pytest.approx(GOLDEN["levels"].tolist(), abs=2e-7)
    assert rounded.context_timestep == float(GOLDEN["context"])
    assert exact.timesteps == pytest.approx(GOLDEN["exact"].tolist(), abs=1e-4) and exact.fresh == rounded.fresh
    assert exact.fresh == pytest.approx(GOLDEN["fresh"].tolist(), abs=2e-7)
