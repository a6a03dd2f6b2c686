"""A world that is walked through chunk by chunk, and goes on from where it stands. No ComfyUI."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..cache import KVCache
from ..camera.cameras import Cameras
from ..camera.labels import action_labels
from ..camera.overlap import FieldOfView
from ..camera.selection import MemoryRule, select_context
from ..errors import ConfigError
from ..models.common.world_memory import WorldMemory
from ..models.common.world_schedule import CHUNK_FRAMES, CONTEXT_TIMESTEP, ChunkPlan, chunks_of, plan_chunk, timesteps


class WorldModel(Protocol):
    """What the loop asks of a network, such as `qvg.models.worldplay_wan.network.WorldPlay`. What it hands to `attend` is the
    memory's."""

    def __call__(self, x: Tensor, t: Tensor, prompt: Any, attend: Callable[..., Tensor], labels: Tensor | None = None) -> Tensor:
        """Velocity of x [B, F, C, h, w] at timesteps t [B, F], 0 to 1000, with action labels [B, F]."""

    def record(self, x: Tensor, t: Tensor, prompt: Any, recording: WorldMemory, labels: Tensor | None = None) -> None:
        """The context pass: leaves keys and values of finished frames."""


class WorldPrompt(Protocol):
    """What a network has read of a text."""

    def check(self, cache: KVCache) -> None:
        """Raise ConfigError where it is less exact than the cache is to be."""


@dataclass
class World:
    """The state of a walk. Change `prompt` between two chunks to change what is there; None: the network has one of its own.

    mode       one of `schedule.MODES`
    rule       which frames become context in mode "vendor", by what `field_of_view` counts; None: all of them
    steps      timesteps from 1000 down to 0; Euler steps lie between them
    latents    finished chunks, each [B, 4, C, h, w]
    context    frames that the newest of them saw
    """

    model: WorldModel
    memory: WorldMemory
    prompt: WorldPrompt | None
    mode: str = "vendor"
    rule: MemoryRule | None = None
    field_of_view: FieldOfView | None = None
    steps: tuple[float, ...] = timesteps(4, 8.0)
    latents: list[Tensor] = field(default_factory=list)
    context: tuple[int, ...] = ()

    @torch.inference_mode()
    def next_chunk(
        self,
        noise: Tensor,
        cameras: Cameras,
        image: Tensor | None = None,
        interrupt: Callable[[], None] | None = None,
    ) -> Tensor:
        """Paint four more latent frames. -> [B, 4, C, h, w], which joins `latents`.

        noise      [B, 4, C, h, w], where the chunk begins
        cameras    of all frames from the first one on; more than are needed may be there already
        image      latent of the first picture [B, 1, C, h, w]; for the first chunk only
        interrupt  called before every pass of the model; whatever it raises ends the chunk, and the world stands as before

        Raises ConfigError where the cameras end before the chunk does, an image comes later than the first chunk, or a merged
        prompt meets a memory that is to be exact.
        """
        plan = self._plan(cameras)
        if self.prompt is not None:
            self.prompt.check(self.memory.cache)
        if image is not None and plan.index:
            raise ConfigError(f"a first picture was given for chunk {plan.index}, but it starts the world; give it with chunk 0")
        labels = torch.from_numpy(action_labels(cameras.poses[: plan.frames.stop]))
        self._remember(plan, cameras, labels, interrupt)
        latent = self._paint(plan, cameras, labels, noise, image, interrupt)
        self.latents.append(latent)
        self.context = plan.context
        return latent

    @property
    def memories(self) -> list[WorldMemory]:
        """All of them, to be freed."""
        return [self.memory]

    def adopt(self, latent: Tensor) -> None:
        """Go on from frames [B, F, C, h, w] that were painted elsewhere; what is to be remembered of them is computed when the
        next chunk is. Raises ConfigError unless they are whole chunks."""
        self.latents.extend(latent.split(CHUNK_FRAMES, 1) if chunks_of(latent.shape[1]) else ())

    def _remember(self, plan: ChunkPlan, cameras: Cameras, labels: Tensor, interrupt: Callable[[], None] | None) -> None:
        """The context pass, and those of earlier chunks that were adopted: one unbroken history is written chunk by chunk."""
        first = plan.index if plan.afresh else 1 + self.memory.cache.frames_committed // CHUNK_FRAMES
        for each in [plan_chunk(index, self.mode) for index in range(first, plan.index)] + [plan]:
            if each.encode and not self.memory.holds(each):
                self._call(interrupt)
                self._record(each, cameras, labels)

    def _plan(self, cameras: Cameras) -> ChunkPlan:
        index, rule = len(self.latents), self.rule
        last = (index + 1) * CHUNK_FRAMES
        if len(cameras) < last:
            raise ConfigError(f"the camera path has {len(cameras)} poses, but chunk {index} ends with frame {last}; lengthen it")
        if rule is None:
            return plan_chunk(index, self.mode)
        views = torch.from_numpy(cameras.views()[:last])
        seen = self.field_of_view = self.field_of_view or FieldOfView()
        return plan_chunk(index, self.mode, lambda current: select_context(rule, views, current, seen))

    def _record(self, plan: ChunkPlan, cameras: Cameras, labels: Tensor) -> None:
        frames = list(plan.encode)
        x = torch.cat(self.latents, 1)[:, frames]
        self.memory.begin_context(plan, cameras)
        t = torch.full(x.shape[:2], CONTEXT_TIMESTEP, device=x.device)
        self.model.record(x, t, self.prompt, self.memory, labels[frames].expand(x.shape[:2]))

    def _paint(
        self,
        plan: ChunkPlan,
        cameras: Cameras,
        labels: Tensor,
        noise: Tensor,
        image: Tensor | None,
        interrupt: Callable[[], None] | None,
    ) -> Tensor:
        self.memory.begin_chunk(plan, cameras)
        x, given = noise.clone(), 0 if image is None else 1
        if image is not None:
            x[:, :given] = image
        labels = labels[list(plan.frames)].expand(x.shape[:2])
        for level, following in itertools.pairwise(self.steps):
            self._call(interrupt)
            t = torch.full(x.shape[:2], level, device=x.device)
            t[:, :given] = CONTEXT_TIMESTEP
            velocity = self.model(x, t, self.prompt, self.memory.attend, labels)
            x[:, given:] += (following - level) / 1000 * velocity[:, given:]
        return x

    @staticmethod
    def _call(interrupt: Callable[[], None] | None) -> None:
        if interrupt is not None:
            interrupt()
