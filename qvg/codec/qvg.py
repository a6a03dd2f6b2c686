"""Quant VideoGen as published: k-means smoothing, progressive residual quantization (arXiv 2602.02958, section 3).

Per batch and head, the tokens of a span are clustered and the nearest centroid is subtracted; the remainder is clustered again,
N times in all; the last remainder is quantized in groups of channels with an E4M3 scale. Bits per value:
b + 8/g (+ 8/g if asymmetric) + N * (8/D + 16 C/S).

Deviations from the official code, all without extra bytes: first centroids are distinct tokens drawn by a private seeded
generator (there: with repetition, from the global one); later codebooks start from the one before (there: described, not wired);
ids are chosen against the final centroids as stored (there: against the last iteration's input); bytes are planar (there:
neighbours share a byte); centroids are float16, not bfloat16 (three more mantissa bits), clamped to its range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import assign_clusters, quantize_groups, reconstruct, subtract_centroids, update_centroids
from ...kernels.kmeans import MAX_CLUSTERS
from ...kernels.packing import packed_width
from ..config import AUTO_CENTROID_BITS, QVGConfig
from ..positions.rope import Rotation
from .base import EncodeHint, refuse_non_finite
from .span import Codebook, KMeansCodebook, QuantizedSpan, Span

_FLOAT16_MAX = 65504.0


class QVGCodec:
    """See the module docstring."""

    name = "qvg"
    rotates = True

    def __init__(self, config: QVGConfig):
        self.config = config
        self.bits = config.whole_bits

    def clusters(self, span_tokens: int) -> int:
        """Centroids per stage for spans of this many tokens. "auto": the largest power of two within 0.15 bit per value."""
        if self.config.clusters != "auto":
            return min(self.config.clusters, span_tokens)  # the last block of a video may be short
        limit = AUTO_CENTROID_BITS * span_tokens * self.config.spans_per_codebook / 16
        return min(MAX_CLUSTERS, span_tokens, 1 << max(0, int(math.log2(max(1.0, limit)))))

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """See `Codec`."""
        refuse_non_finite(x, hint)
        config = self.config
        codebook = _own(hint.reuse) or self._train(x, hint)
        ids = self._assign(x, codebook)
        groups = quantize_groups(x, ids, codebook.centroids, self.bits, config.group_size, config.symmetric, config.backend)
        return QuantizedSpan(*groups, ids, codebook, self.bits, config.group_size)

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor, rotation: Rotation | None = None) -> Tensor:
        """See `Codec`."""
        assert isinstance(span, QuantizedSpan)
        zero_points = None if span.zero_points is None else span.zero_points[:, heads, :, tokens]
        return reconstruct(
            span.codes[:, heads, tokens],
            span.scales[:, heads, :, tokens],
            zero_points,
            span.ids[:, heads, :, tokens],
            span.codebook.centroids[:, heads],
            span.bits,
            span.group_size,
            out,
            self.config.backend,
            rotation,
        )

    def predicted_bytes(self, shape: tuple[int, int, int, int]) -> dict[str, int]:
        """See `Codec`."""
        batch, heads, tokens, channels = shape
        config, rows = self.config, batch * heads * tokens
        scales = rows * (channels // config.group_size)
        sizes = {
            "ids": rows * config.num_stages,
            "codes": rows * packed_width(channels, self.bits),
            "scales": scales,
        }
        if not config.symmetric:
            sizes["zero_points"] = scales
        return sizes

    def predicted_codebook_bytes(self, rows: tuple[int, int, int], tokens: Sequence[int]) -> dict[str, int]:
        """See `Codec`."""
        batch, heads, channels = rows
        return {"centroids": batch * heads * self.config.num_stages * self.clusters(tokens[0]) * channels * 2}

    def _train(self, x: Tensor, hint: EncodeHint) -> KMeansCodebook:
        """k-means, stage after stage, each on what the last one left."""
        residual = x.float()
        warm = _own(hint.warm)
        clusters = self.clusters(x.shape[2])
        stages = []
        for stage in range(self.config.num_stages):
            if warm is not None and warm.clusters == clusters:
                centroids = warm.centroids[:, :, stage].float()
            else:
                centroids = _distinct_tokens(residual, clusters, hint.seed + stage)
            for _ in range(self.config.iterations):
                ids = assign_clusters(residual, centroids, self.config.backend)
                centroids = update_centroids(residual, ids, centroids, self.config.backend)
            stored = centroids.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).half()
            stages.append(stored)
            if stage + 1 < self.config.num_stages:
                residual = self._subtract(residual, assign_clusters(residual, stored, self.config.backend), stored)
        return KMeansCodebook(torch.stack(stages, 2))

    def _assign(self, x: Tensor, codebook: KMeansCodebook) -> Tensor:
        """Ids of every stage against the centroids as stored. -> [B, H, N, S] uint8."""
        residual = x
        ids = []
        for stage in range(codebook.num_stages):
            centroids = codebook.centroids[:, :, stage]
            ids.append(assign_clusters(residual, centroids, self.config.backend))
            if stage + 1 < codebook.num_stages:
                residual = self._subtract(residual, ids[-1], centroids)
        return torch.stack(ids, 2)

    def _subtract(self, x: Tensor, ids: Tensor, centroids: Tensor) -> Tensor:
        return subtract_centroids(x, ids, centroids, self.config.backend)


def _own(codebook: Codebook | None) -> KMeansCodebook | None:
    """A codebook of this codec, or nothing."""
    return codebook if isinstance(codebook, KMeansCodebook) else None


def _distinct_tokens(x: Tensor, count: int, seed: int) -> Tensor:
    """`count` different tokens of every head, the same ones on every device and, so that a video does not depend on which others
    are made beside it, in every batch row."""
    batch, heads, tokens, channels = x.shape
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(tokens, generator=generator)[:count] for _ in range(heads)])
    rows = rows.view(1, heads, count, 1).to(x.device).expand(batch, -1, -1, channels)
    return torch.gather(x, 2, rows)
