"""Shape of LongCat-Video's network, and how many latent frames pictures are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...cache.spec import CacheSpec
from ...errors import ConfigError, UnsupportedModelError
from ...positions.rope import GridRope, wan_rope

PATCH = 2  # latent pixels along a token's side
TOKEN_PIXELS = 8 * PATCH
FRAME_PICTURES = 4  # in a latent frame, the first one aside
SEGMENT_PICTURES = 93
# What a segment is conditioned on: as released, and as Quant VideoGen (arXiv 2602.02958) runs it.
CONDITION_PICTURES, LONG_CONDITION_PICTURES = 13, 73


@dataclass(frozen=True)
class LongCatConfig:
    """Shape of the network; as it stands the 13.6B's. `time_channels`: width of what noise levels are embedded in."""

    layers: int = 48
    heads: int = 32
    head_dim: int = 128
    mlp: int = 11008
    channels: int = 16
    text_channels: int = 4096
    text_tokens: int = 512
    time_channels: int = 512

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> LongCatConfig:
        """Shape of a checkpoint with the released names. UnsupportedModelError: it is of something else."""
        try:
            layers = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
            width, text_channels = state["y_embedder.y_proj.0.weight"].shape
            head_dim = state["blocks.0.attn.q_norm.weight"].shape[0]
            mlp, channels = state["blocks.0.ffn.w1.weight"].shape[0], state["x_embedder.proj.weight"].shape[1]
            time_channels = state["t_embedder.mlp.0.weight"].shape[0]
        except (KeyError, ValueError, IndexError) as error:
            raise UnsupportedModelError(
                f"the checkpoint is no LongCat-Video ({error}); give the network's weights, 'blocks.0.attn.qkv.weight' and so "
                "on, of all shards"
            ) from error
        if any(name.startswith("blocks.0.audio_") for name in state):
            raise UnsupportedModelError(
                "the checkpoint is LongCat-Video-Avatar, which listens to audio; use LongCat-Video, from the folder 'dit'"
            )
        return LongCatConfig(
            layers,
            heads=width // head_dim,
            head_dim=head_dim,
            mlp=mlp,
            channels=channels,
            text_channels=text_channels,
            time_channels=time_channels,
        )

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return self.heads * self.head_dim

    def rope(self, latent_rows: int, latent_cols: int) -> GridRope:
        """Positions of a frame's tokens; the same as Wan's."""
        return wan_rope(*token_grid(latent_rows, latent_cols), self.head_dim)

    def condition_spec(
        self, latent_rows: int, latent_cols: int, condition_frames: int, dtype: torch.dtype = torch.bfloat16
    ) -> CacheSpec:
        """Of the memory of what a segment is conditioned on, `condition_frames` latent frames: one video's, which all guidance
        branches and all videos of a batch share."""
        rows, cols = token_grid(latent_rows, latent_cols)
        return CacheSpec(self.layers, self.heads, self.head_dim, rows * cols, condition_frames, 1, dtype)


def token_grid(latent_rows: int, latent_cols: int) -> tuple[int, int]:
    """Rows and columns of a frame's tokens. ConfigError for a latent that does not divide into them."""
    if latent_rows < PATCH or latent_cols < PATCH or latent_rows % PATCH or latent_cols % PATCH:
        raise ConfigError(
            f"a latent of {latent_rows} x {latent_cols} does not divide into tokens of {PATCH} x {PATCH}; use even sizes, "
            f"multiples of {TOKEN_PIXELS} pixels, such as 832 x 480"
        )
    return latent_rows // PATCH, latent_cols // PATCH


def latent_frames(pictures: int, what: str = "a segment") -> int:
    """Latent frames of so many pictures. ConfigError for a number that is not whole latent frames."""
    if pictures < 1 or (pictures - 1) % FRAME_PICTURES:
        low = max(1, (pictures - 1) // FRAME_PICTURES * FRAME_PICTURES + 1)
        near = "1" if pictures < 1 else f"{low} or {low + FRAME_PICTURES}"
        raise ConfigError(f"{what} has {pictures} pictures, but 1, 5, 9 ... are whole latent frames; use {near}")
    return 1 + (pictures - 1) // FRAME_PICTURES


@dataclass(frozen=True)
class SegmentFrames:
    """Pictures of a segment, and how many of them it is conditioned on: they are its first ones and not new. ConfigError for
    numbers that are not whole latent frames, and for a segment that adds nothing."""

    pictures: int = SEGMENT_PICTURES
    condition: int = CONDITION_PICTURES

    def __post_init__(self) -> None:
        latent_frames(self.pictures)
        if self.condition:
            latent_frames(self.condition, "what a segment is conditioned on")
        if self.condition >= self.pictures:
            raise ConfigError(
                f"a segment of {self.pictures} pictures that is conditioned on {self.condition} adds nothing; use more pictures "
                f"({SEGMENT_PICTURES} as released) or a shorter condition ({CONDITION_PICTURES})"
            )

    @property
    def latents(self) -> int:
        """Latent frames of all."""
        return latent_frames(self.pictures)

    @property
    def condition_latents(self) -> int:
        """Of these, given."""
        return latent_frames(self.condition) if self.condition else 0

    @property
    def new_latents(self) -> int:
        """Of these, made."""
        return self.latents - self.condition_latents

    @property
    def new_pictures(self) -> int:
        """Pictures that the video gets longer by."""
        return self.pictures - self.condition

    def require_video(self, pictures: int) -> None:
        """ConfigError where a video of so many pictures is too short to be continued."""
        if pictures < self.condition:
            raise ConfigError(
                f"the video has {pictures} pictures, but {self.condition} of it are to be the condition; give a longer video, or "
                f"use {self._fitting(pictures)}"
            )

    @staticmethod
    def _fitting(pictures: int) -> str:
        if pictures < 1:
            return "a text alone"
        return f"a condition of {(pictures - 1) // FRAME_PICTURES * FRAME_PICTURES + 1}"
