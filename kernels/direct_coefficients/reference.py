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
    from ..direct import CosSin
    from . import TransformCodes


def attend_coefficients(
    q: Tensor, keys: TransformCodes, values: TransformCodes, rotation: CosSin | None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `kernels.direct_coefficients.attend_coefficients`: one part, [1, B, H, Sq, D] and [1, B, H, Sq], both float32."""
    return attend_tiles(q, keys.num_tokens, partial(decoded, keys), partial(decoded, values), rotation, bias)


def decoded(kept: TransformCodes, heads: slice, tokens: slice) -> Tensor:
    """Some heads' tokens in float32: [B, h, T, D]. Every batch row has planes of its own."""
    codes, gains, ids = (part[:, heads, tokens] for part in (kept.codes, kept.gains, kept.ids))
    codewords = Rows8(*(part[:, heads] for part in kept.codewords)).dequantize()
    matrix = synthesis(None if kept.directions is None else kept.directions[:, heads], kept.scales[:, heads])
    out = torch.empty((*ids.shape, codewords.shape[-1]), device=codes.device)
    for row, planes in enumerate(kept.planes):
        one = slice(row, row + 1)
        reconstruct_coefficients(codes[one], gains[one], ids[one], codewords[one], matrix[one], planes, out[one], None)
    return out
