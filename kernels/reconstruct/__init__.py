"""From packed codes back to keys or values."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import implementation


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
) -> Tensor:
    """Decode into `out` [B, H, S, D] (any float dtype, any strides), which is returned. Inverse of `quantize_groups`.

    codes [B, H, S, D * bits / 8], scales and zero_points [B, H, G, S], ids [B, H, N, S], centroids [B, H, N, C, D]; views that
    cut tokens or heads out of a span are fine, nothing needs to be contiguous.
    """
    if codes.shape[:3] != out.shape[:3] or ids.shape[3] != out.shape[2] or scales.shape[3] != out.shape[2]:
        raise ValueError(
            f"codes {tuple(codes.shape)}, scales {tuple(scales.shape)} and ids {tuple(ids.shape)} must hold the tokens of "
            f"out {tuple(out.shape)}"
        )
    module = implementation("reconstruct", out, backend)
    return module.reconstruct(codes, scales, zero_points, ids, centroids, bits, group_size, out)  # type: ignore[no-any-return]
