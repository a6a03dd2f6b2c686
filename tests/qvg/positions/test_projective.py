"""The projective encoding: the official numbers, what it may not notice, and pieces of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.positions.projective import Projection, project, projection_matrices
from comfyui_qvg.qvg.positions.rope import pairs_apart
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...golden_worldplay import GOLDEN
from ...helpers import assert_close


def _matrices(cameras: Cameras) -> tuple[Tensor, Tensor]:
    return projection_matrices(torch.from_numpy(cameras.views()), torch.from_numpy(cameras.normalised_intrinsics()))


def _attend(q: Tensor, k: Tensor, v: Tensor, cameras: Cameras) -> Tensor:
    p, inverse = _matrices(cameras)
    out = scaled_dot_product_attention(project(q, p.mT), project(k, inverse), project(v, inverse))
    return project(out, p)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_official_numbers():
    random = np.random.RandomState(5)
    q, k, v = (torch.from_numpy(random.standard_normal((1, 2, 12, 128)).astype(np.float32)) for _ in range(3))
    cameras = Cameras(GOLDEN["turns.poses"].numpy()[[3, 24, 50]])
    p, inverse = _matrices(cameras)
    for name, mine in (("q", project(q, p.mT)), ("k", project(k, inverse)), ("v", project(v, inverse))):
        assert_close(name, GOLDEN[f"prope.{name}"], mine[:, :1, ::4], 1e-6)
    assert_close("out", GOLDEN["prope.out"], _attend(q, k, v, cameras), 2e-6)


def test_inverse():
    p, inverse = _matrices(Cameras(GOLDEN["free.poses"].numpy()))
    torch.testing.assert_close(p @ inverse, torch.eye(4, dtype=torch.float64).expand_as(p), atol=1e-14, rtol=0)
    torch.testing.assert_close(p.float() @ inverse.float(), torch.eye(4).expand_as(p), atol=1e-5, rtol=0)


def test_one_camera_is_no_camera():
    """Where all frames are seen by the same camera, attention is plain."""
    q, k, v = _random(3, 2, 3, 20, 32)
    cameras = Cameras(np.repeat(GOLDEN["turns.poses"].numpy()[30:31], 5, axis=0))
    assert_close("attention", scaled_dot_product_attention(q, k, v), _attend(q, k, v, cameras), 1e-5)


def test_the_world_may_be_moved():
    q, k, v = _random(3, 2, 3, 20, 32)
    cameras = Cameras(GOLDEN["turns.poses"].numpy()[:70:14])
    assert len(cameras) == 5
    plain = _attend(q, k, v, cameras)
    assert_close("attention", plain, _attend(q, k, v, cameras.recentred(4)), 1e-5)
    assert float((plain - scaled_dot_product_attention(q, k, v)).abs().max()) > 0.05


def test_a_centred_world_keeps_its_precision():
    """Far from the origin, 16-bit matrices ruin the attention that the same matrices give near it."""
    q, k, v = _random(3, 1, 2, 20, 32)
    poses = GOLDEN["turns.poses"].numpy()[:70:14].copy()
    exact = _attend(q, k, v, Cameras(poses))
    poses[:, :3, 3] += (40.0, 0.0, 40.0)
    far = Cameras(poses)
    errors = []
    for cameras in (far, far.recentred(2)):
        p, inverse = (matrices.bfloat16().float() for matrices in _matrices(cameras))
        out = project(scaled_dot_product_attention(project(q, p.mT), project(k, inverse), project(v, inverse)), p)
        errors.append(float((out - exact).square().mean().sqrt()))
    assert errors[1] < errors[0] / 10


@pytest.mark.parametrize(("start", "stop"), [(0, 24), (0, 3), (2, 7), (4, 8), (5, 6), (11, 24), (23, 24)])
@pytest.mark.parametrize("apart", [False, True])
def test_pieces(start, stop, apart):
    """Any stretch of tokens, and a piece of a piece; keys may have their pairs apart."""
    x, matrices = _random(2, 3, 24, 16), _random(6, 4, 4)
    whole = torch.einsum("fij,bhfsgj->bhfsgi", matrices, x.unflatten(-1, (4, 4)).unflatten(2, (6, 4))).flatten(2, 3).flatten(-2)
    layout = pairs_apart if apart else lambda x: x
    projection = Projection(matrices, 4, apart=apart)
    piece = layout(x)[:, :, start:stop].clone()
    assert projection.tokens(start, stop).apply_(piece) is piece
    torch.testing.assert_close(piece, layout(whole)[:, :, start:stop])
    inner = projection.tokens(1, 24).tokens(start, stop - 1)
    piece = layout(x)[:, :, start + 1 : stop].clone()
    torch.testing.assert_close(inner.apply_(piece), layout(whole)[:, :, start + 1 : stop])


def test_sixteen_bits_are_computed_in_float32():
    x, matrices = _random(1, 2, 8, 16).bfloat16(), 10 * _random(2, 4, 4)
    mine = project(x, matrices)
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, project(x.float(), matrices).bfloat16(), rtol=0, atol=0)
