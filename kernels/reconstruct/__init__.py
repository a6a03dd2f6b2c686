"""From packed codes back to keys or values."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import implementation, shape_refusal
from ..rotary import check_rotation


def reconstruct(
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    ids: Tensor,
    centroids: Tensor,
    bits: int,
    group_size: int,
    out: Tensor,
    backend: str = "auto",
    rotation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Decode into `out` [B, H, S, D] (any float dtype, any strides), which is returned. Inverse of `quantize_groups`.

    codes [B, H, S, D * bits / 8], scales and zero_points [B, H, G, S], ids [B, H, N, S], centroids [B, H, N, C, D]; views that
    cut tokens or heads out of a span are fine, nothing needs to be contiguous. rotation: cos and sin [S, D/2] float32 by which
    every channel p is rotated with channel p + D/2 on the way out (keys are stored before RoPE).
    """
    if codes.shape[:3] != out.shape[:3] or ids.shape[3] != out.shape[2] or scales.shape[3] != out.shape[2]:
        raise ValueError(
            f"codes {tuple(codes.shape)}, scales {tuple(scales.shape)} and ids {tuple(ids.shape)} must hold the tokens of "
            f"out {tuple(out.shape)}"
        )
    check_rotation(rotation, out)
    module = implementation("reconstruct", out, backend, shape_refusal(out.shape[3], group_size))
    parts = (codes, scales, zero_points, ids, centroids)
    return module.reconstruct(*parts, bits, group_size, out, rotation)  # type: ignore[no-any-return]
