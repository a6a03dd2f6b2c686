"""Attention on codes in torch: the truth that other backends are tested against. Decodes a small tile at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..attention.reference import attention, merge_attention
from ..reconstruct.reference import reconstruct

if TYPE_CHECKING:
    from . import CosSin, Stored

# Decoded at once for one head: a tile that stays in a processor's cache.
TILE_TOKENS = 1024


# decode(heads, tokens) -> float32 [B, h, T, D]
Decoding = Callable[[slice, slice], Tensor]


def attend_codes(
    q: Tensor, keys: Stored, values: Stored, rotation: CosSin | None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `kernels.direct.attend_codes`: one part, [1, B, H, Sq, D] and [1, B, H, Sq], both float32."""
    tokens = keys.shape[2] if isinstance(keys, Tensor) else keys.num_tokens
    return attend_tiles(q, tokens, partial(decoded, keys), partial(decoded, values), rotation, bias)


def attend_tiles(
    q: Tensor, tokens: int, keys: Decoding, values: Decoding, rotation: CosSin | None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`attend_codes` for anything that can be decoded a tile of one head at a time."""
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    lse = torch.full(q.shape[:-1], -torch.inf, device=q.device)
    for head in range(q.shape[1]):
        one = slice(head, head + 1)
        for start in range(0, tokens, TILE_TOKENS):
            part = slice(start, min(start + TILE_TOKENS, tokens))
            angles = None if rotation is None else (rotation[0][part], rotation[1][part])
            k, v = rotated(keys(one, part), angles), values(one, part)
            result, mass = attention(q[:, one].float(), k, v, None if bias is None else bias[part])
            merge_attention(result[None], mass[None], out[:, one], lse[:, one])
    return out[None], lse[None]


def decoded(stored: Stored, heads: slice, tokens: slice) -> Tensor:
    """Some heads' tokens in float32: [B, h, T, D]."""
    if isinstance(stored, Tensor):
        return stored[:, heads, tokens].float()
    codes, centroids = stored.codes[:, heads, tokens], stored.centroids[:, heads]
    zero_points = None if stored.zero_points is None else stored.zero_points[:, heads, :, tokens]
    out = torch.empty((*codes.shape[:3], centroids.shape[-1]), device=codes.device)
    scales, ids = stored.scales[:, heads, :, tokens], stored.ids[:, heads, :, tokens]
    return reconstruct(codes, scales, zero_points, ids, centroids, stored.bits, stored.group_size, out, None)


def rotated(keys: Tensor, rotation: CosSin | None) -> Tensor:
    """Keys with every channel pair rotated by its token's angle (arXiv 2104.09864)."""
    if rotation is None:
        return keys
    cos, sin = rotation
    first, second = keys.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
