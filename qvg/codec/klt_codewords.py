"""Codewords of the `klt` codec: k-means centroids in eight bits, which a codebook adds to and never changes."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import assign_clusters, subtract_centroids, update_centroids
from ...kernels.rows8 import Rows8, quantize_rows
from ..config import QVGConfig


def learn_codewords(x: Tensor, count: int, seed: int, config: QVGConfig) -> Rows8:
    """`count` codewords for tokens x [B, H, S, D], drawn in three rounds: a quarter, another, and the half that is left."""
    rounds = [part for part in (-(-count // 4), count // 4, count // 2 - count // 4) if part]
    rounds[-1] += count - sum(rounds)
    return quantize_rows(_train(x, x[:, :, :0].float(), rounds, seed, config))


def add_codewords(x: Tensor, known: Rows8, count: int, seed: int, config: QVGConfig) -> Rows8:
    """The known codewords, byte for byte, and `count` more where they fit x worst."""
    if not count:
        return known
    old = known.dequantize()
    added = quantize_rows(_train(x, old, [count], seed, config)[:, :, old.shape[2] :])
    return Rows8(*(torch.cat(pair, 2) for pair in zip(known, added, strict=True)))


def _train(x: Tensor, old: Tensor, rounds: list[int], seed: int, config: QVGConfig) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    codewords = old
    for count in rounds:
        codewords = torch.cat([codewords, _worst_fitted(x, codewords, count, generator, config.backend)], 2)
    for _ in range(config.iterations):
        ids = assign_clusters(x, codewords, config.backend)
        codewords = torch.cat([old, update_centroids(x, ids, codewords, config.backend)[:, :, old.shape[2] :]], 2)
    return codewords


def _worst_fitted(x: Tensor, codewords: Tensor, count: int, generator: torch.Generator, backend: str) -> Tensor:
    """`count` different tokens of every head, drawn in proportion to their squared distance from their codeword (k-means||, arXiv
    1203.6402), by the Gumbel trick: no loop over draws."""
    tokens, channels = x.shape[2], x.shape[3]
    if codewords.shape[2]:
        ids = assign_clusters(x, codewords, backend)
        chances = subtract_centroids(x, ids, codewords, backend).square().sum(-1).clamp(min=1e-30).log()
    else:
        chances = torch.zeros(x.shape[:3], device=x.device)
    uniform = torch.rand(1, *x.shape[1:3], generator=generator).clamp(1e-7, 1 - 1e-7).to(x.device)  # the same in every batch row
    chosen = (chances - torch.log(-torch.log(uniform))).topk(min(count, tokens), -1).indices
    return torch.gather(x.float(), 2, chosen[..., None].expand(-1, -1, -1, channels))
