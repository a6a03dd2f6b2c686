"""Tokens of the `klt` codec: into codes, gains and ids of a codebook, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import assign_clusters, quantize_coefficients, subtract_centroids
from ...kernels.rows8 import Rows8
from ...kernels.spans import Place, SpanTable, Tiles, decode_spans
from .klt_tables import Tables, in_float64
from .span import TransformCodebook, TransformSpan

# A channel is loud with more than so many times the energy that half of them have.
_LOUD = 256


class Coded(NamedTuple):
    """Tokens in a codebook: codes [B, H, S, P], gains and ids [B, H, S], all uint8."""

    codes: Tensor
    gains: Tensor
    ids: Tensor


def quantized(x: Tensor, codebook: TransformCodebook, tables: Tables, backend: str, sorted_: Sorted | None = None) -> Coded:
    """Tokens in a codebook. `sorted_`: what is known of x and its codewords."""
    ids, left = sorted_ or sort(x, codebook.codewords, tables, backend)
    return in_codes(ids, torch.matmul(left, tables.analysis(codebook.basis)), codebook, tables, backend)


def in_codes(ids: Tensor, y: Tensor, codebook: TransformCodebook, tables: Tables, backend: str) -> Coded:
    """Tokens of which ids and coefficients [B, H, S, D] are known."""
    weights = tables.weights(codebook.basis)
    parts = [
        quantize_coefficients(y[row : row + 1], weights[row : row + 1], planes, backend)
        for row, planes in enumerate(codebook.basis.planes)
    ]
    codes, gains = (part[0] if len(part) == 1 else torch.cat(part) for part in zip(*parts, strict=True))
    return Coded(codes, gains, ids)


class Sorted(NamedTuple):
    """Ids [B, H, S] of tokens and what their codewords leave of them, float32."""

    ids: Tensor
    residual: Tensor


def sort(x: Tensor, codewords: Rows8, tables: Tables, backend: str) -> Sorted:
    """Tokens by their nearest codewords."""
    centers = tables.centers(codewords)
    ids = assign_clusters(x, centers, backend)
    return Sorted(ids, subtract_centroids(x, ids, centers, backend))


def reconstructed(coded: Coded, codebook: TransformCodebook, backend: str, out: Tensor) -> Tensor:
    """The tokens of all heads, into `out`."""
    kept = TransformSpan(*coded, codebook).kept()
    decode_spans(SpanTable((kept,), (kept,), (Place(0),)), (0, 1), Tiles(out, None, 0), None, backend)
    return out


def without_harm(x: Tensor, coded: Coded, codebook: TransformCodebook, backend: str) -> Coded:
    """The same with gains of 0 for tokens to which their codeword alone is nearer; for all of a head where what codewords leave
    over is less than the error of that."""
    wanted, silenced = in_float64(x), coded._replace(gains=torch.zeros_like(coded.gains))
    alone, decoded = (
        in_float64(reconstructed(some, codebook, backend, torch.empty_like(x, dtype=torch.float32))) for some in (silenced, coded)
    )
    without, errors = (alone - wanted).square(), (decoded - wanted).square()
    nearer = without.sum(-1) < errors.sum(-1)
    errors = torch.where(nearer[..., None], without, errors)
    signal = Signal(wanted.square().mean(2))
    before, after = (signal.shares(part.mean(2)).amax(0) for part in (errors, without))
    silent = (before > 1) & (after < before)
    gains = torch.where((nearer | silent[..., None]).to(coded.gains.device), silenced.gains, coded.gains)
    return coded._replace(gains=gains)


class Signal:
    """Mean squares of tokens by channel [B, H, D], float64."""

    def __init__(self, squares: Tensor):
        usual = torch.where(squares > 0, squares, torch.nan).nanmedian(-1, keepdim=True).values  # of the channels that are in use
        faint = squares <= _LOUD * usual.nan_to_num(0.0)
        self._channels = torch.stack([torch.ones_like(faint), faint])
        self._sums = (squares * self._channels).sum(-1).clamp(min=1e-300)

    def shares(self, errors: Tensor) -> Tensor:
        """Errors [B, H, D] as a share of the signal: over all channels, and beside loud ones. -> [2, B, H]"""
        sums = (errors * self._channels).sum(-1)
        return torch.where(sums > 0, sums / self._sums, 0.0)
