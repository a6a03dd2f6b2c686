"""Attention that reads the codes themselves: nothing is decoded into memory."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..attention import Attended, check_bias, merge_attention
from ..dispatch import implementation, shape_refusal


class Codes(NamedTuple):
    """One span's keys or values as `quantize_groups` made them: codes [B, H, S, D * bits / 8], scales and zero_points
    [B, H, G, S], ids [B, H, N, S], all uint8; centroids [B, H, N, C, D]. Views that cut tokens out are fine."""

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None
    ids: Tensor
    centroids: Tensor
    bits: int
    group_size: int

    @property
    def num_tokens(self) -> int:
        """Tokens held."""
        return self.codes.shape[2]


# Tokens kept as they are, [B, H, S, D], may stand in for codes.
Stored = Codes | Tensor
# Cosines and sines of every token, each [S, D / 2] (`qvg/positions/rope.py` makes them); channel p rotates with p + D / 2.
CosSin = tuple[Tensor, Tensor]


def stored_tokens(stored: Stored) -> int:
    """Tokens of either kind."""
    return stored.shape[2] if isinstance(stored, Tensor) else stored.num_tokens


def stored_refusal(channels: int, *kinds: Stored) -> str | None:
    """Why there is no kernel for these, or None."""
    groups = [kind.group_size for kind in kinds if isinstance(kind, Codes)]
    return next((reason for group in groups or [64] if (reason := shape_refusal(channels, group))), None)


def attend_codes(
    q: Tensor,
    keys: Stored,
    values: Stored,
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
    tokens = stored_tokens(keys)
    if stored_tokens(values) != tokens or (rotation is not None and rotation[0].shape != (tokens, q.shape[-1] // 2)):
        raise ValueError(
            f"{tokens} keys, {stored_tokens(values)} values and a rotation of "
            f"{None if rotation is None else tuple(rotation[0].shape)} do not belong together"
        )
    check_bias(tokens, bias)
    module = implementation("direct", q, backend, stored_refusal(q.shape[-1], keys, values))
    outs, lses = module.attend_codes(q, keys, values, rotation, bias)
    return merge_attention(outs, lses, into, backend)
