"""Rotation: what it keeps, and that only differences of positions matter."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg import CacheError, CacheSpec, ConfigError, GridRope, KVCache, QVGConfig
from comfyui_qvg.qvg.rope import geometric_frequencies, rotate

ROPE = GridRope(2, 3, (geometric_frequencies(4, 3, 30), geometric_frequencies(6, 3, 30), geometric_frequencies(6, 3, 30)))


def test_angles_are_positions_times_frequencies() -> None:
    rotation = ROPE.rotation(torch.tensor([[2.0, 0.5, -1.0]]))
    t, r, c = (torch.tensor(f) for f in ROPE.axis_frequencies)
    expected = torch.cat([2.0 * t, (0.5 + 1) * r, (-1.0 + 2) * c])  # token (1, 2)
    assert torch.allclose(rotation.cos[5], expected.cos(), atol=1e-6) and torch.allclose(
        rotation.sin[5], expected.sin(), atol=1e-6
    )


def test_norms_stay_and_only_differences_matter() -> None:
    x, y = torch.randn(2, 1, 1, 6, 32)
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
