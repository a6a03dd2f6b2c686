"""k-means in torch: the truth that other backends are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

# Distances held at once; keeps a clustering of a whole video from taking more memory than the video.
_MAX_DISTANCES = 1 << 24


def assign_clusters(x: Tensor, centroids: Tensor) -> Tensor:
    """See `kernels.assign_clusters`. |x|^2 is the same for all centroids of a token and is left out."""
    batch, heads, tokens, channels = x.shape
    flat = centroids.float().flatten(0, 1)
    half_norms = flat.square().sum(-1)[:, None] / 2
    ids = torch.empty(batch * heads, tokens, dtype=torch.uint8, device=x.device)
    step = max(1, _MAX_DISTANCES // max(1, batch * heads * flat.shape[1]))
    for start in range(0, tokens, step):
        part = x[:, :, start : start + step].reshape(batch * heads, -1, channels).float()
        distances = torch.baddbmm(half_norms, part, flat.transpose(1, 2), alpha=-1)
        ids[:, start : start + step] = distances.argmin(-1)
    return ids.view(batch, heads, tokens)


def update_centroids(x: Tensor, ids: Tensor, centroids: Tensor, kept: int = 0) -> Tensor:
    """See `kernels.update_centroids`."""
    batch, heads, clusters, channels = centroids.shape
    flat = x.float().reshape(batch * heads, -1, channels)
    rows = ids.reshape(batch * heads, -1).long()
    counts = torch.zeros(batch * heads, clusters, device=x.device)
    counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float32))
    sums = _cluster_sums(flat, rows, clusters).view(batch, heads, clusters, channels)
    counts = counts.view(batch, heads, clusters, 1)
    means = torch.where(counts > 0, sums / counts.clamp(min=1), centroids.float())
    if kept:
        means[:, :, :kept] = centroids[:, :, :kept]
    return means


def subtract_centroids(x: Tensor, ids: Tensor, centroids: Tensor) -> Tensor:
    """See `kernels.subtract_centroids`."""
    rows = ids.long()[..., None].expand(-1, -1, -1, x.shape[-1])
    return x.float() - torch.gather(centroids.float(), 2, rows)


def _cluster_sums(x: Tensor, ids: Tensor, clusters: int) -> Tensor:
    """x [BH, S, D], ids [BH, S] -> sums [BH, C, D]."""
    heads, tokens, channels = x.shape
    if x.device.type == "cpu":
        rows = (ids + torch.arange(heads)[:, None] * clusters).flatten()
        return torch.zeros(heads * clusters, channels).index_add_(0, rows, x.flatten(0, 1)).view(heads, clusters, channels)
    # Elsewhere index_add_ uses atomics, whose order changes from run to run; a product with one-hot rows does not.
    sums = torch.zeros(heads, clusters, channels, device=x.device)
    step = max(1, _MAX_DISTANCES // max(1, heads * clusters))
    names = torch.arange(clusters, device=x.device)
    for start in range(0, tokens, step):
        one_hot = (ids[:, start : start + step, None] == names).to(x.dtype)
        sums.baddbmm_(one_hot.transpose(1, 2), x[:, start : start + step])
    return sums
