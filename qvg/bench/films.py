"""Methods judged by films of the demo film model: time in its positions, blocks of frames, a prompt.

Twelve real blocks are given, one whole turn of the camera, so all that is generated was seen before and its truth is known. Half
of the films turn on and see each place again after 36 frames; half turn back and see each at another distance in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cache import KVCache
from ..demo.memories import EXACT
from ..errors import ConfigError
from ..metrics import psnr_db
from ..models.demo_film.directions import BLOCK_FRAMES, TURN_COLUMNS, Direction, View
from ..models.demo_film.pictures import PictureCodec
from ..models.demo_film.weights import CONFIG, WEIGHTS, load_demo_film
from ..models.wan.network import CausalWan
from ..sampling.film import LATENT_PIXELS, FilmPlan, FilmPrompts, OpenCache, given_blocks, roll_out
from ..study.run import StudyRun
from .judge import Instrument, Judge, Made, Pictures, Settings, check_bytes, encoded_tokens
from .rows import Measured, row

GIVEN_FRAMES = TURN_COLUMNS
FILM = Instrument("demo film", CONFIG.cache_spec(LATENT_PIXELS, LATENT_PIXELS, BLOCK_FRAMES), GIVEN_FRAMES)
FIRST_SCENE, DEVELOPMENT_SCENE = 5001, 6001
KINDS = ("on", "back")
FULL_FILMS, FULL_FRAMES = 8, 72
QUICK_FILMS, QUICK_FRAMES = 2, 60


@dataclass(frozen=True)
class FilmCase:
    """One film: a scene, where the camera goes after its first turn, by which light, and the noise's seed."""

    seed: int
    path: str
    frames: int
    light: str
    noise: int = 0

    @property
    def plan(self) -> FilmPlan:
        """It turns right from even scenes on, left from odd ones."""
        there, back = ("turn right", "turn left")[:: 1 - 2 * (self.seed % 2)]
        blocks, given = self.frames // BLOCK_FRAMES, GIVEN_FRAMES // BLOCK_FRAMES
        then = there if self.path == "on" else back
        directions = tuple(Direction(camera, self.light) for camera in [there] * given + [then] * (blocks - given))
        start = View(5 * self.seed % TURN_COLUMNS, 1, float(self.light == "day"))
        return FilmPlan(self.seed, start, directions)


def film_cases(films: int, frames: int, first_scene: int = FIRST_SCENE) -> list[FilmCase]:
    """Films of scenes that were not trained on, by turns on and back, and two by two by day and by night."""
    lights = ("day", "night")
    return [FilmCase(first_scene + i, KINDS[i % 2], frames, lights[i // 2 % 2], noise=i) for i in range(films)]


class FilmJudge(Judge[FilmCase]):
    """Makes the films. `revisit_db` is against the real film."""

    weights_file = WEIGHTS

    def __init__(self, folder: Path, sources: str | None = None, check_bytes: bool = True):
        load_demo_film(self.weights_file)  # what is wrong with it is said before it is read as bytes
        super().__init__(folder, sources, check_bytes)
        self._loaded: tuple[CausalWan, PictureCodec, FilmPrompts] | None = None

    def _model(self) -> tuple[CausalWan, PictureCodec, FilmPrompts]:
        if self._loaded is None:
            model, codec = load_demo_film(self.weights_file)
            self._loaded = model, codec, FilmPrompts(model)
        return self._loaded

    def revisit_db(self, case: FilmCase, pictures: Pictures) -> float | None:
        """Mean PSNR of the generated frames to the real film, both as the decoder shows them."""
        _, codec, _ = self._model()
        with torch.inference_mode():
            real = decoded(codec, codec.encode(case.plan.pictures()))
        generated = slice(GIVEN_FRAMES, None)
        return round(float(psnr_db(torch.from_numpy(real[generated]), torch.from_numpy(pictures[generated])).mean()), 3)

    def make(self, case: FilmCase, config: Settings) -> Made:
        """One film. Bytes must be those that were predicted, and a codec must have been called as often as it should."""
        model, codec, prompts = self._model()
        plan, latents, peak, caches = case.plan, list[Tensor](), 0, list[KVCache]()
        with torch.inference_mode():
            given = given_blocks(plan, codec, GIVEN_FRAMES // BLOCK_FRAMES)
        settings = EXACT if isinstance(config, StudyRun) else config
        for block in roll_out(
            model, prompts, plan.directions, settings, given, case.noise, caches=caches, open_cache=opener(config, plan.frames)
        ):
            latents.append(block.latent[0])
            (cache,), counted = caches, block.cache
            peak = max(peak, counted.total)
            if self._check_bytes:
                check_bytes(cache, config, BLOCK_FRAMES * len(latents), counted)
            if len(latents) == len(plan.directions):
                encoded = encoded_tokens(cache)
                if cache.config.codec != "none":
                    cache.verify_encoded()
        with torch.inference_mode():
            return Made(decoded(codec, torch.cat(latents)), counted.by_component(), peak, encoded)


def opener(config: Settings, frames: int) -> OpenCache:
    """Makes a film's cache as `config` says."""
    if not isinstance(config, StudyRun):
        return KVCache
    if config.method.reuse:
        raise ConfigError(
            f"{config.method.name} changes the denoiser, which films have of their own; walk through the demo world"
        )
    return lambda spec, settings, rope: config.cache(spec, rope, frames)


def decoded(codec: PictureCodec, latents: Tensor) -> Pictures:
    """[F, 16, 16, 16] -> uint8 [F, 128, 128, 3]."""
    pixels: Pictures = ((codec.decode(latents).movedim(1, -1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return pixels


def film_rows(measured: Sequence[Measured], reference: Measured, cases: Sequence[FilmCase]) -> list[dict[str, Any]]:
    """Rows as those of the demo world, with `films` in place of `worlds`, and `truth_db` in place of `revisit_db`."""
    names = {"worlds": "films", "revisit_db": "truth_db"}
    rows = [row(entry, reference, cases, FILM) for entry in measured]
    return [{names.get(key, key): value for key, value in each.items() if value != "" or key == "transform"} for each in rows]


def exact_truth_db(judge: FilmJudge, cases: Sequence[FilmCase]) -> float:
    """How near to the real films the exact cache comes: the most that there is to lose."""
    return float(np.mean([judge.revisit_db(case, judge.exact(case)) for case in cases]))
