"""Our own codec: growing dictionary, Karhunen-Loeve transform, Lloyd-Max levels, unbiased gains.

What k-means leaves over is far from white: most of its energy lies in a few directions. So the residual is turned into the basis
of its own covariance (Karhunen-Loeve transform), bits go where the energy is (reverse water-filling, Cover and Thomas, 10.3.3, in
whole bits), and every coefficient becomes a level of a normal variable (Lloyd-Max) times one gain per token, chosen so that inner
products shrink as little as noise inflates softmax (`kernels.quantize_coefficients`). Bits per value:

    b + 8/D (gains) + 8/D (ids) + per codebook of S tokens: (8 + 16/D) C/S (words) + 8 (D + 2)/S (basis)

Basis and words are eight-bit rows (`kernels/rows8.py`), made by a codebook's first span. Each later span adds words where the
codebook fits it worst; words that are there stay, so the earlier spans' ids keep their meaning. With `transform="hadamard"` the
basis is the Hadamard matrix over channels scaled by powers of two, which costs next to nothing and gives all channels one width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import (
    assign_clusters,
    quantize_coefficients,
    reconstruct_coefficients,
    subtract_centroids,
    update_centroids,
)
from ...kernels.kmeans import MAX_CLUSTERS
from ...kernels.lloyd_max import DISTORTION, MAX_BITS
from ...kernels.rows8 import Rows8, quantize_rows
from ..config import QVGConfig
from ..errors import ConfigError
from ..positions.rope import Rotation
from .base import EncodeHint, refuse_non_finite
from .span import Basis, Dictionary, Span, TransformSpan

# Planes grow and shrink by so many channels: one byte of a token's codes.
_STEP_CHANNELS = 8
# A direction without energy still needs a scale to divide by: the share of the mean variance that all get.
_VARIANCE_FLOOR = 1e-6
_SMALLEST_VARIANCE = 1e-9
# What the basis of a span that repeats itself expects of later ones: a share of its variance; where all tokens are equal,
# the variance is taken for a share of their squares.
_LEAST_SHARE = 0.05
_LEAST_MOMENT = 0.02
# No channel gets more bits than the average and this many.
_EXTRA_PLANES = 2


class KLTCodec:
    """See the module docstring."""

    name = "klt"
    turns = True

    def __init__(self, config: QVGConfig):
        self.config = config

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """See `Codec`. With `hint.reuse` the span's codebook is that one, grown."""
        refuse_non_finite(x, hint)
        known = hint.reuse
        if known is not None and not isinstance(known, Dictionary):
            raise ConfigError(f"codec 'klt' cannot extend a {type(known).__name__} of another codec; start a new cache")
        words = self._words(x, known, hint.seed)
        centers = words.dequantize()
        ids = assign_clusters(x, centers, self.config.backend)
        residual = subtract_centroids(x, ids, centers, self.config.backend)
        basis = self._basis(residual, x) if known is None else known.basis
        y, weights = torch.matmul(residual, basis.analysis()), basis.weights()
        parts = [
            quantize_coefficients(y[row : row + 1], weights[row : row + 1], planes, self.config.backend)
            for row, planes in enumerate(basis.planes)
        ]
        codes, gains = (part[0] if len(part) == 1 else torch.cat(part) for part in zip(*parts, strict=True))
        return TransformSpan(codes, gains, ids, Dictionary(words, basis))

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor, rotation: Rotation | None = None) -> Tensor:
        """See `Codec`."""
        assert isinstance(span, TransformSpan)
        book = span.codebook
        codes, gains, ids = (part[:, heads, tokens] for part in (span.codes, span.gains, span.ids))
        words = Rows8(*(part[:, heads] for part in book.words)).dequantize()
        matrix = book.basis.heads(heads).synthesis()
        for row, planes in enumerate(book.basis.planes):
            one = slice(row, row + 1)
            reconstruct_coefficients(
                codes[one], gains[one], ids[one], words[one], matrix[one], planes, out[one], self.config.backend, rotation
            )
        return out

    def predicted_bytes(self, shape: tuple[int, int, int, int]) -> dict[str, int]:
        """See `Codec`."""
        batch, heads, tokens, channels = shape
        rows = batch * heads * tokens
        return {"codes": rows * (round(self.config.bits * channels) // 8), "scales": rows, "ids": rows}

    def predicted_codebook_bytes(self, rows: tuple[int, int, int], tokens: Sequence[int]) -> dict[str, int]:
        """See `Codec`."""
        batch, heads, channels = rows
        words = min(self._first_words(tokens[0]), tokens[0])
        for count in tokens[1:]:
            words += self._added(words, count)
        basis = (channels + 2) * channels if self.config.transform == "klt" else 2 * channels
        return {"centroids": batch * heads * words * (channels + 2), "basis": batch * heads * basis}

    def _first_words(self, tokens: int) -> int:
        """Words that a codebook's first span trains. "auto": one for 16 tokens, at most half of all if others follow."""
        config = self.config
        if config.clusters != "auto":
            return config.clusters
        return max(1, min(MAX_CLUSTERS if config.spans_per_codebook == 1 else MAX_CLUSTERS // 2, tokens // 16))

    def _added(self, words: int, tokens: int) -> int:
        """Words that a later span adds. "auto": at most one for 32 tokens, and such that they last for all spans to come."""
        config = self.config
        share = MAX_CLUSTERS // 2 // max(1, config.spans_per_codebook - 1)
        wanted = min(tokens // 32, max(1, share)) if config.clusters_added == "auto" else config.clusters_added
        return min(wanted, MAX_CLUSTERS - words, tokens)

    def _even_planes(self, channels: int) -> tuple[int, ...]:
        """The same width for all channels, or as nearly as whole bits allow."""
        whole, part = divmod(round(self.config.bits * channels), channels)
        return (*[channels] * whole, *([part] if part else []))

    def _words(self, x: Tensor, known: Dictionary | None, seed: int) -> Rows8:
        """Words of a new codebook, or those of a known one and more where it fits x worst."""
        tokens = x.shape[2]
        if known is None:
            count = min(self._first_words(tokens), tokens)
            old, rounds = x[:, :, :0].float(), [part for part in (-(-count // 4), count // 4, count // 2 - count // 4) if part]
            rounds[-1] += count - sum(rounds)
        else:
            old = known.words.dequantize()
            rounds = [self._added(old.shape[2], tokens)]
            if not rounds[0]:
                return known.words
        generator = torch.Generator().manual_seed(seed)
        words = old
        for count in rounds:
            words = torch.cat([words, _worst_fitted(x, words, count, generator, self.config.backend)], 2)
        for _ in range(self.config.iterations):
            ids = assign_clusters(x, words, self.config.backend)
            words = torch.cat([old, update_centroids(x, ids, words, self.config.backend)[:, :, old.shape[2] :]], 2)
        added = quantize_rows(words[:, :, old.shape[2] :])
        if known is None:
            return added
        return Rows8(*(torch.cat(pair, 2) for pair in zip(known.words, added, strict=True)))

    def _basis(self, residual: Tensor, x: Tensor) -> Basis:
        if self.config.transform == "hadamard":
            return _hadamard_basis(residual, self._even_planes(residual.shape[-1]))
        covariance = _covariance(residual) + _missing_energy(residual, x)
        variances, directions = torch.linalg.eigh(covariance)  # ascending
        variances, directions = variances.flip(-1), directions.flip(-1)
        variances = torch.maximum(variances, _VARIANCE_FLOOR * variances.mean(-1, keepdim=True)).clamp(min=_SMALLEST_VARIANCE)
        rows = _unit_variance(quantize_rows(directions.transpose(2, 3) * variances.sqrt()[..., None]), covariance)
        variances = rows.dequantize().square().sum(-1)
        # Heads of a layer share their planes; videos of a batch do not, so that none depends on what is made beside it.
        shares = (variances / variances.sum(-1, keepdim=True)).mean(1).tolist()
        return Basis(*rows, tuple(allocate_planes(row, round(self.config.bits * len(row))) for row in shares))


def allocate_planes(variances: Sequence[float], total_bits: int) -> tuple[int, ...]:
    """Bit planes (see `kernels/bitplanes.py`) for coefficients of these falling variances, `total_bits` bits per token in all.

    Reverse water-filling in whole bits: one more bit goes to the eight channels whose error it lowers most, until none is left.
    """
    energy = [sum(variances[start : start + _STEP_CHANNELS]) for start in range(0, len(variances), _STEP_CHANNELS)]
    most = min(MAX_BITS, -(-total_bits // len(variances)) + _EXTRA_PLANES)
    bits = [0] * len(energy)
    for _ in range(total_bits // _STEP_CHANNELS):
        gains = [
            share * (DISTORTION[width] - DISTORTION[width + 1]) if width < most else -1.0
            for share, width in zip(energy, bits, strict=True)
        ]
        bits[gains.index(max(gains))] += 1
    # Planes must nest; equal variances may have left a later channel with more bits than an earlier one.
    bits.sort(reverse=True)
    return tuple(_STEP_CHANNELS * sum(width > plane for width in bits) for plane in range(bits[0]))


def _covariance(x: Tensor) -> Tensor:
    """Second moments of tokens [B, H, S, D] -> [B, H, D, D]."""
    return torch.matmul(x.transpose(2, 3), x) / x.shape[2]


def _missing_energy(residual: Tensor, x: Tensor) -> Tensor:
    """What to add to the covariance where a span repeats itself so much that its centroids leave nothing over of most tokens: the
    spans that come after share the basis, will be news to it, and must fit. Zero for spans as videos have them."""
    x = x.float()
    centred = _covariance(x - x.mean(2, keepdim=True))
    energy = centred.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    moment = x.square().mean((2, 3))[..., None, None]
    scale = torch.where(energy > 1e-4 * moment, energy, torch.where(moment > 0, _LEAST_MOMENT * moment, 1.0))
    known = residual.square().mean(-1, keepdim=True) < 4e-3 * scale
    dull = known.float().mean(2, keepdim=True) > 0.5
    even = torch.eye(x.shape[-1], device=x.device)
    return torch.where(dull, _LEAST_SHARE * (centred + scale * even) / 2, 0.0)


def _unit_variance(rows: Rows8, covariance: Tensor) -> Rows8:
    """Rows scaled up where their coefficients vary by more than 1. Rounded to eight bits, a faint direction catches a little of
    the loud ones; measured by its own deviation alone, that little would be the largest coefficient of all and set the token's
    spread (up to 40 times the error on tensors of low rank)."""
    directions = rows.dequantize()
    analysis = directions / directions.square().sum(-1, keepdim=True)
    variances = (torch.matmul(analysis, covariance) * analysis).sum(-1)
    return Rows8(rows.values, (rows.scales.float() * variances.clamp(min=1).sqrt()).clamp(max=65504).half())


def _hadamard_basis(residual: Tensor, planes: tuple[int, ...]) -> Basis:
    """Powers of two bring channels to about the same spread first, so that one loud channel does not fill all the others."""
    spread = residual.square().mean(2).sqrt().clamp(min=_SMALLEST_VARIANCE**0.5)
    scales = torch.exp2(torch.round(torch.log2(spread))).clamp(max=32768.0).half()
    return Basis(None, scales, (planes,) * len(scales))


def _worst_fitted(x: Tensor, words: Tensor, count: int, generator: torch.Generator, backend: str) -> Tensor:
    """`count` different tokens of every head, drawn in proportion to their squared distance from their word (k-means||, arXiv
    1203.6402), by the Gumbel trick: no loop over draws."""
    tokens, channels = x.shape[2], x.shape[3]
    if words.shape[2]:
        ids = assign_clusters(x, words, backend)
        chances = subtract_centroids(x, ids, words, backend).square().sum(-1).clamp(min=1e-30).log()
    else:
        chances = torch.zeros(x.shape[:3], device=x.device)
    uniform = torch.rand(1, *x.shape[1:3], generator=generator).clamp(1e-7, 1 - 1e-7).to(x.device)  # the same in every batch row
    chosen = (chances - torch.log(-torch.log(uniform))).topk(min(count, tokens), -1).indices
    return torch.gather(x.float(), 2, chosen[..., None].expand(-1, -1, -1, channels))
