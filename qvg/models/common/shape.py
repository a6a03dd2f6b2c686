"""What a video transformer takes of memory, before there is a file."""

from __future__ import annotations

from dataclasses import dataclass

from .video_decoder import WAN_2_1, VideoDecoder


@dataclass(frozen=True)
class NetworkShape:
    """A video transformer as far as its memory goes.

    `parameters`: all; `layer_parameters`: those of the layers' linear weights, which 8-bit files keep in one byte each;
    `float32_parameters`: kept in four bytes whatever the file. `token_pixels`: side of a token in pixels. `chunk_frames`: latent
    frames denoised together. `frame_pictures`: pictures in a latent frame, the first one aside. `mlp_tensors`: tensors of the
    width `mlp` alive at once; `beside_mlp` and `in_attention`: tensors of the residual's width alive at once during the MLP, and
    while attention reads the cache. `is_counted`: whether these were counted on the network itself; otherwise they follow from
    its layers' description. `by_layer`: whether a layer's block is committed before the next layer makes its own, and the exact
    cache read by ComfyUI's attention, as in ComfyUI's own networks. `sizes`: width and height of its videos, where it makes no
    others. `context_frames`: of a world, earlier latent frames that a chunk was trained to see, which World Sampler's mode vendor
    runs again before every chunk; None for other models. `most_frames`: latent frames at which a session ends. `segment_frames`:
    of a model that makes a video in segments, latent frames of one; `condition_frames` of them, at its beginning, are there
    already, and they are all that it remembers. `branches`: texts that run side by side under guidance. `keeps_prompt`: whether a
    prompt's keys and values stay for a run.
    """

    title: str
    layers: int
    heads: int
    mlp: int
    parameters: int
    layer_parameters: int
    decoder: VideoDecoder | None = WAN_2_1
    head_dim: int = 128
    float32_parameters: int = 0
    token_pixels: int = 16
    chunk_frames: int = 3
    frame_pictures: int = 4
    channels: int = 16
    text_tokens: int = 512
    text_channels: int = 4096
    mlp_tensors: int = 2
    beside_mlp: int = 6
    in_attention: int = 10
    is_counted: bool = False
    by_layer: bool = True
    sizes: tuple[int, int] | None = None
    context_frames: int | None = None
    most_frames: int | None = None
    segment_frames: int | None = None
    condition_frames: int = 0
    branches: int = 1
    keeps_prompt: bool = True
    pictures_per_second: int = 16

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return self.heads * self.head_dim
