"""Shapes of Wan 2.1's text-to-video networks, for plans."""

from __future__ import annotations

from ..common.shape import NetworkShape


def wan_shape(title: str, layers: int, heads: int, mlp: int, parameters: int, chunk_frames: int) -> NetworkShape:
    """Wan 2.1, text to video, of any size; ComfyUI keeps its patch embedding in float32."""
    width = heads * 128
    return NetworkShape(
        title,
        layers,
        heads,
        mlp,
        parameters,
        layers * (8 * width**2 + 2 * width * mlp),
        float32_parameters=(64 + 1) * width,
        chunk_frames=chunk_frames,
        is_counted=True,
    )
