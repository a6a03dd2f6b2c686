"""A walk through a world as a SAMPLER for ComfyUI's SamplerCustomAdvanced.

The loop is `qvg.sampling.world.World`; here core's network runs in it, behind ComfyUI's guider.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import fields
from typing import Any

import comfy.model_management as mm
import comfy.samplers
import torch
from torch import Tensor

from ....qvg import CacheBytes, ConfigError
from ....qvg.models.common.world_schedule import CHUNK_FRAMES
from ....qvg.models.registry import joined, loaders
from ....qvg.sampling import Block
from ....qvg.sampling.world import World
from ...records import RECORDS, RunRecord
from ..keep import KeptRun, finished_blocks
from ..progress import Progress, say, say_how_it_ended
from .face import world_of
from .run import OPTIONS, PLAN_KEY, WorldOptions, WorldPlan

logger = logging.getLogger(__name__)


def make_world_sampler(options: WorldOptions) -> Any:
    """A SAMPLER."""
    return comfy.samplers.KSAMPLER(sample_world, {OPTIONS: options})


@torch.no_grad()
def sample_world(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    options: WorldOptions | None = None,
) -> Tensor:
    """Paint chunk after chunk. x: the whole video at the first noise level, [B, C, F, h, w] -> the same, clean."""
    extra_args = {"model_options": {}} if extra_args is None else extra_args
    guider = model.inner_model
    base_model = guider.inner_model
    plan: WorldPlan | None = extra_args["model_options"].get("transformer_options", {}).get(PLAN_KEY)
    if plan is None:
        raise ConfigError(
            f"World Sampler walks through worlds, and {type(base_model).__name__} is none; connect the MODEL of "
            f"{joined([repr(node) for node in loaders(lambda family: family.memory is not None)], 'or')}"
        )
    progress = Progress(x.device, base_model.latent_format, plan.passes, plan.chunks)
    network, world = world_of(base_model).walk(plan, guider, extra_args, progress)
    walk = _Walk(plan, world)
    kept: KeptRun | None = None
    try:
        with contextlib.ExitStack() as ended:
            kept = ended.enter_context(finished_blocks(base_model, plan.given_chunks * CHUNK_FRAMES, plan.options.keep_finished))
            walk.adopt(model.latent_image, kept)
            for memory in walk.world.memories:
                ended.enter_context(memory)
            for index in range(plan.given_chunks, plan.chunks):
                network.take_prompt(next((start for start in reversed(plan.prompts) if start.block <= index), None))
                block = walk.paint(index, x, model.latent_image)
                if kept is not None:
                    kept.add(block.latent)
                progress.finished(block, walk.exact_bytes[-1])
            record = walk.record(world_of(base_model).name, x.device)
    except BaseException as error:  # an interrupt is no Exception to ComfyUI
        say_how_it_ended(error, walk.world.memory.cache, len(walk.world.latents), plan.chunks)
        if kept is not None:
            kept.keep([latent.transpose(1, 2) for latent in walk.world.latents])
        raise
    finally:
        network.take_prompt(None)
    samples = torch.cat(walk.world.latents, 1).transpose(1, 2).contiguous()
    RECORDS.add(base_model.process_latent_out(samples.float()), record)
    say(record.headline())
    if callback is not None:
        # What ComfyUI calls denoised_output is what the last callback got: the video, not its last chunk.
        seen = {"x": samples, "denoised": samples, "sigma": sigmas[-1], "sigma_hat": sigmas[-1]}
        callback({**seen, "i": len(sigmas) - 2})
    return samples


def _cache_bytes(world: World) -> CacheBytes:
    """All its memories."""
    sizes = [memory.cache.nbytes() for memory in world.memories]
    return CacheBytes(**{each.name: sum(getattr(size, each.name) for size in sizes) for each in fields(CacheBytes)})


class _Walk:
    """A run under way, and what it has cost so far."""

    def __init__(self, plan: WorldPlan, world: World):
        self.plan, self.world = plan, world
        world.steps = plan.levels
        self.blocks: list[Block] = []
        self._context_frames: list[int] = []

    def adopt(self, latent: Tensor, kept: KeptRun | None) -> None:
        """Chunks that are given; they cost nothing, and are remembered when the next one is painted."""
        given = latent[:, :, : self.plan.given_chunks * CHUNK_FRAMES]
        if self.plan.given_chunks:
            self.world.adopt(given.transpose(1, 2).contiguous())
        if self.plan.given_chunks and kept is not None:
            kept.add(given)

    def paint(self, index: int, x: Tensor, latent: Tensor) -> Block:
        """The next chunk, from the noise in x; a first picture is in `latent`. Both [B, C, F, h, w]."""
        began, first = time.perf_counter(), index * CHUNK_FRAMES
        noise = x[:, :, first : first + CHUNK_FRAMES].transpose(1, 2)
        image = latent[:, :, :1].transpose(1, 2) if self.plan.given == 1 and index == 0 else None
        painted = self.world.next_chunk(noise, self.plan.cameras, image, mm.throw_exception_if_processing_interrupted)
        held = _cache_bytes(self.world)
        block = Block(index, first, painted.transpose(1, 2), time.perf_counter() - began, held)
        context = self.world.context
        logger.info("QVG: chunk %d of %d sees %s", index + 1, self.plan.chunks, _listed(context))
        self.blocks.append(block)
        self._context_frames.append(len(context))
        return block

    @property
    def exact_bytes(self) -> list[int]:
        """For every painted chunk, what its context takes at 16 bits per value."""
        spec = self.world.memory.cache.spec
        return [self.plan.memories * spec.exact_bytes(frames) for frames in self._context_frames]

    def record(self, name: str, device: Any) -> RunRecord:
        """The run in numbers; must be made before the cache is freed."""
        plan, cache = self.plan, self.world.memory.cache
        skipped = plan.given_chunks * CHUNK_FRAMES
        sizes = [block.cache.total for block in self.blocks]
        seconds = [block.seconds / CHUNK_FRAMES for block in self.blocks]
        return RunRecord(
            model=name,
            device=str(device),
            config=plan.settings.config,
            span_frames=cache.policy.span_chunks * cache.spec.chunk_frames,
            cache_bytes=_per_frame(skipped, sizes),
            exact_bytes=_per_frame(skipped, self.exact_bytes),
            seconds=_per_frame(skipped, seconds),
            components=_cache_bytes(self.world),
            workspace_bytes=cache.workspace.nbytes,
            given_frames=plan.given,
            read=tuple(cache.explain()),
            placement=cache.placement(),
            remembers=self._remembers(),
        )

    def _remembers(self) -> str:
        last, options = self._context_frames[-1], self.plan.options
        how = "all of them encoded together" if options.mode == "vendor" else "as they were first written"
        stored = _LAYOUTS[options.layout]
        return f"mode {options.mode}: the last chunk sees {last} earlier frames, {how}; keys and values stored {stored}"


_LAYOUTS = {"once": "once, before they are rotated", "vendor": "twice, as they were rotated"}


def _per_frame(given: int, values: list[Any]) -> tuple[Any, ...]:
    """A value per latent frame; nothing was spent on those that were given."""
    return (*(type(values[0])() for _ in range(given)), *(value for value in values for _ in range(CHUNK_FRAMES)))


def _listed(frames: tuple[int, ...]) -> str:
    """Frames as stretches: 0-3, 8-11."""
    stretches: list[list[int]] = []
    for frame in frames:
        if stretches and stretches[-1][1] == frame - 1:
            stretches[-1][1] = frame
        else:
            stretches.append([frame, frame])
    return "frames " + ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in stretches) if stretches else "no earlier frame"
