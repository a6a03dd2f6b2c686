"""Attention that reads transform coefficients themselves: nothing is decoded into memory."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..attention import Attended, check_bias, merge_attention, nothing_seen
from ..bitplanes import check_planes, packed_width
from ..direct import CosSin
from ..dispatch import implementation, shape_refusal
from ..lloyd_max import MAX_BITS
from ..rows8 import Rows8


class TransformCodes(NamedTuple):
    """One span's keys or values as `quantize_coefficients` made them, and the codebook that they share with other spans.

    codes       uint8 [B, H, S, P], gains and ids uint8 [B, H, S]; views that cut tokens out are fine
    codewords       int8 [B, H, C, D] with float16 scales [B, H, C]
    directions  int8 [B, H, D, D], one per row; None: the Hadamard matrix
    scales      float16 [B, H, D]: of each direction; without directions, of each channel (`rows8.synthesis`)
    planes      of every batch row (`bitplanes.py`)
    """

    codes: Tensor
    gains: Tensor
    ids: Tensor
    codewords: Rows8
    directions: Tensor | None
    scales: Tensor
    planes: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens held."""
        return self.codes.shape[2]


def attend_coefficients(
    q: Tensor,
    keys: TransformCodes,
    values: TransformCodes,
    rotation: CosSin | None = None,
    backend: str = "auto",
    into: Attended | None = None,
    bias: Tensor | None = None,
) -> Attended:
    """softmax(q k^T / sqrt(D) + bias) v with k and v decoded on the way. q [B, H, Sq, D] already rotated. -> float32 out and lse.

    `rotation` rotates the keys, `bias` as in `attention`. `into` (float32) is folded into, in place. Triton multiplies in float16
    (keys beyond 65504 saturate) and sums in float32: 1e-3 of torch's result, relative, which decodes a tile of one head at a time
    in float32.
    """
    tokens, channels = keys.num_tokens, q.shape[-1]
    for kept in (keys, values):
        _check(kept, tokens, q)
    if rotation is not None and any(tuple(part.shape) != (tokens, channels // 2) for part in rotation):
        raise ValueError(
            f"a rotation of {[tuple(part.shape) for part in rotation]} does not belong to {tokens} keys of {channels}"
        )
    check_bias(tokens, bias)
    module = implementation("direct_coefficients", q, backend, shape_refusal(channels))
    outs, lses = module.attend_coefficients(q, keys, values, rotation, bias)
    return merge_attention(outs, lses, into or nothing_seen(q), backend)


def _check(kept: TransformCodes, tokens: int, q: Tensor) -> None:
    """Raise ValueError unless these are `tokens` tokens of q's heads."""
    batch, heads, _, channels = q.shape
    rows = (batch, heads, tokens)
    if kept.gains.shape != rows or kept.ids.shape != rows or kept.scales.shape != (batch, heads, channels):
        raise ValueError(
            f"gains {tuple(kept.gains.shape)}, ids {tuple(kept.ids.shape)} and scales {tuple(kept.scales.shape)} do not "
            f"belong to {tokens} keys and queries {tuple(q.shape)}"
        )
    for planes in kept.planes:
        check_planes(planes, channels, MAX_BITS)
        if kept.codes.shape != (*rows, packed_width(planes)) or len(kept.planes) != batch:
            raise ValueError(f"codes {tuple(kept.codes.shape)} are not {rows} in planes {kept.planes}")
