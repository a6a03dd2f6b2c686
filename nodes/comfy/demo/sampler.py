"""The autoregressive loop as a SAMPLER for ComfyUI's SamplerCustomAdvanced.

The loop itself is `qvg.sampling.generate`; here it gets ComfyUI's noise, noise levels, guider, interrupts and memory.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import comfy.samplers
import torch
from torch import Tensor

from ....qvg import CacheSpec, ConfigError, KVCache
from ....qvg.cache.codebooks import codebooks_text
from ....qvg.cache.merge_text import merge_text
from ....qvg.sampling import Block, generate
from ...records import RECORDS, RunRecord
from ..attach import require_sampled_by
from ..conditioning import check_conditioning
from ..keep import KeptRun, finished_blocks
from ..memory import cache_bytes_needed, give_back, make_room
from ..model_plan import refuse_what_cannot_fit
from ..noise_mask import kept_frames
from ..progress import Progress, say, say_how_it_ended
from ..run import Run, ignored_patches, refuse_other_loops
from ..settings import RUN_KEY, CacheSettings, settings_of
from .shape import demo_shape

logger = logging.getLogger(__name__)

# Where conditioning says at which (time, row, column), in tokens, each latent frame stands.
ORIGINS_KEY = "qvg_origins"


def make_sampler(keep_finished: bool) -> Any:
    """A SAMPLER; `keep_finished`: an interrupted run leaves its finished frames in the output folder."""
    return comfy.samplers.KSAMPLER(sample_blocks, {"keep_finished": keep_finished})


@dataclass(frozen=True)
class _Schedule:
    """ComfyUI's noise levels, and its noise for the whole video, cut into blocks."""

    levels: list[float]
    x: Tensor
    starts: list[int]

    def noise_levels(self) -> list[float]:
        return self.levels

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        return self.x[:, :, self.starts[index] : self.starts[index] + shape[2]]


class _GuidedDenoiser:
    """The model behind ComfyUI's guider, so that wrappers, hooks and patches on the MODEL apply. Blocks are [B, C, F, H, W]."""

    def __init__(self, guider: Any, extra_args: dict[str, Any], x: Tensor, progress: Progress):
        self._guider, self._x, self._progress = guider, x, progress
        self.device = x.device
        self._run: Run | None = None
        self._options, self._seed = extra_args["model_options"], extra_args.get("seed")

    def block_shape(self, frames: int) -> tuple[int, ...]:
        return (*self._x.shape[:2], frames, *self._x.shape[3:])

    def predict_clean(self, x: Tensor, noise_level: float, cache: KVCache) -> Tensor:
        if self._run is None or self._run.cache is not cache:
            self._run = Run(cache)
        run = self._run
        run.passes = 0
        self._options.setdefault("transformer_options", {})[RUN_KEY] = run
        try:
            clean: Tensor = self._guider(x, x.new_full(x.shape[:1], noise_level), model_options=self._options, seed=self._seed)
        finally:
            del self._options["transformer_options"][RUN_KEY]
        run.check_passes(noise_level)
        self._progress.passed(clean if noise_level > 0 else x)
        return clean


def sample_blocks(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    keep_finished: bool = True,
) -> Tensor:
    """Generate block after block. Frames at the beginning that the noise mask keeps (0) are given, not generated."""
    extra_args = {"model_options": {}} if extra_args is None else extra_args
    guider = model.inner_model
    base_model = require_sampled_by(guider.inner_model, "QVG Sampler")
    _refuse_cfg(guider)
    refuse_other_loops(extra_args["model_options"])
    check_conditioning(guider.conds, frozenset(), base_model.qvg_name, "and begin with 'Demo World Start'")
    levels = _levels(sigmas)
    settings, spec = settings_of(extra_args["model_options"]), base_model.qvg_cache_spec(x.shape[0])
    base_model.qvg_check_latent(x)
    blocks = _blocks(guider, x, spec.chunk_frames)
    given = _given(extra_args.get("denoise_mask"), model.latent_image, spec.chunk_frames)
    schedule = _Schedule(levels, x, [index * spec.chunk_frames for index in range(len(blocks))])
    passes = len(blocks) + (len(blocks) - len(given)) * (len(levels) - 1)
    denoiser = _GuidedDenoiser(guider, extra_args, x, Progress(x.device, base_model.latent_format, passes, len(blocks)))
    _say_what_is_ignored(base_model.qvg_name, ignored_patches(extra_args["model_options"], guider.model_patcher))
    rope = base_model.qvg_rope()
    grid = (rope.grid_rows, rope.grid_cols)
    refuse_what_cannot_fit(guider.model_patcher, demo_shape(base_model), settings.config, spec, x.shape[2], grid)
    make_room(cache_bytes_needed(spec, settings.config, x.shape[2]), guider.model_patcher)
    cache = settings.cache(spec, rope)
    finished: list[Block] = []
    kept: KeptRun | None = None
    try:
        with finished_blocks(base_model, len(given) * spec.chunk_frames, keep_finished) as kept, cache:
            loop = generate(denoiser, cache, blocks, schedule, given, mm.throw_exception_if_processing_interrupted, verify=False)
            for block in loop:
                finished.append(block)
                if kept is not None:
                    kept.add(block.latent)
                denoiser._progress.finished(block, spec.exact_bytes(block.first_frame + block.latent.shape[2]))
            record = _record(base_model, spec, settings, cache, finished, len(given), x.device)
    except BaseException as error:  # an interrupt is no Exception to ComfyUI
        say_how_it_ended(error, cache, len(finished), len(blocks))
        if kept is not None:
            kept.keep([block.latent for block in finished])
        raise
    finally:
        give_back()
    samples = torch.cat([block.latent for block in finished], 2)
    RECORDS.add(base_model.process_latent_out(samples.float()), record)
    say(record.headline())
    if callback is not None:
        # What ComfyUI calls denoised_output is what the last callback got: the video, not its last block.
        callback({"x": samples, "i": len(levels) - 2, "sigma": sigmas[-1], "sigma_hat": sigmas[-1], "denoised": samples})
    return samples


def _levels(sigmas: Tensor) -> list[float]:
    """Noise levels that fall to 0; a block must be finished before the next one can look at it."""
    levels: list[float] = sigmas.tolist()
    if levels[-1] != 0 or any(following >= level for level, following in itertools.pairwise(levels)):
        shown = ", ".join(f"{level:.3g}" for level in levels)
        raise ConfigError(
            f"the sigmas are {shown}, but must fall from step to step and end at 0: every block is finished before the next one "
            "begins; connect a scheduler's sigmas whole, not split or flipped"
        )
    return levels


def _refuse_cfg(guider: Any) -> None:
    cfg = getattr(guider, "cfg", 1.0)
    if cfg != 1.0:
        raise ConfigError(f"cfg is {cfg}, but this model knows no negative prompt; use BasicGuider, or set cfg to 1")


def _blocks(guider: Any, x: Tensor, chunk_frames: int) -> list[Sequence[Sequence[float]]]:
    """Origins of every block's frames, from the conditioning."""
    origins = next((cond[ORIGINS_KEY] for conds in guider.conds.values() for cond in conds if ORIGINS_KEY in cond), None)
    if origins is None:
        raise ConfigError("the conditioning holds no camera; connect 'Demo World Start' to the guider's conditioning")
    if x.shape[2] != len(origins):
        raise ConfigError(
            f"the latent has {x.shape[2]} frames, but the camera {len(origins)}; take both from one 'Demo World Start'"
        )
    return [origins[start : start + chunk_frames] for start in range(0, len(origins), chunk_frames)]


def _given(mask: Tensor | None, latent: Tensor, chunk_frames: int) -> list[Tensor]:
    """Latents of the blocks at the beginning that the mask keeps."""
    frames = kept_frames(mask)
    return [latent[:, :, start : start + chunk_frames] for start in range(0, frames - chunk_frames + 1, chunk_frames)]


def _say_what_is_ignored(model: str, names: list[str]) -> None:
    if names:
        logger.warning("QVG: the %s attends through its own cache; without effect on it: %s", model, ", ".join(names))


def _record(
    base_model: Any, spec: CacheSpec, settings: CacheSettings, cache: KVCache, blocks: list[Block], given: int, device: Any
) -> RunRecord:
    """The run in numbers; must be made before the cache is freed."""
    per_frame = [block for block in blocks for _ in range(block.latent.shape[2])]
    policy = spec.check(settings.config)
    return RunRecord(
        model=base_model.qvg_name,
        device=str(device),
        config=settings.config,
        span_frames=policy.span_chunks * spec.chunk_frames,
        cache_bytes=tuple(block.cache.total for block in per_frame),
        exact_bytes=tuple(spec.exact_bytes(block.first_frame + block.latent.shape[2]) for block in per_frame),
        seconds=tuple(block.seconds / block.latent.shape[2] for block in per_frame),
        components=cache.nbytes(),
        codebooks=codebooks_text(cache),
        merged=merge_text(cache),
        workspace_bytes=cache.workspace.nbytes,
        given_frames=given * spec.chunk_frames,
        read=tuple(cache.explain()),
        placement=cache.placement(),
        study=settings.study,
    )
