"""Shapes of the models whose memory can be planned before there is a file."""

from __future__ import annotations

from dataclasses import dataclass

from .common.video_decoder import WAN_2_1, WAN_2_2, VideoDecoder

# HunyuanVideo 1.5's VAE as ComfyUI 0.33 decodes it, two latent frames at a time, counted as those in `plan_decode`; the pictures
# it gathers on the device are not in it.
HUNYUAN_1_5 = VideoDecoder(7700.0, 1_262_735_363, 16, 8)


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
    runs again before every chunk; None for other models. `most_frames`: latent frames at which a session ends.
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

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return self.heads * self.head_dim


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


# The worlds' keys and values are stored once, before RoPE: half of what their vendors keep.
SHAPES: dict[str, NetworkShape] = {
    "self-forcing-1.3b": wan_shape("Self-Forcing 1.3B", 30, 12, 8960, 1_418_996_800, 3),
    "causal-forcing-1.3b": wan_shape("Causal-Forcing 1.3B, frame-wise", 30, 12, 8960, 1_418_996_800, 1),
    "krea-14b": wan_shape("Krea Realtime 14B", 40, 40, 13824, 14_288_491_584, 3),
    "worldplay-5b": NetworkShape(
        "HY-WorldPlay 5B (Wan 2.2)",
        layers=30,
        heads=24,
        mlp=14336,
        parameters=5_293_225_152,
        layer_parameters=30 * (9 * 3072**2 + 2 * 3072 * 14336),
        decoder=WAN_2_2,
        float32_parameters=592_896,
        token_pixels=32,
        chunk_frames=4,
        channels=48,
        in_attention=16,  # two branches, one turned by RoPE and one by the camera
        context_frames=16,
        most_frames=240,
    ),
    "worldplay-8b": NetworkShape(
        "HY-WorldPlay 8B (HunyuanVideo 1.5)",
        layers=54,
        heads=16,
        mlp=8192,
        parameters=8_557_933_856,
        layer_parameters=54 * (2 * (4 + 8 + 6) + 1) * 2048**2,
        decoder=HUNYUAN_1_5,
        chunk_frames=4,
        channels=32,
        text_tokens=1985,  # 1,000 of the prompt, 256 of texts to paint, 729 of the picture
        text_channels=3584,
        beside_mlp=12,  # modulation is spread over tokens
        in_attention=22,
        context_frames=20,
        most_frames=240,
    ),
    "longcat-13b": NetworkShape(
        "LongCat-Video 13.6B",
        layers=48,
        heads=32,
        mlp=11008,
        parameters=13_581_071_424,
        layer_parameters=48 * (8 * 4096**2 + 3 * 4096 * 11008 + 6 * 512 * 4096),
        chunk_frames=5,  # Quant VideoGen's segments: 20 new pictures
        mlp_tensors=3,
    ),
}
