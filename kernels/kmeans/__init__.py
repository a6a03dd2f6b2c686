"""k-means over tokens, one clustering per (batch, head)."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from ..dispatch import implementation, shape_refusal

MAX_CLUSTERS = 256  # ids are uint8


def assign_clusters(x: Tensor, centroids: Tensor, backend: str = "auto") -> Tensor:
    """Nearest centroid of every token, the lower id on a tie. x [B, H, S, D], centroids [B, H, C, D] -> ids [B, H, S] uint8."""
    _check(x, centroids)
    return _module(x, backend).assign_clusters(x, centroids)  # type: ignore[no-any-return]


def update_centroids(x: Tensor, ids: Tensor, centroids: Tensor, backend: str = "auto", kept: int = 0) -> Tensor:
    """Mean of every cluster; an empty one keeps its centroid, and so do the first `kept`. x, ids, centroids as above -> centroids
    [B, H, C, D] float32.

    Deterministic on every device: two runs give the same bits.
    """
    _check(x, centroids)
    if ids.shape != x.shape[:-1]:
        raise ValueError(f"ids {tuple(ids.shape)} must be one per token of x {tuple(x.shape)}")
    return _module(x, backend).update_centroids(x, ids, centroids, kept)  # type: ignore[no-any-return]


def subtract_centroids(x: Tensor, ids: Tensor, centroids: Tensor, backend: str = "auto") -> Tensor:
    """x minus each token's centroid. x, ids, centroids as above -> [B, H, S, D] float32."""
    _check(x, centroids)
    return _module(x, backend).subtract_centroids(x, ids, centroids)  # type: ignore[no-any-return]


def _module(x: Tensor, backend: str) -> ModuleType:
    return implementation("kmeans", x, backend, shape_refusal(x.shape[3]))


def _check(x: Tensor, centroids: Tensor) -> None:
    if x.ndim != 4 or centroids.ndim != 4 or x.shape[:2] != centroids.shape[:2] or x.shape[3] != centroids.shape[3]:
        raise ValueError(f"x {tuple(x.shape)} and centroids {tuple(centroids.shape)} must be [B, H, S, D] and [B, H, C, D]")
    if not 1 <= centroids.shape[2] <= MAX_CLUSTERS:
        raise ValueError(f"{centroids.shape[2]} centroids do not fit uint8 ids; use 1 to {MAX_CLUSTERS}")
