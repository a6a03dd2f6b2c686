"""Transform coefficients as Lloyd-Max levels of unequal width, and back to keys or values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..bitplanes import check_planes, packed_width
from ..dispatch import implementation, shape_refusal
from ..lloyd_max import MAX_BITS
from ..rotary import check_rotation


class Coefficients(NamedTuple):
    """Packed codes [B, H, S, sum(planes) / 8] (`bitplanes.py`) and E4M3 gains [B, H, S]; all uint8."""

    codes: Tensor
    gains: Tensor


def quantize_coefficients(y: Tensor, weights: Tensor, planes: Sequence[int], backend: str = "auto") -> Coefficients:
    """Quantize coefficients of about unit variance, with one gain per token.

    y [B, H, S, D], channels sorted so that widths fall; weights [B, H, D]: what a squared error of 1 in each costs, the variance
    that was divided out. Levels z are those of a normal variable of the token's own spread (`lloyd_max.py`); the gain g is chosen
    so that <x, x̂> = |x|^2 over the channels that have bits: a least-squares gain would shrink every inner product, and keys that
    shrink lose attention. Where that is more than 1.8 times the gain of least squares, weighted or not, it is cut to that: no
    error exceeds its signal, neither in all nor over the channels beside a loud one, and below half a bit gains shrink. It is
    rounded to E4M3, and codes are made anew with the rounded one: on normal values that wins 8 % of the squared error back at two
    bits and 5 % at three, and leaves 93 % and 97 % of |x|^2. NaN and infinity harm their own token alone, which comes back as
    something finite; caches refuse them before they get here.
    """
    check_planes(planes, y.shape[-1], MAX_BITS)
    module = implementation("coefficients", y, backend, shape_refusal(y.shape[-1]))
    return Coefficients(*module.quantize_coefficients(y, weights, tuple(planes)))


def reconstruct_coefficients(
    codes: Tensor,
    gains: Tensor,
    ids: Tensor,
    codewords: Tensor,
    matrix: Tensor,
    planes: Sequence[int],
    out: Tensor,
    backend: str = "auto",
    rotation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Decode into `out` [B, H, S, D] (any float dtype, any strides), which is returned: codewords[id] + gain * (levels @ matrix).

    codes [B, H, S, P], gains and ids [B, H, S] uint8; codewords [B, H, C, D] and matrix [B, H, D, D] float32. Views that cut
    tokens or heads out of a span are fine. rotation: as in `reconstruct`.
    """
    tokens = out.shape[:3]
    if codes.shape != (*tokens, packed_width(planes)) or gains.shape != tokens or ids.shape != tokens:
        raise ValueError(
            f"codes {tuple(codes.shape)}, gains {tuple(gains.shape)} and ids {tuple(ids.shape)} must hold the tokens of out "
            f"{tuple(out.shape)} in planes {tuple(planes)}"
        )
    check_rotation(rotation, out)
    module = implementation("coefficients", out, backend, shape_refusal(out.shape[3]))
    parts = (codes, gains, ids, codewords, matrix)
    return module.reconstruct_coefficients(*parts, tuple(planes), out, rotation)  # type: ignore[no-any-return]
