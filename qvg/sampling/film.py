"""Films by the demo film model: what happens in them, how they really look, and what the model makes of them from a memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache import KVCache
from ..cache.spec import CacheSpec
from ..config import QVGConfig
from ..errors import ConfigError
from ..models.demo_film.directions import BLOCK_FRAMES, DIRECTIONS, Direction, Track, View, follow, text_rows
from ..models.demo_film.pictures import CHANNELS, STRIDE, PictureCodec
from ..models.demo_film.scenes import JUDGED, PICTURE_PIXELS, Scene
from ..models.wan.network import CausalWan, Prompt, WanDenoiser
from ..positions.rope import GridRope
from .autoregressive import Block, generate
from .distilled import DistilledSchedule

SIGMAS = (1.0, 0.9375, 5 / 6, 0.625, 0.0)  # Self-Forcing's four steps
LATENT_PIXELS = PICTURE_PIXELS // STRIDE
# Makes the cache of a film.
OpenCache = Callable[[CacheSpec, QVGConfig, GridRope], KVCache]


@dataclass(frozen=True)
class FilmPlan:
    """A film: its scene (a seed of the JUDGED domain), where the camera is before the first frame, and each block's prompt."""

    scene: int
    start: View
    directions: tuple[Direction, ...]

    def __post_init__(self) -> None:
        unknown = next((each for each in self.directions if each not in DIRECTIONS), None)
        if unknown is not None or not self.directions:
            raise ConfigError(f"the film's prompts hold {unknown}; give at least one, each out of {[d.text for d in DIRECTIONS]}")

    @property
    def frames(self) -> int:
        """Length."""
        return BLOCK_FRAMES * len(self.directions)

    @property
    def track(self) -> Track:
        """What the camera does by the prompts' rules."""
        return follow(self.start, self.directions)[0]

    def pictures(self) -> Tensor:
        """How the film really looks. -> [F, 3, 128, 128] in -1..1."""
        return Scene(self.scene, JUDGED).frames(self.track)


class FilmPrompts:
    """The prompts of a model, each read once."""

    def __init__(self, model: CausalWan):
        self._model, self._text, self._read = model, text_rows(), dict[Direction, Prompt]()

    def __getitem__(self, direction: Direction) -> Prompt:
        if direction not in self._read:
            weight = self._model.patch_embedding.weight
            rows = self._text[DIRECTIONS.index(direction)]
            self._read[direction] = self._model.read_prompt(rows[None].to(weight.device, weight.dtype))
        return self._read[direction]


def given_blocks(plan: FilmPlan, codec: PictureCodec, blocks: int) -> list[Tensor]:
    """Latents of the film's first blocks as they really look, each [1, 3, 16, 16, 16]."""
    begin = plan.track.part(slice(0, blocks * BLOCK_FRAMES))
    latents = codec.encode(Scene(plan.scene, JUDGED).frames(begin))
    return list(latents.view(blocks, 1, BLOCK_FRAMES, CHANNELS, LATENT_PIXELS, LATENT_PIXELS))


class Before(NamedTuple):
    """A film so far, out of its session: latents of its blocks, and the memory as it stood behind them."""

    blocks: Sequence[Tensor]
    cache: KVCache


def roll_out(
    model: CausalWan,
    prompts: FilmPrompts,
    directions: Sequence[Direction],
    config: QVGConfig,
    given: Sequence[Tensor],
    seed: int,
    recache: bool = False,
    caches: list[KVCache] | None = None,
    open_cache: OpenCache = KVCache,
    before: Before | None = None,
) -> Iterator[Block]:
    """Go on from the given blocks by one prompt for each block; yields as `generate` does. `caches` gets each cache that is used,
    to be looked at while it is; `open_cache` makes them. `before`: what is not to be made again; the blocks behind it
    are yielded.

    A new prompt is seen by what comes after it; with `recache` all that is in memory is made anew under it (LongLive, arXiv
    2509.22622), here by seeing all frames again.
    """
    changes = [i for i, (old, new) in enumerate(itertools.pairwise(directions), 1) if new != old and recache]
    told = max([0, *(i for i in changes if i <= len(given))])  # the prompt that the given blocks are remembered under
    done = [] if before is None else list(before.blocks)
    for first, stop in itertools.pairwise([told, *(i for i in changes if i > len(given)), len(directions)]):
        if before is not None and stop <= len(before.blocks):
            continue
        goes_on = before is not None and len(before.blocks) > (0 if first == told else first)
        opened = (lambda *_, known=before: known.cache) if goes_on else open_cache
        start = len(done) if goes_on else 0
        known = done if len(done) > len(given) else given
        for block in _stretch(model, prompts, directions[:stop], first, config, known, seed, caches, opened, start):
            before = None
            if block.index == len(done):
                done.append(block.latent)
                yield block


def _stretch(
    model: CausalWan,
    prompts: FilmPrompts,
    directions: Sequence[Direction],
    told_late: int,
    config: QVGConfig,
    given: Sequence[Tensor],
    seed: int,
    caches: list[KVCache] | None,
    open_cache: OpenCache,
    start: int,
) -> Iterator[Block]:
    """`generate` with the prompts of each block; blocks before `told_late` are remembered under the prompt of that one. The cache
    holds those before `start`."""
    model_prompts = [prompts[directions[max(i, told_late)]] for i in range(len(directions))]
    denoiser = WanDenoiser(model, model_prompts[start], LATENT_PIXELS, LATENT_PIXELS)
    spec = model.config.cache_spec(LATENT_PIXELS, LATENT_PIXELS, BLOCK_FRAMES)
    places = [[(float(i * BLOCK_FRAMES + j), 0.0, 0.0) for j in range(BLOCK_FRAMES)] for i in range(len(directions))]
    with open_cache(spec, config, model.config.rope(LATENT_PIXELS, LATENT_PIXELS)) as cache, torch.inference_mode():
        if caches is not None:
            caches.append(cache)
        schedule = DistilledSchedule(SIGMAS, seed)
        for block in generate(denoiser, cache, places, schedule, given, verify=False, first_block=start):
            denoiser.prompt = model_prompts[min(block.index + 1, len(directions) - 1)]
            yield block
