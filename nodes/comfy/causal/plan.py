"""What a run of ComfyUI's causal Wan model will be, and what cannot work, before its weights are loaded."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ....qvg import CacheSpec, ConfigError, GridRope
from ....qvg.camera.cameras import Cameras
from ....qvg.models.common.solver import Solver
from ....qvg.models.common.variants import CausalVariant
from ....qvg.models.registry import trained_blocks
from ....qvg.models.wan.family import FAMILY
from ....qvg.positions.rope import wan_rope
from ....qvg.sampling import BlockPlace, NoiseLevels, place_blocks
from ...prompts import PIXELS_PER_LATENT, PromptStart, prompt_starts
from ..conditioning import check_conditioning, check_prompt
from ..noise_mask import kept_frames
from ..run import ignored_patches, refuse_other_loops
from ..settings import CacheSettings, settings_of, variant_of
from .own_steps import cameras_of, check_cuts, check_frames, check_solver
from .shape import CORE_NAME, name_of

logger = logging.getLogger(__name__)

_FRAMES_PER_BLOCK = "num_frame_per_block"  # SamplerARVideo's name
# Of a SAMPLER's extra options: says that the loop is ours, and how it runs.
OPTIONS = "options"
LATENT_PIXELS = 8  # of a picture's side become one of the latent's
# What `recompute.Context` shows to a block.
CONTEXT_FRAMES = 3


@dataclass(frozen=True)
class CausalOptions:
    """QVG Causal Sampler's widgets. `frames_per_block` 0 is what the model was trained for; `context_noise` the noise level that
    finished blocks are remembered at; `reindexed` counts positions from the oldest frame in memory; `memory` is "grow" or
    "recompute", and `vae` what the latter's context moves on with."""

    frames_per_block: int = 0
    context_noise: float = 0.0
    first_block_sigmas: tuple[float, ...] | None = None
    reindexed: bool = False
    keep_finished: bool = True
    memory: str = "grow"
    vae: Any = None


@dataclass(frozen=True)
class CausalPlan:
    """One run. `places`: blocks in the order in which they become history, given ones included. `options` of our loop, None where
    it is core's."""

    settings: CacheSettings
    spec: CacheSpec
    grid: tuple[int, int]
    frames: int
    given_frames: int
    places: tuple[BlockPlace, ...]
    options: CausalOptions | None = None
    levels: NoiseLevels | None = None
    prompts: tuple[PromptStart, ...] = ()
    variant: CausalVariant | None = None
    cameras: Cameras | None = None
    title: str = CORE_NAME

    @property
    def solver(self) -> Solver | None:
        """The model's own steps, if it has some."""
        return None if self.variant is None else self.variant.solver

    def position_of(self, place: BlockPlace) -> int | None:
        """Where a block stands that scene cuts have moved; None: where it is."""
        cuts = sum(start.scene_cut and 0 < start.block <= place.index for start in self.prompts)
        gap = 0 if self.variant is None else self.variant.cut_frames
        return place.first_frame + cuts * gap if cuts and gap else None

    @property
    def blocks(self) -> int:
        """Blocks that become history, given ones included."""
        return len(self.places)

    @property
    def reindexed(self) -> bool:
        """Whether positions are counted from the oldest frame in memory; the same as absolute ones where none is forgotten."""
        forgets = self.settings.config.window_frames is not None
        trained = self.variant is not None and self.variant.reindexed
        return forgets and self.options is not None and (self.options.reindexed or trained)

    @property
    def as_core(self) -> bool:
        """Whether keys are kept as core keeps them: exact and rotated."""
        config = self.settings.config
        return config.codec == "none" and not config.merges and not config.skips and not self.reindexed

    @property
    def recomputes(self) -> bool:
        """Whether memory is computed anew before every block."""
        return self.options is not None and self.options.memory == "recompute"

    @property
    def cached_frames(self) -> int:
        """The most that memory holds, the block in work included."""
        return min(self.frames, CONTEXT_FRAMES + self.spec.chunk_frames) if self.recomputes else self.frames

    @property
    def joined_bytes(self) -> int:
        """Beside the cache: core's attention takes one layer's exact keys and values in one piece."""
        return self.spec.predict(self.settings.config, self.cached_frames).total // self.spec.layers if self.as_core else 0

    @property
    def keep_finished(self) -> bool:
        """Whether a run that ends early leaves its finished frames on disk."""
        return self.options is None or self.options.keep_finished

    def rope(self) -> GridRope:
        """Positions of a block's tokens."""
        return wan_rope(*self.grid, self.spec.head_dim)


def make_plan(guider: Any, noise: Tensor, sampler: Any, sigmas: Tensor, denoise_mask: Any) -> CausalPlan:
    """Raises ConfigError for what cannot work, in a sentence. `noise` [B, C, F, H, W] in latent pixels."""
    model_options = guider.model_options
    extra = getattr(sampler, "extra_options", {})
    options = extra.get(OPTIONS) if isinstance(extra.get(OPTIONS), CausalOptions) else None
    per_block = _frames_per_block(sampler, options, variant_of(model_options))
    _check_guider(guider, sigmas, denoise_mask if options is None else None)
    refuse_other_loops(model_options)
    base_model, variant = guider.model_patcher.model, variant_of(model_options)
    _check_conditioning(guider, base_model.diffusion_model)
    check_own(guider, noise)
    if variant is not None and variant.solver is not None:
        check_solver(variant, sigmas, options)
    start = start_latent(model_options)
    _check_latents(noise, start, base_model.latent_format.latent_channels)
    names = ignored_patches(model_options, guider.model_patcher)
    if names:
        logger.warning("QVG: this model attends through its own cache; without effect on it: %s", ", ".join(names))
    given = _given_frames(noise.shape[2], start, denoise_mask)
    if options is not None and given == noise.shape[2]:
        raise ConfigError(f"all {given} latent frames are given, so there is nothing to generate; ask for more frames")
    seen_at_once = per_block if variant is not None and variant.given_by_block else max(1, given)
    check_frames(variant, noise.shape[2], given, per_block)
    in_block = variant is not None and variant.picture_in_block
    places = (
        _cores_blocks(noise.shape[2], given, per_block, seen_at_once)
        if options is None
        else place_blocks(noise.shape[2], given, per_block, is_start=start is not None, in_block=in_block)
    )
    pictures = variant.frame_pictures if variant is not None else PIXELS_PER_LATENT
    _say_short_block(places[-1].frames, per_block, noise.shape[2], pictures)
    # A node may have set another one on this MODEL, which is put in when the weights are loaded.
    compute = guider.model_patcher.get_model_object("manual_cast_dtype") or base_model.get_dtype()
    chunk_frames = max(per_block, min(given, seen_at_once)) if options is None else per_block
    spec, grid = _spec(base_model.diffusion_model, noise, chunk_frames, settings_of(model_options), compute)
    entries = [entry for conds in guider.conds.values() for entry in conds]
    plan = CausalPlan(settings_of(model_options), spec, grid, noise.shape[2], given, tuple(places), options)
    plan = replace(plan, variant=variant, cameras=cameras_of(variant, entries, noise.shape[2]), title=name_of(base_model))
    if options is None:
        _refuse_prompt_changes(prompt_starts(entries, places, pictures))
        return plan
    _check_sink(plan)
    if plan.recomputes:
        _check_recompute(plan)
    levels = _noise_levels(sigmas, options, variant)
    prompts = prompt_starts(entries, places, pictures)
    check_cuts(variant, prompts, plan.settings.config, spec.chunk_frames)
    return replace(plan, levels=levels, prompts=prompts)


def check_own(guider: Any, noise: Tensor) -> None:
    """Raise ConfigError for a prompt of another model, and for a size that the model does not make."""
    variant = variant_of(guider.model_options)
    embedding = guider.model_patcher.model.diffusion_model.text_embedding[0]
    prompt_from = CausalVariant.prompt_from if variant is None else variant.prompt_from
    name = name_of(guider.model_patcher.model)
    check_prompt(guider.conds, getattr(embedding, "in_features", None), name, prompt_from)
    if variant is None or variant.sizes is None:
        return
    width, height = variant.sizes
    rows, cols = height // LATENT_PIXELS, width // LATENT_PIXELS
    if noise.ndim != 5 or tuple(noise.shape[3:]) != (rows, cols):
        raise ConfigError(
            f"the latent is {list(noise.shape)}, but {variant.name} makes [batch, channels, frames, {rows}, {cols}] and nothing "
            f"else; set width and height to {width} and {height}, or take the latent from its own start node"
        )


def start_latent(model_options: dict[str, Any]) -> Tensor | None:
    """ARVideoI2V's start image [B, C, F, H, W], raw as LATENTs are."""
    start: Tensor | None = model_options.get("transformer_options", {}).get("ar_config", {}).get("initial_latent")
    return start


def _frames_per_block(sampler: Any, options: CausalOptions | None, variant: CausalVariant | None) -> int:
    if options is None:
        chosen = getattr(sampler, "extra_options", {}).get(_FRAMES_PER_BLOCK)
        if chosen is None:
            name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)
            raise ConfigError(
                f"the sampler is {name}, which does not run this model block by block, so its KV cache would be unused; "
                "connect 'QVG Causal Sampler' or 'Sampler AR Video', or bypass QVG KV Cache"
            )
        if chosen < 1:  # a link: core does not look at what comes over one
            raise ConfigError(
                f"{_FRAMES_PER_BLOCK} is {chosen}, but must be at least 1; set it to {trained_blocks(FAMILY.load_with)}"
            )
    elif options.frames_per_block == 0 and variant is None:
        raise ConfigError(
            "frames_per_block is 0, as the model was trained, but this MODEL does not say how; load it with "
            f"'{FAMILY.load_with}', or set {trained_blocks(FAMILY.load_with)}"
        )
    else:
        chosen = options.frames_per_block or variant.frames_per_block  # type: ignore[union-attr]  # one of them is there
    if variant is not None and chosen != variant.frames_per_block:
        sampler, widget = (
            ("Sampler AR Video", _FRAMES_PER_BLOCK) if options is None else ("QVG Causal Sampler", "frames_per_block")
        )
        logger.warning(
            "QVG: %s makes blocks of %d latent frame(s), but %s was trained with blocks of %d; set %s to %d",
            sampler,
            chosen,
            variant.name,
            variant.frames_per_block,
            widget,
            variant.frames_per_block,
        )
    return int(chosen)


def _noise_levels(sigmas: Tensor, options: CausalOptions, variant: CausalVariant | None) -> NoiseLevels:
    levels = tuple(sigmas.tolist())
    if variant is not None and not _near(levels, variant.sigmas):
        logger.warning(
            "QVG: the sigmas are %s, but %s was trained for %s",
            ", ".join(f"{level:.3g}" for level in levels),
            variant.name,
            ", ".join(f"{level:.3g}" for level in variant.sigmas),
        )
    return NoiseLevels(levels, options.first_block_sigmas or (None if variant is None else variant.first_block_sigmas))


def _say_short_block(last: int, per_block: int, frames: int, pictures: int) -> None:
    if last < per_block:
        whole = frames - last
        logger.info(
            "QVG: %d latent frames in blocks of %d leave %d for the last block, shorter than models were trained for; %s%d "
            "frames of video have none",
            frames,
            per_block,
            last,
            f"{pictures * (whole - 1) + 1} or " if whole else "",
            pictures * (whole + per_block - 1) + 1,
        )


def _near(levels: tuple[float, ...], trained: tuple[float, ...]) -> bool:
    return len(levels) == len(trained) and all(abs(a - b) < 0.01 for a, b in zip(levels, trained, strict=True))


def _spec(
    network: Any, noise: Tensor, chunk_frames: int, settings: CacheSettings, compute: torch.dtype
) -> tuple[CacheSpec, tuple[int, int]]:
    """The cache's shape, and tokens of a frame by row and column."""
    _, rows, cols = network.patch_size
    grid = (-(-noise.shape[3] // rows), -(-noise.shape[4] // cols))
    spec = CacheSpec(
        layers=len(network.blocks),
        heads=network.num_heads,
        head_dim=network.head_dim,
        tokens_per_frame=grid[0] * grid[1],
        chunk_frames=chunk_frames,
        batch=noise.shape[0],
        dtype=_stored_dtype(compute, settings.config.codec),
    )
    spec.check(settings.config)
    return spec, grid


def _stored_dtype(compute: torch.dtype, codec: str) -> torch.dtype:
    """Codec "none" keeps what the network computes, as core does; otherwise exact frames take 16 bits."""
    return torch.bfloat16 if codec != "none" and compute.itemsize > 2 else compute


def _cores_blocks(frames: int, given: int, per_block: int, seen_at_once: int) -> list[BlockPlace]:
    """Core takes the given frames in one block, or a MODEL's own hook has it take them in several."""
    starts = [*range(0, given, seen_at_once), *range(given, frames, per_block)]
    stretches = itertools.pairwise([*starts, frames])
    return [BlockPlace(at, start, stop - start, start < given, at) for at, (start, stop) in enumerate(stretches)]


def _given_frames(frames: int, start: Tensor | None, denoise_mask: Tensor | None) -> int:
    kept = kept_frames(denoise_mask)
    if start is None:
        return kept
    if kept:
        raise ConfigError(
            f"the MODEL carries a start, as ARVideoI2V and Film Start give it one, and the latent's noise mask keeps {kept} "
            "frame(s) at the beginning; take the MODEL past that node, or the latent from 'EmptyARVideoLatent'"
        )
    return min(frames, start.shape[2])


def _check_sink(plan: CausalPlan) -> None:
    """A short first block makes the sink, which is whole blocks, larger than it is for others."""
    config, spec = plan.settings.config, plan.spec
    if config.window_frames is None:
        return
    chunk, ends = spec.chunk_frames, itertools.accumulate(place.frames for place in plan.places)
    sink = next((end for end in ends if end >= config.sink_frames), plan.frames) if config.sink_frames else 0
    more = sink - -(-config.sink_frames // chunk) * chunk
    needed = spec.check(config).exact_frames + more + chunk * (1 if config.codec == "none" else 2)
    if config.window_frames < needed:
        raise ConfigError(
            f"window_frames is {config.window_frames}, but behind a first block of {plan.places[0].frames} frame(s) the sink "
            f"takes {sink}, which with recent frames and the block in work needs {needed}; use {needed} or more, or sink_frames "
            f"{plan.places[0].frames}"
        )


def _check_recompute(plan: CausalPlan) -> None:
    assert plan.options is not None
    if plan.settings.config.window_frames is not None:
        raise ConfigError(
            f"window_frames is {plan.settings.config.window_frames}, but memory recompute holds {CONTEXT_FRAMES} frames and no "
            "more; set window_frames on QVG KV Cache to 0, or memory to grow"
        )
    if plan.options.vae is not None and any(place.frames < 2 for place in plan.places[1:-1]):
        raise ConfigError(
            "a VAE decodes blocks of one frame only together with others, so recompute with a VAE needs blocks of 2 frames or "
            "more; disconnect vae, or raise frames_per_block"
        )


def _refuse_prompt_changes(starts: tuple[PromptStart, ...]) -> None:
    if len(starts) > 1:
        raise ConfigError(
            f"the prompt changes at frame {starts[1].frame}, which Sampler AR Video cannot follow; connect 'QVG Causal Sampler'"
        )


def _check_conditioning(guider: Any, network: Any) -> None:
    """What is read beside the prompt: a picture as CLIP vision sees it, by networks that have a place for it."""
    reads = frozenset({"clip_vision_output"} if getattr(network, "img_emb", None) is not None else ())
    check_conditioning(guider.conds, reads, CORE_NAME, "and give a first picture to 'Causal Video Start' or ARVideoI2V")


def _check_guider(guider: Any, sigmas: Tensor, denoise_mask: Any) -> None:
    cfg = getattr(guider, "cfg", 1.0)
    if cfg != 1.0:
        raise ConfigError(
            f"cfg is {cfg}, but a causal Wan model remembers one pass over every block and is distilled to need no other; "
            "set cfg to 1, or use BasicGuider"
        )
    if float(sigmas[-1]) != 0:
        raise ConfigError(
            f"the sigmas end at {float(sigmas[-1]):.3g}, but must end at 0: every block is finished before the next one "
            "begins; connect a scheduler's sigmas whole, not split"
        )
    if denoise_mask is not None:
        raise ConfigError(
            "the latent has a noise mask, which Sampler AR Video cannot follow; give the first image through "
            "'ARVideoI2V', connect 'QVG Causal Sampler', or take the mask out"
        )


def _check_latents(noise: Tensor, given: Tensor | None, channels: int) -> None:
    if noise.ndim != 5 or noise.shape[1] != channels:
        raise ConfigError(
            f"the latent is {list(noise.shape)}, but this model makes [batch, {channels}, frames, height, width]; take it from "
            "'Causal Video Start', 'EmptyARVideoLatent' or 'ARVideoI2V'"
        )
    if given is not None and (given.shape[0] != noise.shape[0] or given.shape[3:] != noise.shape[3:]):
        raise ConfigError(
            f"ARVideoI2V's start image became a latent of {list(given.shape)}, but the latent to sample is "
            f"{list(noise.shape)}; connect ARVideoI2V's own latent, with batch_size 1"
        )
