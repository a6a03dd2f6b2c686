"""Rotary embedding of the order [first halves | second halves]: channel p rotates with channel p + D/2."""

from __future__ import annotations

from torch import Tensor


def check_rotation(rotation: tuple[Tensor, Tensor] | None, out: Tensor) -> None:
    """Raise ValueError unless cos and sin are float32 [S, D/2] for the tokens and channels of out [B, H, S, D]."""
    shape = (out.shape[2], out.shape[3] // 2)
    if rotation is not None and any(tuple(part.shape) != shape for part in rotation):
        raise ValueError(f"cos and sin {[tuple(part.shape) for part in rotation]} must each be {shape}: tokens, head_dim / 2")


def rotate_in_place(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """CosSin every channel pair of float32 x [B, H, S, D] by its token's angle; cos and sin [S, D/2]. Returns x."""
    cos, sin = rotation
    low, high = x.chunk(2, -1)
    rotated = low * cos - high * sin
    high.mul_(cos).addcmul_(low, sin)
    low.copy_(rotated)
    return x
