"""What a walk through a world will be, and what cannot work, before weights are loaded; and the room that it takes."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....qvg import CacheSpec, ConfigError, GridRope, QVGConfig
from ....qvg.camera.cameras import Cameras
from ....qvg.camera.selection import MemoryRule
from ....qvg.models.common.world_memory import WorldMemory, vendor_config, world_memory
from ....qvg.models.common.world_schedule import CHUNK_FRAMES, check_frames
from ....qvg.sampling import place_blocks
from ...prompts import FRAME_KEY, PromptStart, prompt_starts
from ..conditioning import check_conditioning
from ..memory import cache_bytes_needed, give_back, make_room
from ..noise_mask import kept_frames
from ..run import ignored_patches, refuse_other_loops
from ..settings import CAMERAS_KEY, CacheSettings, settings_of
from .face import world_of

logger = logging.getLogger(__name__)

# Where transformer_options have the `WorldPlan`, and our sampler has its `WorldOptions`.
PLAN_KEY, OPTIONS = "qvg_world_plan", "options"


@dataclass(frozen=True)
class WorldOptions:
    """What World Sampler's widgets say. `memory_frames` 0: all of them; `recent_frames` of them are the newest, 0: all but one
    clip."""

    mode: str = "vendor"
    memory_frames: int = 16
    recent_frames: int = 12
    layout: str = "once"
    keep_finished: bool = True

    def rule(self, first_frames: int = 0) -> MemoryRule | None:
        """Which frames a chunk sees, `first_frames` at the beginning besides; None for everything."""
        if self.mode != "vendor" or self.memory_frames == 0:
            return None
        most = self.memory_frames - CHUNK_FRAMES
        recent = min(self.recent_frames or most, most)
        if recent < self.recent_frames:
            logger.info(
                "QVG: recent_frames is %d, but of memory_frames %d a clip of %d is found by where the camera looks; the newest "
                "%d are remembered",
                self.recent_frames,
                self.memory_frames,
                CHUNK_FRAMES,
                recent,
            )
        context = self.memory_frames + first_frames
        # The official rule for HunyuanVideo takes everything while it is no more than it holds, the one for Wan while it is less.
        return MemoryRule(context, recent, context + bool(first_frames), first_frames)


@dataclass(frozen=True)
class WorldPlan:
    """One run. `settings` are the MODEL's, `config` what they become in this mode. `levels` are timesteps, 1000 down to 0;
    `prompts` say from which chunk on each holds, none where there is but one."""

    options: WorldOptions
    settings: CacheSettings
    config: QVGConfig
    spec: CacheSpec
    rope: GridRope
    cameras: Cameras
    frames: int
    given: int
    levels: tuple[float, ...]
    rule: MemoryRule | None
    prompts: tuple[PromptStart, ...]
    cfg: float = 1.0

    @property
    def chunks(self) -> int:
        """Of the whole video, given ones included."""
        return self.frames // CHUNK_FRAMES

    @property
    def given_chunks(self) -> int:
        """Chunks that nothing is left to be painted of."""
        return self.given // CHUNK_FRAMES

    @property
    def remembered_frames(self) -> int:
        """The most that memory holds at once."""
        history = self.frames - CHUNK_FRAMES
        return history if self.rule is None else min(history, self.rule.context_frames)

    @property
    def pass_frames(self) -> int:
        """The most that one pass of the network runs over."""
        return CHUNK_FRAMES if self.options.mode == "incremental" else max(CHUNK_FRAMES, self.remembered_frames)

    @property
    def passes(self) -> int:
        """Of the network, over the whole run; it is `World` that decides, so this is for a progress bar."""
        painted = self.chunks - self.given_chunks
        contexts = self.chunks - 1 if self.options.mode != "vendor" else self.chunks - max(1, self.given_chunks)
        return (painted * (len(self.levels) - 1) + contexts) * self.memories

    @property
    def memories(self) -> int:
        """One for each text."""
        return 2 if self.cfg > 1 else 1

    def memory(self) -> WorldMemory:
        """An empty one."""
        return world_memory(self.spec, self.config, self.rope, self.options.layout)


def make_plan(guider: Any, noise: Tensor, sampler: Any, sigmas: Tensor, denoise_mask: Tensor | None) -> WorldPlan:
    """Raises ConfigError for what cannot work, in a sentence. noise [B, C, F, h, w]."""
    base_model = guider.model_patcher.model
    world, options = world_of(base_model), _options(sampler, world_of(base_model))
    cfg = getattr(guider, "cfg", 1.0)
    refuse_other_loops(guider.model_options)
    check_conditioning(guider.conds, world.reads, world.name, "and give a first picture to 'World Start'")
    cameras = _cameras(guider)
    _check_latent(noise, world, len(cameras))
    rule, settings = options.rule(world.first_frames), settings_of(guider.model_options)
    world.check_config(base_model, settings.config)
    if settings.study:
        raise ConfigError(
            f"{settings.study} keeps old frames as one token or in codes of their own, which {world.name} cannot see along its "
            "cameras; choose another mode of QVG KV Cache, or a method of the study that keeps all frames alike"
        )
    given = _given(denoise_mask, noise.shape[2])
    world.check_guider(cfg, guider.conds, given)
    grid = (noise.shape[3] // world.patch, noise.shape[4] // world.patch)
    config, chunk_frames = settings.config, CHUNK_FRAMES
    if options.mode == "vendor":
        chunk_frames = max(CHUNK_FRAMES, noise.shape[2] - CHUNK_FRAMES if rule is None else rule.context_frames)
        config = vendor_config(config, chunk_frames)
    spec = world.cache_spec(base_model, grid, chunk_frames, noise.shape[0], config.codec)
    names = ignored_patches(guider.model_options, guider.model_patcher)
    if names:
        logger.warning("QVG: %s attends through its own cache; without effect on it: %s", world.name, ", ".join(names))
    levels = _levels(sigmas)
    prompts, rope, frames = _prompts(guider, noise.shape[2]), world.rope(base_model, grid), noise.shape[2]
    plan = WorldPlan(options, settings, config, spec, rope, cameras, frames, given, levels, rule, prompts, cfg)
    plan.memory()  # refuses settings that do not go together
    return plan


def outer_sample(
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Core's wrapper around a whole run: refuse what cannot work before weights are loaded. Options are this run's own."""
    guider = executor.class_obj
    plan = make_plan(guider, noise, sampler, sigmas, denoise_mask)
    guider.model_options.setdefault("transformer_options", {})[PLAN_KEY] = plan
    try:
        samples: Tensor = executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
        return samples
    finally:
        give_back()


def prepare_sampling(executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
    """Core reserves activations of all frames at once and nothing for the cache; a pass sees some of them."""
    options = kwargs.get("model_options") or {}
    plan: WorldPlan | None = options.get("transformer_options", {}).get(PLAN_KEY)
    if plan is None:
        return executor(model, noise_shape, *args, **kwargs)
    result = executor(model, [*noise_shape[:2], plan.pass_frames, *noise_shape[3:]], *args, **kwargs)
    make_room(plan.memories * cache_bytes_needed(plan.memory().cache.spec, plan.config, plan.remembered_frames), model)
    return result


def _options(sampler: Any, world: Any) -> WorldOptions:
    options = getattr(sampler, "extra_options", {}).get(OPTIONS)
    if isinstance(options, WorldOptions):
        return options
    name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)
    raise ConfigError(
        f"the sampler is {name}, but {world.name} paints a world chunk after chunk and must know its cameras; connect 'World "
        "Sampler' to SamplerCustomAdvanced"
    )


def _prompts(guider: Any, frames: int) -> tuple[PromptStart, ...]:
    entries = [cond for conds in guider.conds.values() for cond in conds]
    starts = prompt_starts(entries, place_blocks(frames, 0, CHUNK_FRAMES))
    if any(start.recache for start in starts):
        logger.info("QVG: recache is without effect in a world: mode vendor sees its context with the new prompt anyway")
    return starts


def conds_from(conds: dict[str, list[Any]], start: PromptStart | None) -> dict[str, list[Any]]:
    """Of a guider's conds, those that hold from `start` on; None: all of them."""
    if start is None:
        return conds
    return {name: [cond for cond in each if cond.get(FRAME_KEY, start.frame) == start.frame] for name, each in conds.items()}


def _cameras(guider: Any) -> Cameras:
    conds = [cond for conds in guider.conds.values() for cond in conds]
    cameras: Cameras | None = next((cond[CAMERAS_KEY] for cond in conds if CAMERAS_KEY in cond), None)
    if cameras is None:
        raise ConfigError("the conditioning holds no camera; put 'World Start' between the prompt and the guider")
    return cameras


def _check_latent(noise: Tensor, world: Any, cameras: int) -> None:
    fits = noise.ndim == 5 and noise.shape[1] == world.channels
    if not fits or noise.shape[3] % world.patch or noise.shape[4] % world.patch:
        sides = "height, width" if world.patch == 1 else "even height, even width"
        raise ConfigError(
            f"the latent is {list(noise.shape)}, but {world.name} makes [batch, {world.channels}, frames, {sides}]; take it from "
            "'World Start', with this model's own VAE"
        )
    frames = noise.shape[2]
    check_frames(frames)
    if cameras != frames:
        raise ConfigError(f"the latent has {frames} frames, but the camera {cameras}; take both from one 'World Start'")


def _given(mask: Tensor | None, frames: int) -> int:
    """Frames at the beginning that are there already: one, the first picture, or whole chunks."""
    given = kept_frames(mask)
    if given >= frames:
        raise ConfigError(f"all {frames} latent frames are given, so nothing is to be painted; let the camera walk on")
    if given > 1 and given % CHUNK_FRAMES:
        raise ConfigError(
            f"the noise mask keeps {given} latent frames, but a world goes on from one picture or from whole chunks of "
            f"{CHUNK_FRAMES}; give it {given // CHUNK_FRAMES * CHUNK_FRAMES or 1}"
        )
    return given


def _levels(sigmas: Tensor) -> tuple[float, ...]:
    """Timesteps that fall to 0; a chunk must be finished before the next one can look at it."""
    levels = [1000 * level for level in sigmas.to(torch.float64).tolist()]
    if levels[-1] != 0 or any(following >= level for level, following in itertools.pairwise(levels)):
        shown = ", ".join(f"{level / 1000:.3g}" for level in levels)
        raise ConfigError(
            f"the sigmas are {shown}, but must fall from step to step and end at 0: every chunk is finished before the next one "
            "begins; connect 'Trained Sigmas'"
        )
    return tuple(levels)
