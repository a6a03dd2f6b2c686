"""What a video decoder takes while it decodes in a stream, before anything is loaded.

A causal video VAE decodes a piece of one or two latent frames at a time and keeps, for every convolution, the last two frames it
has seen. From the third piece on memory stands still, however long the video is; both terms grow with the picture alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError


@dataclass(frozen=True)
class VideoDecoder:
    """A VAE as far as its memory goes.

    `values_per_pixel`: values alive at once at the peak, per pixel of one picture: feature caches and the layer at work, counted
    over every tensor torch makes, the same at all sizes. `parameters`: of encoder and decoder, which are loaded together.
    `latent_pixels`: side of the square of pixels that is one of a latent frame's. `piece_pictures`: decoded at a time.
    """

    values_per_pixel: float
    parameters: int
    latent_pixels: int
    piece_pictures: int


# Counted on ComfyUI 0.33's classes at 64x64 to 1280x720 (0.21's are the same), attention as torch has it. What a convolution
# library takes for itself besides (cuDNN's workspaces) is not in it.
WAN_2_1 = VideoDecoder(3402.5, 126_892_531, 8, 8)
WAN_2_2 = VideoDecoder(3832.5625, 704_688_668, 16, 4)


def working_bytes(width: int, height: int, decoder: VideoDecoder = WAN_2_1, value_bytes: int = 2) -> int:
    """Bytes on the device besides weights: feature caches and the layer at work.

    `width`, `height` in pixels of the video, `value_bytes` 2 for bf16 and fp16, 4 for float32. Raises `ConfigError` for sizes
    that this decoder cannot make.
    """
    side = decoder.latent_pixels
    if width < side or height < side or width % side or height % side:
        raise ConfigError(f"a video of {width}x{height} pixels has no latent; both sides must be multiples of {side}")
    return round(decoder.values_per_pixel * width * height * value_bytes)


def decode_bytes(width: int, height: int, decoder: VideoDecoder = WAN_2_1, value_bytes: int = 2) -> int:
    """Bytes on the device while a video of any length is decoded in a stream, the VAE's weights among them. -> upper bound."""
    return working_bytes(width, height, decoder, value_bytes) + decoder.parameters * value_bytes


def picture_bytes(width: int, height: int, decoder: VideoDecoder = WAN_2_1) -> int:
    """Bytes of pictures in main memory: a piece as float32, and one picture of it on its way into the file."""
    return width * height * 3 * (4 * decoder.piece_pictures + 1)
