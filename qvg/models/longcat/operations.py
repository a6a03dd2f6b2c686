"""Operations that LongCat-Video takes, by its shape alone; a product and its sum are two."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.modulation import SINES
from .config import PATCH, LongCatConfig, SegmentFrames, token_grid
from .schedule import LongCatSettings


@dataclass(frozen=True)
class SegmentOperations:
    """Of one segment: `recording` its memory, 0 without one; `passes` of the network, both guidance branches counted, of `each`
    operations. What a codec takes to encode and decode is not in it."""

    recording: int
    passes: int
    each: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.recording + self.passes * self.each


def segment_operations(
    shape: LongCatConfig, latent_size: tuple[int, int], frames: SegmentFrames, settings: LongCatSettings, remembers: bool
) -> SegmentOperations:
    """Of a segment with a memory of its condition, or with the condition in every pass. `latent_size`: rows and columns."""
    rows, cols = token_grid(*latent_size)
    new, given = (count * rows * cols for count in (frames.new_latents, frames.condition_latents))
    passes = (len(settings.sigmas(frames.condition_latents > 1)) - 1) * (1 if settings.guidance == 1 else 2)
    if remembers and given:
        return SegmentOperations(
            _recording(shape, given, frames.condition_latents), passes, _pass(shape, new, given, frames.new_latents)
        )
    whole = _pass(shape, new, given, frames.latents) + shape.layers * (_self_attention(shape, given) + given * _by_token(shape))
    return SegmentOperations(0, passes, whole + _patches(shape, given))


def _pass(shape: LongCatConfig, tokens: int, remembered: int, frames: int) -> int:
    """Over tokens that see so many others besides themselves, and read the text; levels are those of `frames` frames."""
    cross = _linear(tokens, shape.width, shape.width) * 2 + _linear(shape.text_tokens, shape.width, 2 * shape.width)
    cross += 4 * tokens * shape.text_tokens * shape.width
    layer = tokens * _by_token(shape) + 4 * tokens * (tokens + remembered) * shape.width + cross
    layer += _linear(frames, shape.time_channels, 6 * shape.width)
    return shape.layers * layer + _patches(shape, tokens) + _levels(shape, frames)


def _recording(shape: LongCatConfig, tokens: int, frames: int) -> int:
    """All layers but the last one, whose keys and values are all that is asked of it."""
    levels = _linear(frames, shape.time_channels, 6 * shape.width)
    whole = tokens * _by_token(shape) + _self_attention(shape, tokens)
    entrance = _linear(tokens, 4 * shape.channels, shape.width) + _embedded_levels(shape, frames)
    return (shape.layers - 1) * whole + _linear(tokens, shape.width, 3 * shape.width) + shape.layers * levels + entrance


def _by_token(shape: LongCatConfig) -> int:
    """Of one token in one layer: self-attention's projections and the MLP."""
    return _linear(1, shape.width, 4 * shape.width) + 3 * _linear(1, shape.width, shape.mlp)


def _self_attention(shape: LongCatConfig, tokens: int) -> int:
    return 4 * tokens * tokens * shape.width


def _patches(shape: LongCatConfig, tokens: int) -> int:
    """Into tokens and out of them."""
    return 2 * _linear(tokens, PATCH**2 * shape.channels, shape.width)


def _embedded_levels(shape: LongCatConfig, frames: int) -> int:
    return _linear(frames, SINES, shape.time_channels) + _linear(frames, shape.time_channels, shape.time_channels)


def _levels(shape: LongCatConfig, frames: int) -> int:
    return _embedded_levels(shape, frames) + _linear(frames, shape.time_channels, 2 * shape.width)


def _linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs
