"""Into eight bits in torch: the truth that other backends are tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import e4m3
from ..direct.reference import TILE_TOKENS, decoded, rotated

if TYPE_CHECKING:
    from ..direct import CosSin, Stored
    from . import Keys8, Values8

SMALLEST_SCALE = 1e-12


def transcode_keys(keys: Stored, common: Tensor, rotation: CosSin | None, out: Keys8) -> None:
    """See `kernels.transcode.transcode_keys`."""
    for head, part in _tiles(*out.values.shape[1:3]):
        angles = None if rotation is None else (rotation[0][part], rotation[1][part])
        x = rotated(decoded(keys, head, part), angles) - common[:, head, None].float()
        scales = (x.abs().amax(-1) / 127).clamp(min=SMALLEST_SCALE)
        out.scales[:, head, part] = scales
        out.values[:, head, part] = torch.round(x / scales[..., None]).to(torch.int8)


def transcode_values(values: Stored, out: Values8) -> None:
    """See `kernels.transcode.transcode_values`."""
    heads = out.values.shape[1]
    for head, part in _tiles(heads, out.values.shape[2 if out.scales is None else 3]):
        x = decoded(values, head, part)
        if out.scales is None:
            out.values[:, head, part] = x.clamp(-65504, 65504).half()
        else:
            out.values[:, head, :, part] = e4m3.encode((x / out.scales[:, head, None]).transpose(2, 3))


def _tiles(heads: int, tokens: int) -> list[tuple[slice, slice]]:
    starts = range(0, tokens, TILE_TOKENS)
    return [(slice(head, head + 1), slice(at, min(at + TILE_TOKENS, tokens))) for head in range(heads) for at in starts]
