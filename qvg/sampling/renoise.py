"""Few-step causal video models as ComfyUI samples them: where the blocks of a video lie, and the noise of each.

Between steps the predicted clean block gets fresh noise, x = (1 - s) clean + s noise (Self-Forcing, arXiv 2506.08009). The
numbers are those of ComfyUI's own sampler, from a private generator. For `generate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import ConfigError


@dataclass(frozen=True)
class BlockPlace:
    """One block of a video. `noise_index`: which number it has for the noise between its steps. `kept_frames`: frames at its
    beginning that are given, of a block whose others are generated."""

    index: int
    first_frame: int
    frames: int
    given: bool
    noise_index: int
    kept_frames: int = field(default=0, kw_only=True)

    @property
    def span(self) -> slice:
        """Its latent frames."""
        return slice(self.first_frame, self.first_frame + self.frames)


def place_blocks(
    frames: int, given_frames: int, frames_per_block: int, is_start: bool = False, in_block: bool = False
) -> list[BlockPlace]:
    """Cut a video of `frames` latent frames, the first `given_frames` of them given, into blocks.

    What is left over of the given frames comes first, so that every block that is generated begins where a longer or shorter
    start would have it begin, and only the last one may be short. Blocks are numbered through, given ones too, so that a video
    that is continued gets the noise it would have got in one go; a single given frame is a start image and has no number, and
    nor has what `is_start`, which ComfyUI's own sampler does not count. `in_block`: what is left over are the first frames of a
    block whose others are generated, so blocks lie as if nothing were given.
    """
    if in_block:
        return _with_kept_frames(place_blocks(frames, 0, frames_per_block), given_frames)
    lead = given_frames % frames_per_block
    unnumbered = given_frames if is_start or given_frames == 1 else lead
    starts = [0] * (lead > 0) + list(range(lead, frames, frames_per_block))
    places = []
    for index, (start, stop) in enumerate(itertools.pairwise([*starts, frames])):
        number = max(0, start - unnumbered) // frames_per_block
        places.append(BlockPlace(index, start, stop - start, start < given_frames, number))
    return places


def _with_kept_frames(places: list[BlockPlace], given_frames: int) -> list[BlockPlace]:
    kept = [min(place.frames, max(0, given_frames - place.first_frame)) for place in places]
    return [
        replace(place, given=count == place.frames, kept_frames=0 if count == place.frames else count)
        for place, count in zip(places, kept, strict=True)
    ]


def check_levels(levels: Sequence[float], name: str = "sigmas") -> None:
    """Raise ConfigError unless noise levels fall from at most 1 to 0; `name` is what the user calls them."""
    falls = len(levels) > 1 and levels[-1] == 0 and all(after < before for before, after in itertools.pairwise(levels))
    if not falls or not levels[0] <= 1:
        shown = ", ".join(f"{level:.3g}" for level in levels)
        raise ConfigError(
            f"{name} are {shown or 'empty'}, but must fall from step to step, from at most 1 to 0: every block is finished "
            "before the next one begins; connect a scheduler's sigmas whole, not split or flipped"
        )


@dataclass(frozen=True)
class NoiseLevels:
    """Of every block, from its first step's down to 0; `first_block` replaces them for the block whose noise is number 0."""

    levels: tuple[float, ...]
    first_block: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_levels(self.levels)
        if self.first_block is None:
            return
        check_levels(self.first_block, "first_block_sigmas")
        if abs(self.first_block[0] - self.levels[0]) > 1e-5:
            raise ConfigError(
                f"first_block_sigmas begin at {self.first_block[0]:.4g} and sigmas at {self.levels[0]:.4g}, but all blocks begin "
                "in one noise; let both begin at the same level, 1 for a new video"
            )

    def of(self, place: BlockPlace) -> tuple[float, ...]:
        """Noise levels of one block; a given one has none."""
        if place.given:
            return ()
        return (self.first_block if place.noise_index == 0 else None) or self.levels


@dataclass(frozen=True)
class RenoiseSchedule:
    """The schedule of one video. `start`: all of it at the first noise level, [B, C, F, H, W]."""

    levels: NoiseLevels
    places: Sequence[BlockPlace]
    start: Tensor
    seed: int = 0

    def noise_levels(self, index: int) -> list[float]:
        """Of block `index`."""
        return list(self.levels.of(self.places[index]))

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Where block `index` begins."""
        del shape  # that of the block's frames
        return self.start[:, :, self.places[index].span]

    def fresh_noise(self, index: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """What step `step` begins from, 1 being the second: of a generator with seed + block * 1000 + step - 1, as ComfyUI seeds
        the global one; drawn where the video is, as there, so that kinds of device differ."""
        device = self.start.device
        seed = (self.seed + self.places[index].noise_index * 1000 + step - 1) % (1 << 64)
        return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)
