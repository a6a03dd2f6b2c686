"""Rotation: what it keeps, and that only differences of positions matter."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg import CacheError, CacheSpec, ConfigError, GridRope, KVCache, QVGConfig
from comfyui_qvg.qvg.positions.rope import geometric_frequencies, pairs_apart, rotate, wan_rope

ROPE = GridRope(2, 3, (geometric_frequencies(4, 3, 30), geometric_frequencies(6, 3, 30), geometric_frequencies(6, 3, 30)))


def test_angles_are_positions_times_frequencies() -> None:
    rotation = ROPE.rotation(torch.tensor([[2.0, 0.5, -1.0]]))
    t, r, c = (torch.tensor(f) for f in ROPE.axis_frequencies)
    expected = torch.cat([2.0 * t, (0.5 + 1) * r, (-1.0 + 2) * c])  # token (1, 2)
    assert torch.allclose(rotation.cos[5], expected.cos(), atol=1e-6) and torch.allclose(
        rotation.sin[5], expected.sin(), atol=1e-6
    )


def test_norms_stay_and_only_differences_matter() -> None:
    x, y = torch.randn(2, 1, 1, 6, 32, generator=torch.Generator().manual_seed(0))
    here, there = (torch.tensor([[t, 0.0, 0.5]]) for t in (0.0, 3.0))
    shift = torch.tensor([[7.0, -2.5, 4.0]])
    assert torch.allclose(rotate(x, ROPE.rotation(there)).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    near, far = (
        rotate(x, ROPE.rotation(here + s)) @ rotate(y, ROPE.rotation(there + s)).transpose(2, 3)
        for s in (torch.zeros(1, 3), shift)
    )
    assert torch.allclose(near, far, atol=1e-4)


def test_frequencies() -> None:
    assert geometric_frequencies(0, 1, 2) == () and geometric_frequencies(3, 2, 8) == pytest.approx(
        (torch.pi, torch.pi / 2, torch.pi / 4)
    )


def test_cache_and_rope_must_fit() -> None:
    with pytest.raises(ConfigError, match="rope has 6 tokens per frame, but the cache 5"):
        KVCache(CacheSpec(1, 1, 32, 5), QVGConfig(codec="none"), ROPE)
    cache = KVCache(CacheSpec(1, 1, 32, 6), QVGConfig(codec="none"), ROPE)
    with pytest.raises(CacheError, match=r"0 frames were placed, but the block has 6 tokens .* call place\(\)"):
        cache.attend(0, *torch.zeros(3, 1, 1, 6, 32))


@pytest.mark.parametrize(("head_dim", "thirds"), [(128, (22, 21, 21)), (24, (4, 4, 4)), (64, (12, 10, 10))])
def test_wan_turns_neighbouring_channels_as_complex_numbers(head_dim: int, thirds: tuple[int, int, int]) -> None:
    """Against the definition, in complex128: channels (2i, 2i + 1) of a token at (t, r, c) are a number that turns by position
    times 10000 ** (-i / n), counted anew for time, row and column."""
    rows, cols, first_frame, frames = 3, 2, 7, 2
    rope = wan_rope(rows, cols, head_dim)
    assert tuple(map(len, rope.axis_frequencies)) == thirds
    x = torch.randn(1, 2, frames * rows * cols, head_dim, generator=torch.Generator().manual_seed(0))
    positions = torch.cartesian_prod(torch.arange(frames) + first_frame, torch.arange(rows), torch.arange(cols)).double()
    speeds = [10000.0 ** (-torch.arange(n, dtype=torch.float64) / n) for n in thirds]
    angles = torch.cat([positions[:, axis, None] * speeds[axis] for axis in range(3)], 1)
    turned = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.view_as_real(turned).flatten(-2)
    origins = torch.tensor([[float(first_frame + frame), 0.0, 0.0] for frame in range(frames)])
    ours = rotate(pairs_apart(x), rope.rotation(origins))
    assert torch.allclose(ours.double(), pairs_apart(expected), atol=1e-5)
    scores = pairs_apart(x) @ pairs_apart(x).transpose(2, 3)
    assert torch.allclose(scores, x @ x.transpose(2, 3), atol=1e-4)
