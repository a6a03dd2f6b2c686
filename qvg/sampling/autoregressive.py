"""The autoregressive loop: block -> denoise steps -> one clean pass -> commit. No ComfyUI; callbacks report and interrupt.

The model paints one block of latent frames at a time from noise, each step attending to the cache and to the block itself, and
then sees the finished block once more at noise level 0, which writes its clean keys and values (Self-Forcing, arXiv 2506.08009).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..cache import KVCache
from ..cache.spec import CacheBytes
from ..errors import ConfigError


class Denoiser(Protocol):
    """What a backbone offers the loop."""

    device: torch.device

    def block_shape(self, frames: int) -> tuple[int, ...]:
        """Shape of a block of so many latent frames, batch first."""

    def predict_clean(self, x: Tensor, noise_level: float, cache: KVCache) -> Tensor:
        """Clean block from a noisy one; at noise level 0 it leaves the block's keys and values in the cache as its current
        block."""


@runtime_checkable
class CommitsByLayer(Protocol):
    """A denoiser of many layers, which are not all to keep their blocks until the last one is through."""

    def commit_clean(self, x: Tensor, cache: KVCache) -> None:
        """`predict_clean` at noise level 0 and `KVCache.commit_layer` for each layer as soon as it has attended."""


class Schedule(Protocol):
    """Noise levels of a block's denoise steps, and the noise that it starts from."""

    def noise_levels(self) -> list[float]:
        """From the first step's level down to 0."""

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Where block `index` begins."""


@runtime_checkable
class Renoising(Protocol):
    """A schedule that noises every prediction afresh instead of going on along a straight path."""

    def noise_levels(self, index: int) -> list[float]:
        """Of block `index`, from its first step's level down to 0."""

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Where block `index` begins."""

    def fresh_noise(self, index: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """What step `step` of block `index` begins from, with the prediction of the step before; 1 is the second step."""


@runtime_checkable
class Solving(Protocol):
    """A schedule that makes each step's input of the block's first noise and all predictions so far."""

    def noise_levels(self, index: int) -> list[float]:
        """Of the steps of block `index`."""

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Where block `index` begins."""

    def next_input(self, index: int, step: int, predictions: Sequence[Tensor]) -> Tensor:
        """Of what step `step` goes on from, 1 being the second; behind the last one, the finished block."""


@dataclass(frozen=True)
class SamplerSettings:
    """Euler steps on the straight path x_t = (1 - t) x + t noise, at `steps` noise levels bent by `shift` towards noise."""

    steps: int = 4
    shift: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.shift <= 0:
            raise ConfigError(f"steps {self.steps} and shift {self.shift} must be at least 1 and above 0; 4 and 3.0 work well")

    def noise_levels(self) -> list[float]:
        """steps + 1 levels from 1 down to 0."""
        even = [1 - i / self.steps for i in range(self.steps + 1)]
        return [self.shift * t / (1 + (self.shift - 1) * t) for t in even]

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Depends on the seed and the block alone, whatever the cache does; drawn on the CPU, so the same on every device."""
        return torch.randn(shape, generator=torch.Generator().manual_seed((self.seed * 1_000_003 + index) % (1 << 63)))


@dataclass(frozen=True)
class Block:
    """One finished block: its place in the video, the latent [B, F, ...], and what it cost."""

    index: int
    first_frame: int
    latent: Tensor
    seconds: float
    cache: CacheBytes


def generate(
    model: Denoiser,
    cache: KVCache,
    blocks: Sequence[Sequence[Sequence[float]]],
    settings: Schedule | Renoising | Solving,
    given: Sequence[Tensor] = (),
    interrupt: Callable[[], None] | None = None,
    verify: bool = True,
    first_block: int = 0,
) -> Iterator[Block]:
    """Generate block after block, and yield each as soon as it is committed.

    blocks     for every block the origins (time, row, column) of its frames, for RoPE
    given      latents of the first blocks, taken as they are instead of being generated
    interrupt  called before every pass of the model; whatever it raises ends the run
    verify     after the last block, raise CacheError if the cache's codec was never called or not as often as it should have been
    first_block  begin with this one: `cache` holds those before it, as a session has kept them

    The caller owns the cache and frees it (`with KVCache(...)`).
    """
    first_frame = sum(len(origins) for origins in blocks[:first_block])
    for index, origins in itertools.islice(enumerate(blocks), first_block, None):
        started = time.perf_counter()
        cache.place(origins)
        latent = given[index] if index < len(given) else _denoise(model, cache, len(origins), index, settings, interrupt)
        if interrupt is not None:
            interrupt()
        _commit(model, latent, cache)
        yield Block(index, first_frame, latent, time.perf_counter() - started, cache.nbytes())
        first_frame += len(origins)
    if verify and cache.config.codec != "none":
        cache.verify_encoded()


def _denoise(
    model: Denoiser,
    cache: KVCache,
    frames: int,
    index: int,
    settings: Schedule | Renoising | Solving,
    interrupt: Callable[[], None] | None,
) -> Tensor:
    shape = model.block_shape(frames)
    x = settings.noise(index, shape).to(model.device)
    if isinstance(settings, Solving):
        return _solve(model, cache, x, index, settings, interrupt)
    levels = settings.noise_levels(index) if isinstance(settings, Renoising) else settings.noise_levels()
    for step, (level, following) in enumerate(itertools.pairwise(levels), 1):
        if interrupt is not None:
            interrupt()
        clean = model.predict_clean(x, level, cache)
        if following > 0 and isinstance(settings, Renoising):
            x = (1 - following) * clean + following * settings.fresh_noise(index, step, shape).to(clean)
        else:
            x = clean + (x - clean) * (following / level)
    return x


def _solve(
    model: Denoiser, cache: KVCache, x: Tensor, index: int, settings: Solving, interrupt: Callable[[], None] | None
) -> Tensor:
    predictions: list[Tensor] = []
    for step, level in enumerate(settings.noise_levels(index), 1):
        if interrupt is not None:
            interrupt()
        predictions.append(model.predict_clean(x, level, cache))
        x = settings.next_input(index, step, predictions)
    return x


def _commit(model: Denoiser, latent: Tensor, cache: KVCache) -> None:
    if isinstance(model, CommitsByLayer):
        model.commit_clean(latent, cache)
    else:
        model.predict_clean(latent, 0.0, cache)
        cache.commit()
