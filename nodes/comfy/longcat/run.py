"""What a LongCat video will be, and what cannot work, before weights are loaded; and the room that it takes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ....qvg import ConfigError, QVGConfig
from ....qvg.models.common.variants import CausalVariant
from ....qvg.models.longcat.config import LongCatConfig, SegmentFrames, token_grid
from ....qvg.models.longcat.memory import ConditionCache, condition_config
from ....qvg.models.longcat.schedule import GUIDANCE, noise_levels
from ....qvg.models.longcat.variants import DISTILLED
from ....qvg.sampling import BlockPlace
from ...prompts import PromptStart, prompt_starts
from ..conditioning import check_conditioning, check_prompt
from ..memory import cache_bytes_needed, give_back, make_room
from ..model_plan import refuse_what_cannot_fit
from ..noise_mask import kept_frames
from ..run import ignored_patches, refuse_other_loops
from ..settings import CacheSettings, settings_of, variant_of
from .shape import NAME, check_config, longcat_shape

logger = logging.getLogger(__name__)

# Where conditioning has its `SegmentFrames`, transformer_options the `LongCatPlan`, and our sampler its `LongCatOptions`.
FRAMES_KEY, PLAN_KEY, OPTIONS = "qvg_longcat_frames", "qvg_longcat_plan", "options"
PICTURES, LATENTS = "pictures", "latents"
AUTO, ON, OFF = "auto", "on", "off"
# A segment that begins with one picture has it in every pass, as released; what has more remembers them.
_IN_EVERY_PASS = 1


@dataclass(frozen=True)
class LongCatOptions:
    """What LongCat Sampler's widgets say. `carry`: what of a segment the next one is conditioned on; `vae` for pictures."""

    carry: str = PICTURES
    vae: Any = None
    enhance_hf: str = AUTO
    exact_timesteps: bool = False
    keep_finished: bool = True


@dataclass(frozen=True)
class SegmentPlace(BlockPlace):
    """A segment's new latent frames in the video; of the first one, those that are given, too. `condition`: latent frames that it
    is conditioned on; `sigmas`: its noise levels."""

    condition: int = 0
    sigmas: tuple[float, ...] = ()

    @property
    def new_frames(self) -> int:
        """Those that are made."""
        return self.frames - (self.condition if self.index == 0 else 0)


@dataclass(frozen=True)
class LongCatPlan:
    """One run. `settings` are the MODEL's; `prompts` say from which segment on each holds, none where there is but one; `dtype`
    is what the memory keeps exactly."""

    options: LongCatOptions
    settings: CacheSettings
    shape: LongCatConfig
    frames: SegmentFrames
    segments: tuple[SegmentPlace, ...]
    size: tuple[int, int]
    prompts: tuple[PromptStart, ...]
    dtype: Any
    cfg: float = 1.0

    @property
    def given(self) -> int:
        """Latent frames that are there already."""
        return self.segments[0].condition

    @property
    def remembered_frames(self) -> int:
        """The most that memory holds at once; 0 where no segment remembers anything."""
        return max(place.condition if remembers(place) else 0 for place in self.segments)

    @property
    def pass_frames(self) -> int:
        """The most that one pass of the network runs over."""
        return max(place.new_frames + (0 if remembers(place) else place.condition) for place in self.segments)

    @property
    def passes(self) -> int:
        """Of the network, guidance's two counted as one."""
        return sum(len(place.sigmas) - 1 + remembers(place) for place in self.segments)

    def memory(self, frames: int) -> ConditionCache:
        """An empty one, for so many latent frames."""
        config = self.settings.config
        return ConditionCache(self.shape, *self.size, frames, config, self.dtype)


def remembers(place: SegmentPlace) -> bool:
    """Whether a segment has a memory of what it is conditioned on."""
    return place.condition > _IN_EVERY_PASS


def make_plan(guider: Any, noise: Tensor, sampler: Any, sigmas: Tensor, denoise_mask: Tensor | None) -> LongCatPlan:
    """Raises ConfigError for what cannot work, in a sentence. noise [B, C, F, h, w]."""
    base_model = guider.model_patcher.model
    options, variant = _options(sampler), variant_of(guider.model_options)
    shape, settings = base_model.diffusion_model.config, settings_of(guider.model_options)
    refuse_other_loops(guider.model_options)
    check_conditioning(guider.conds, frozenset(), NAME, "and give a first picture to 'LongCat Start'")
    check_prompt(guider.conds, shape.text_channels, NAME, "CLIP Text Encode with umt5-xxl, type wan")
    cfg = getattr(guider, "cfg", 1.0)
    _check_guidance(cfg, variant)
    frames = _frames(guider)
    size = _check_latent(noise, shape)
    check_config(base_model, settings.config)
    _refuse_study(settings)
    given = kept_frames(denoise_mask)
    levels = _levels(sigmas)
    enhanced = _enhances(options.enhance_hf, variant)
    segments = tuple(_segments(noise.shape[2], given, frames, levels, enhanced_levels(levels) if enhanced else levels))
    if len(segments) > 1 and options.carry == PICTURES and options.vae is None:
        raise ConfigError(
            f"the video has {len(segments)} segments, each conditioned on pictures of the one before, and no VAE is connected to "
            "LongCat Sampler; connect Wan 2.1's, or choose latents as carry"
        )
    prompts = prompt_starts((cond for conds in guider.conds.values() for cond in conds), segments)
    if any(start.recache for start in prompts):
        logger.info("QVG: recache is without effect on %s: its memory does not know the prompt", NAME)
    names = ignored_patches(guider.model_options, guider.model_patcher)
    if names:
        logger.warning("QVG: %s attends in its own way; without effect on it: %s", NAME, ", ".join(names))
    compute = base_model.get_dtype_inference()
    dtype = torch.bfloat16 if settings.config.codec != "none" and compute.itemsize > 2 else compute
    plan = LongCatPlan(options, settings, shape, frames, segments, size, prompts, dtype, cfg)
    if plan.remembered_frames:
        plan.memory(plan.remembered_frames)  # refuses settings that do not go together
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
    """Core's wrapper around a whole run: refuse what cannot work before weights are loaded."""
    guider = executor.class_obj
    plan = make_plan(guider, noise, sampler, sigmas, denoise_mask)
    if plan.remembered_frames:
        model, frames, spec = guider.model_patcher, plan.frames, plan.memory(plan.remembered_frames).spec
        shape = replace(longcat_shape(model), segment_frames=frames.latents, condition_frames=frames.condition_latents)
        spec = replace(spec, chunk_frames=frames.new_latents)
        refuse_what_cannot_fit(model, shape, plan.settings.config, spec, noise.shape[2], token_grid(*plan.size))
    guider.model_options.setdefault("transformer_options", {})[PLAN_KEY] = plan
    try:
        samples: Tensor = executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
        return samples
    finally:
        give_back()


def prepare_sampling(executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
    """Core reserves activations of all frames at once and nothing for the cache; a pass sees one segment's."""
    options = kwargs.get("model_options") or {}
    plan: LongCatPlan | None = options.get("transformer_options", {}).get(PLAN_KEY)
    if plan is None:
        return executor(model, noise_shape, *args, **kwargs)
    result = executor(model, [*noise_shape[:2], plan.pass_frames, *noise_shape[3:]], *args, **kwargs)
    make_room(cache_bytes(plan), model)
    return result


def cache_bytes(plan: LongCatPlan) -> int:
    """What the memory takes on the device, at most."""
    frames = plan.remembered_frames
    if not frames:
        return 0
    config: QVGConfig = condition_config(plan.settings.config, frames)
    return cache_bytes_needed(plan.memory(frames).spec, config, frames)


def enhanced_levels(sigmas: Sequence[float]) -> tuple[float, ...]:
    """With finer steps at low noise: those above 0.5 of these, and the ten that "enhance_hf" ends with."""
    tail = noise_levels(50, enhance_hf=True)[-11:]
    return (*(level for level in sigmas if level > tail[0]), *tail)


def _options(sampler: Any) -> LongCatOptions:
    options = getattr(sampler, "extra_options", {}).get(OPTIONS)
    if isinstance(options, LongCatOptions):
        return options
    name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)
    raise ConfigError(
        f"the sampler is {name}, but {NAME} makes a video segment after segment and must know them; connect 'LongCat Sampler' to "
        "SamplerCustomAdvanced"
    )


def _check_guidance(cfg: float, variant: CausalVariant | None) -> None:
    if variant is DISTILLED and cfg != 1:
        raise ConfigError(
            f"cfg is {cfg}, but LongCat-Video with the distill LoRA has guidance within it; use BasicGuider, or set cfg to 1"
        )
    if cfg < 1:
        raise ConfigError(f"cfg is {cfg}, but guidance begins at 1, none; {NAME} was made for {GUIDANCE:g}")
    if variant is not DISTILLED and cfg == 1:
        logger.warning(
            "QVG: %s was made for cfg %g with a negative prompt; without guidance it follows its prompt less", NAME, GUIDANCE
        )


def _enhances(asked: str, variant: CausalVariant | None) -> bool:
    """Whether segments that go on have finer steps at low noise."""
    if asked == ON and variant is DISTILLED:
        raise ConfigError(
            "enhance_hf is on, but the distilled model was trained at its own steps alone; choose auto or off, or leave the "
            "distill LoRA out"
        )
    return asked == ON or (asked == AUTO and variant is not DISTILLED)


def _refuse_study(settings: CacheSettings) -> None:
    if settings.study:
        raise ConfigError(
            f"{settings.study} keeps old frames in another way than new ones, but {NAME} remembers what a segment is conditioned "
            "on as one; choose another mode of QVG KV Cache"
        )


def _frames(guider: Any) -> SegmentFrames:
    conds = [cond for conds in guider.conds.values() for cond in conds]
    frames: SegmentFrames | None = next((cond[FRAMES_KEY] for cond in conds if FRAMES_KEY in cond), None)
    if frames is None:
        raise ConfigError(
            "the conditioning does not say how long a segment is; put 'LongCat Start' between the prompt and the guider"
        )
    return frames


def _check_latent(noise: Tensor, shape: LongCatConfig) -> tuple[int, int]:
    """Rows and columns."""
    if noise.ndim != 5 or noise.shape[1] != shape.channels:
        raise ConfigError(
            f"the latent is {list(noise.shape)}, but {NAME} makes [1, {shape.channels}, frames, height, width]; take it from "
            "'LongCat Start'"
        )
    if noise.shape[0] != 1:
        raise ConfigError(f"the latent has {noise.shape[0]} videos, but {NAME} makes one at a time; queue them one by one")
    size = (noise.shape[3], noise.shape[4])
    token_grid(*size)
    return size


def _segments(
    total: int, given: int, frames: SegmentFrames, levels: tuple[float, ...], continued: tuple[float, ...]
) -> list[SegmentPlace]:
    """All of a video of `total` latent frames, `given` of which are there. ConfigError where it is not whole segments."""
    if given >= frames.latents:
        raise ConfigError(
            f"{given} latent frames are given, but a segment has {frames.latents}, so it adds nothing; give fewer, or use longer "
            "segments on 'LongCat Start'"
        )
    more, rest = divmod(total - frames.latents, max(1, frames.new_latents))
    if total < frames.latents or rest:
        raise ConfigError(
            f"the latent has {total} frames, which are no whole segments ({frames.latents} latent frames, then "
            f"{frames.new_latents} each); take it from the 'LongCat Start' that the conditioning comes from"
        )
    places = [SegmentPlace(0, 0, frames.latents, False, 0, given, continued if given > _IN_EVERY_PASS else levels)]
    for index in range(1, more + 1):
        first = frames.latents + (index - 1) * frames.new_latents
        sigmas = continued if frames.condition_latents > _IN_EVERY_PASS else levels
        places.append(SegmentPlace(index, first, frames.new_latents, False, index, frames.condition_latents, sigmas))
    return places


def _levels(sigmas: Tensor) -> tuple[float, ...]:
    """Noise levels that fall to 0; a segment must be finished before the next one can look at it."""
    levels = tuple(float(level) for level in sigmas.tolist())
    if len(levels) < 2 or levels[-1] != 0 or any(following >= level for level, following in itertools.pairwise(levels)):
        shown = ", ".join(f"{level:.3g}" for level in levels[:12])
        raise ConfigError(f"the sigmas are {shown}, but must fall from step to step and end at 0; connect 'Trained Sigmas'")
    return levels
