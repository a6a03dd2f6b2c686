"""Codewords of the `klt` codec: k-means centroids in eight bits, which a codebook adds to and never changes."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import assign_clusters, subtract_centroids, update_centroids
from ...kernels.rows8 import Rows8, quantize_rows
from ..config import QVGConfig
from .klt_tables import Tables


def learn_codewords(x: Tensor, count: int, seed: int, config: QVGConfig) -> Rows8:
    """`count` codewords for tokens x [B, H, S, D], drawn in three rounds: a quarter, another, and the half that is left."""
    rounds = [part for part in (-(-count // 4), count // 4, count // 2 - count // 4) if part]
    rounds[-1] += count - sum(rounds)
    return quantize_rows(_train(x, None, rounds, seed, config))


def add_codewords(x: Tensor, known: Rows8, count: int, seed: int, config: QVGConfig, tables: Tables) -> Rows8:
    """The known codewords, byte for byte, and `count` more where they fit x worst."""
    if not count:
        return known
    old = tables.centers(known)
    added = quantize_rows(_train(x, old, [count], seed, config)[:, :, old.shape[2] :])
    return Rows8(*(torch.cat(pair, 2) for pair in zip(known, added, strict=True)))


def _train(x: Tensor, old: Tensor | None, rounds: list[int], seed: int, config: QVGConfig) -> Tensor:
    generator, kept = torch.Generator().manual_seed(seed), 0 if old is None else old.shape[2]
    codewords = old
    for count in rounds:
        added = _worst_fitted(x, codewords, count, generator, config.backend)
        codewords = added if codewords is None else torch.cat([codewords, added], 2)
    assert codewords is not None
    for _ in range(config.iterations):
        ids = assign_clusters(x, codewords, config.backend)
        codewords = update_centroids(x, ids, codewords, config.backend, kept)
    return codewords


def _worst_fitted(x: Tensor, codewords: Tensor | None, count: int, generator: torch.Generator, backend: str) -> Tensor:
    """`count` different tokens of every head, drawn in proportion to their squared distance from their codeword (k-means||, arXiv
    1203.6402), by the Gumbel trick: no loop over draws."""
    batch, heads, tokens, channels = x.shape
    uniform = torch.rand(1, heads, tokens, generator=generator).clamp(1e-7, 1 - 1e-7)
    noise = -torch.log(-torch.log(uniform)).expand(batch, -1, -1)  # the same in every batch row
    if codewords is None:
        chances = noise.to(x.device)
    else:
        ids = assign_clusters(x, codewords, backend)
        chances = subtract_centroids(x, ids, codewords, backend).square().sum(-1).clamp(min=1e-30).log() + noise.to(x.device)
    chosen = chances.topk(min(count, tokens), -1).indices
    return torch.gather(x, 2, chosen[..., None].expand(-1, -1, -1, channels)).float()
