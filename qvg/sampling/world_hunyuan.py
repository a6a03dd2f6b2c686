"""A walk on HunyuanVideo 1.5: every frame is painted, the first one too, with the picture to start with beside it; and it may be
guided, which takes a second text and a second memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..camera.cameras import Cameras
from ..errors import ConfigError
from ..models.common.world_memory import WorldMemory
from ..models.common.world_schedule import CONTEXT_TIMESTEP, ChunkPlan, timesteps
from ..models.worldplay_hunyuan.network import with_condition
from .world import World

SHIFT = 5.0
DISTILLED_STEPS = 4
FULL_STEPS = 50  # of the model that is not distilled, with a guidance of 6 and an empty negative prompt


class Guidance(NamedTuple):
    """Velocities are taken `scale` times as far from what `prompt` asks for; its memory is as long as the other one's."""

    prompt: Any
    memory: WorldMemory
    scale: float


@dataclass
class HunyuanWorld(World):
    """As `World`, with the first latent in `image`, [B, 1, C, h, w]: `next_chunk` keeps what it gets with chunk 0, and a
    world that goes on from adopted frames needs it set. `guidance` is for the model that is not distilled."""

    steps: tuple[float, ...] = timesteps(DISTILLED_STEPS, SHIFT)
    image: Tensor | None = None
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        if self.guidance and self.guidance.memory is self.memory:
            raise ConfigError("both texts were given one memory, but its keys and values depend on the text; give each its own")

    @property
    def memories(self) -> list[WorldMemory]:
        """See `World`."""
        return [memory for _, memory in self._texts()]

    def adopt(self, latent: Tensor) -> None:
        """See `World`. Where no picture is known, the first frame, which was painted after it, stands for it."""
        super().adopt(latent)
        if self.image is None and self.latents:
            self.image = self.latents[0][:, :1]

    def _record(self, plan: ChunkPlan, cameras: Cameras, labels: Tensor) -> None:
        frames = list(plan.encode)
        latents = torch.cat(self.latents, 1)[:, frames]
        x = with_condition(latents, frames, self.image)
        t = torch.full(x.shape[:2], CONTEXT_TIMESTEP, device=x.device)
        # The prompt's own memory comes last: once it holds the plan, all of them do.
        for prompt, memory in reversed(list(self._texts())):
            if not memory.holds(plan):
                memory.begin_context(plan, cameras)
                self.model.record(x, t, prompt, memory, labels[frames].expand(x.shape[:2]))

    def _paint(
        self,
        plan: ChunkPlan,
        cameras: Cameras,
        labels: Tensor,
        noise: Tensor,
        image: Tensor | None,
        interrupt: Callable[[], None] | None,
    ) -> Tensor:
        if not plan.index:
            self.image = image
        texts, frames = list(self._texts()), list(plan.frames)
        for _, memory in texts:
            memory.begin_chunk(plan, cameras)
        x, labels = noise.clone(), labels[frames].expand(noise.shape[:2])
        for level, following in itertools.pairwise(self.steps):
            self._call(interrupt)
            t = torch.full(x.shape[:2], level, device=x.device)
            read = with_condition(x, frames, self.image)
            velocities = [self.model(read, t, prompt, memory.attend, labels) for prompt, memory in texts]
            x += (following - level) / 1000 * self._guided(*velocities)
        return x

    def _texts(self) -> list[tuple[Any, WorldMemory]]:
        texts: list[tuple[Any, WorldMemory]] = [(self.prompt, self.memory)]
        return texts if self.guidance is None else [*texts, self.guidance[:2]]

    def _guided(self, wanted: Tensor, unwanted: Tensor | None = None) -> Tensor:
        if unwanted is None or self.guidance is None:
            return wanted
        return unwanted + self.guidance.scale * (wanted - unwanted)
