"""Attention on transform coefficients in torch: the truth that other backends are tested against."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..coefficients.reference import reconstruct_coefficients
from ..direct.reference import attend_tiles
from ..rows8 import Rows8, synthesis

if TYPE_CHECKING:
    from ..rotary import Angles
    from ..spans import SpanTable
    from ..transform_codes import TransformCodes


def attend_spans(
    q: Tensor, table: SpanTable, run: tuple[int, int], start: int, angles: Angles | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `kernels.direct_coefficients.attend_spans`: a part for every span, [P, B, H, Sq, D] and [P, B, H, Sq], both float32."""
    parts = []
    for number in range(*run):
        keys, values, (first, skip) = table.keys[number], table.values[number], table.places[number]
        some, low, high = slice(skip, keys.num_tokens), first + skip - start, first + keys.num_tokens - start
        rotation = None if angles is None else angles.tokens(low, high).spread()
        k, v = (partial(decoded, side.tokens(some).filled()) for side in (keys, values))
        parts.append(attend_tiles(q, keys.num_tokens - skip, k, v, rotation, None if bias is None else bias[low:high]))
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs), torch.cat(lses)


def decoded(kept: TransformCodes, heads: slice, tokens: slice) -> Tensor:
    """Some heads' tokens in float32: [B, h, T, D]. Every batch row has planes of its own."""
    codes, gains, ids = (part[:, heads, tokens] for part in (kept.codes, kept.gains, kept.ids))
    codewords = Rows8(*(part[:, heads] for part in kept.codewords)).dequantize()
    filled = kept.filled()
    matrix = synthesis(None if filled.directions is None else filled.directions[:, heads], filled.scales[:, heads])
    out = torch.empty((*ids.shape, codewords.shape[-1]), device=codes.device)
    for row, planes in enumerate(kept.planes):
        one = slice(row, row + 1)
        reconstruct_coefficients(codes[one], gains[one], ids[one], codewords[one], matrix[one], planes, out[one], None)
    return out
