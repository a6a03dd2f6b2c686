"""The two instruments as targets: a walk through the demo world, a film of the demo film. Prompts are camera paths, or what the
camera does after its first turn; seeds are worlds and scenes that were not trained on, and the noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..bench.films import GIVEN_FRAMES as FILM_GIVEN
from ..bench.films import KINDS as FILM_KINDS
from ..bench.films import FilmCase, decoded, opener
from ..bench.judge import Settings, check_bytes
from ..bench.walks import Case as WalkCase
from ..cache import KVCache
from ..cache.spec import CacheSpec
from ..camera import visits
from ..config import QVGConfig
from ..demo.memories import EXACT
from ..demo.summary import revisit_psnr_db
from ..demo.video import FRAMES_PER_SECOND
from ..demo.walk import GIVEN_FRAMES, VISIT_GAP_FRAMES, picture, plan_walk, settings
from ..errors import ConfigError, quoted, shown
from ..metrics import psnr_db
from ..models.demo_film.directions import BLOCK_FRAMES
from ..models.demo_film.weights import load_demo_film
from ..models.demo_world import DemoWorldDenoiser, load_demo_world
from ..positions.rope import GridRope
from ..sampling import generate
from ..sampling.autoregressive import Denoiser
from ..sampling.film import FilmPrompts, given_blocks, roll_out
from ..study.run import StudyRun
from .choices import Choice
from .phases import PhaseWatch
from .plan import Case
from .videos import Video

_LIGHTS = ("day", "night")
FILM_PROMPTS = tuple(f"{path} by {light}" for path in FILM_KINDS for light in _LIGHTS)


def walk_case(case: Case) -> WalkCase:
    """What `qvg bench` calls a case of the demo world."""
    return WalkCase(case.seed, case.prompt, case.frames)


def film_case(case: Case) -> FilmCase:
    """What `qvg bench` calls a case of the demo film."""
    path, light = case.prompt.split(" by ")
    return FilmCase(case.seed, path, case.frames, light, noise=case.seed)


class WorldTarget:
    """Walks through the demo world; a prompt is a camera path."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self._model = load_demo_world()

    @staticmethod
    def check(case: Case) -> None:
        """ConfigError for a path or length that is no walk."""
        plan_walk(case.prompt, case.frames, case.seed)

    def make(self, case: Case, choice: Choice, watch: PhaseWatch, server: str = "") -> Video:
        """One walk."""
        model, walk = self._model, walk_case(case)
        spec, rope, config = model.config.cache_spec(), model.config.rope(), choice.settings
        walker: Denoiser = DemoWorldDenoiser(model)
        if isinstance(config, StudyRun):
            walker = config.denoiser(walker)
        pictures, sizes = [], list[int]()
        with _open(config, spec, rope, case.frames) as cache:
            watch.watch(cache)
            blocks = generate(walker, cache, walk.plan.origins, settings(case.seed), walk.given(model))
            while True:
                with watch.phase("denoise"):
                    block = next(blocks, None)
                if block is None:
                    break
                with watch.phase("decode"):
                    pictures.append(picture(block.latent))
                sizes.append(block.cache.total)
                check_bytes(cache, config, len(pictures), block.cache)
                components = block.cache.by_component()
            beside = {"weights": _bytes_of(model), "workspace": cache.workspace.nbytes}
        video = Video(np.stack(pictures), GIVEN_FRAMES, sizes, components, spec.exact_bytes(case.frames), max(sizes), beside)
        video.fps = FRAMES_PER_SECOND
        video.visits_db = revisit_psnr_db(pictures, visits(walk.plan.positions, VISIT_GAP_FRAMES))
        video.remarks.append("the demo world paints pictures: it has no VAE, and decoding is rounding")
        return video


class FilmTarget:
    """Films by the demo film; a prompt is `on` or `back`, what the camera does after its first turn, and the light."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self._model, self._codec = load_demo_film()
        self._prompts = FilmPrompts(self._model)

    @staticmethod
    def check(case: Case) -> None:
        """ConfigError for a prompt or length that is no film."""
        if case.prompt not in FILM_PROMPTS:
            raise ConfigError(f"prompt {quoted(case.prompt)} is none of the film's; use some of {', '.join(FILM_PROMPTS)}")
        least = FILM_GIVEN + BLOCK_FRAMES
        if case.frames % BLOCK_FRAMES or case.frames < least:
            raise ConfigError(
                f"frames is {shown(case.frames, 20)}, but a film has a multiple of {BLOCK_FRAMES} from {least} on, of which "
                f"{FILM_GIVEN} are given"
            )

    def make(self, case: Case, choice: Choice, watch: PhaseWatch, server: str = "") -> Video:
        """One film."""
        plan = film_case(case).plan
        model, codec, config = self._model, self._codec, choice.settings
        caches, latents, sizes = list[KVCache](), list[Tensor](), list[int]()
        with torch.inference_mode():
            given = given_blocks(plan, codec, FILM_GIVEN // BLOCK_FRAMES)
        base = EXACT if isinstance(config, StudyRun) else config
        opened = _watched(opener(config, case.frames), watch)
        blocks = roll_out(model, self._prompts, plan.directions, base, given, case.seed, caches=caches, open_cache=opened)
        while True:
            with watch.phase("denoise"):
                block = next(blocks, None)
            if block is None:
                break
            latents.append(block.latent[0])
            sizes += [block.cache.total] * BLOCK_FRAMES
            check_bytes(caches[0], config, len(sizes), block.cache)
            components = block.cache.by_component()
            if len(sizes) == case.frames:
                if caches[0].config.codec != "none":
                    caches[0].verify_encoded()
                beside = {"weights": _bytes_of(model) + _bytes_of(codec), "workspace": caches[0].workspace.nbytes}
        with watch.phase("decode"), torch.inference_mode():
            pictures = decoded(codec, torch.cat(latents))
        exact_bytes = caches[0].spec.exact_bytes(case.frames)
        video = Video(pictures, FILM_GIVEN, sizes, components, exact_bytes, max(sizes), beside)
        with torch.inference_mode():
            real = decoded(codec, codec.encode(plan.pictures()))
        pair = [torch.from_numpy(each[FILM_GIVEN:]) for each in (real, pictures)]
        video.truth_db = round(float(psnr_db(*pair).mean()), 3)
        return video


def _open(config: Settings, spec: CacheSpec, rope: GridRope, frames: int) -> KVCache:
    return config.cache(spec, rope, frames) if isinstance(config, StudyRun) else KVCache(spec, config, rope)


def _watched(
    open_cache: Callable[[CacheSpec, QVGConfig, GridRope], KVCache], watch: PhaseWatch
) -> Callable[[CacheSpec, QVGConfig, GridRope], KVCache]:
    return lambda spec, config, rope: watch.watch(open_cache(spec, config, rope))


def _bytes_of(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())
