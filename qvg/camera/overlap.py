"""How much of what one camera sees another camera has seen: a count of random points in both fields of view.

Points fill a ball of 8 units around the current camera. A point is in view within 30 degrees to the side and 17.5 degrees up or
down; roll is ignored. The earlier camera must also be within 8 units of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

POINTS = 50_000
RADIUS = 8.0
_HALF_WIDTH_DEGREES = 30.0
_HALF_HEIGHT_DEGREES = 17.5


def ball_points(seed: int = 0, count: int = POINTS) -> Tensor:
    """Points spread evenly in the ball: [count, 3] float32, from a generator of their own.

    The official code draws its points from torch's global generator after seeding it with 0; seed 0 gives the same points.
    """
    generator = torch.Generator().manual_seed(seed)
    radius, turn, height = (torch.rand(count, generator=generator) for _ in range(3))
    distance = RADIUS * radius ** (1 / 3)
    longitude, latitude = 2 * math.pi * turn, torch.acos(1 - 2 * height)
    flat = distance * latitude.sin()
    return torch.stack([flat * longitude.cos(), flat * longitude.sin(), distance * latitude.cos()], 1)


class FieldOfView:
    """Overlaps with one set of points. `dtype` is what the official code computes in: float32 for Wan, float64 for Hunyuan."""

    def __init__(self, points: Tensor | None = None, dtype: torch.dtype = torch.float32):
        points = (ball_points() if points is None else points).to(dtype)
        # Everything is seen from the current camera, so what it has in view is the same in every call.
        self.visible = points[_in_view(points, torch.zeros(2, dtype=dtype))]
        self.dtype = dtype

    def overlap(self, current: Tensor, earlier: Tensor) -> float:
        """Share of the points seen by the current camera that the earlier one sees too, 0..1. View matrices [4, 4]."""
        if not len(self.visible):
            return 0.0
        # The earlier camera as the current one sees it.
        pose = current.to(self.dtype) @ torch.linalg.inv(earlier.to(self.dtype))
        rays = self.visible - pose[:3, 3]
        seen = _in_view(rays, _direction(pose[:3, 2])) & (rays.norm(dim=1) < RADIUS)
        return float(seen.sum()) / len(self.visible)

    def distance(self, views: Tensor, queries: Sequence[int], clip: int) -> float:
        """How little the frames `queries` see of what a clip of four frames starting at `clip` saw, 0..1.

        As in the official code, the clip's frames 0 and 2 stand for all four. views [F, 4, 4].
        """
        total = 0.0
        for query in queries:
            first, third = (1 - self.overlap(views[query], views[clip + offset]) for offset in (0, 2))
            total += (first + third) / 2
        return total / len(queries)


def _direction(rays: Tensor) -> Tensor:
    """Degrees to the side and down of rays [..., 3]. -> [..., 2]"""
    x, y, z = rays.unbind(-1)
    return torch.stack([torch.atan2(x, z), torch.atan2(y, (x * x + z * z).sqrt())], -1) * (180 / math.pi)


def _in_view(rays: Tensor, towards: Tensor) -> Tensor:
    """Which rays [N, 3] lie in the field of view of a camera that looks towards [2], in degrees. -> [N] bool"""
    off = torch.remainder(_direction(rays) - towards + 180, 360) - 180
    return (off[:, 0].abs() < _HALF_WIDTH_DEGREES) & (off[:, 1].abs() < _HALF_HEIGHT_DEGREES)
