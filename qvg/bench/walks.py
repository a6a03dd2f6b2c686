"""Methods judged by the video: the same walk through the demo world with the exact cache and with a method's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..cache import KVCache
from ..camera import visits
from ..demo.summary import revisit_psnr_db
from ..demo.walk import GIVEN_FRAMES, VISIT_GAP_FRAMES, Walk, picture, plan_walk, settings
from ..models.demo_world import WEIGHTS, DemoWorld, DemoWorldConfig, DemoWorldDenoiser, load_demo_world
from ..sampling import generate
from ..sampling.autoregressive import Denoiser
from ..study.run import StudyRun
from .judge import Instrument, Judge, Made, Pictures, Settings, WalkResult, check_bytes, encoded_tokens
from .openings import Scene

DEMO_WORLD = Instrument("demo world", DemoWorldConfig().cache_spec(), GIVEN_FRAMES)

# Loops of 34 and 32 frames: in 70 frames every place is seen twice.
PATHS = ("d-10,s-7,a-10,w-7", "s-8,d-8,w-8,a-8")
FIRST_SEED = 5001


@dataclass(frozen=True)
class Case:
    """One world, one path, one seed."""

    seed: int
    path: str
    frames: int

    @property
    def plan(self) -> Walk:
        """The walk."""
        return plan_walk(self.path, self.frames, self.seed)

    def given(self, model: DemoWorld) -> list[Tensor]:
        """The first frames as they really look."""
        return self.plan.given(model)


def cases(worlds: int, paths: int, frames: int, first_seed: int = FIRST_SEED) -> list[Case]:
    """Worlds that were not trained on, each walked through on every path."""
    return [Case(first_seed + world, path, frames) for world in range(worlds) for path in PATHS[:paths]]


class Walker(Judge[Case | Scene]):
    """Walks through the demo world."""

    weights_file = WEIGHTS

    def __init__(self, folder: Path, sources: str | None = None, check_bytes: bool = True):
        super().__init__(folder, sources, check_bytes)
        self._model: DemoWorld | None = None

    def revisit_db(self, case: Case | Scene, pictures: Pictures) -> float | None:
        """Between visits."""
        return revisit_psnr_db(list(pictures), visits(case.plan.positions, VISIT_GAP_FRAMES))

    def make(self, case: Case | Scene, config: Settings) -> Made:
        """One walk. `generate` fails if the codec was not called as often as it should have been; the bytes must be those that
        were predicted."""
        if self._model is None:
            self._model = load_demo_world()
        model, plan, pictures, peak = self._model, case.plan, list[Pictures](), 0
        walker: Denoiser = DemoWorldDenoiser(model)
        if isinstance(config, StudyRun):
            memory = config.cache(model.config.cache_spec(), model.config.rope(), case.frames)
            walker = config.denoiser(walker)
        else:
            memory = KVCache(model.config.cache_spec(), config, model.config.rope())
        with memory as cache:
            for block in generate(walker, cache, plan.origins, settings(plan.seed), case.given(model)):
                pictures.append(picture(block.latent))
                peak, counted = max(peak, block.cache.total), block.cache
                if self._check_bytes:
                    check_bytes(cache, config, len(pictures), counted)
            encoded = encoded_tokens(cache)
        return Made(np.stack(pictures), counted.by_component(), peak, encoded)


def pooled(results: Sequence[WalkResult], first: int, last: int) -> float:
    """Mean PSNR of a window of frames over cases."""
    return float(np.mean([result.psnr_db(first, last) for result in results]))
