"""Our own loop for ComfyUI's causal Wan model, where core's stops: any length, extension, prompts that change, positions.

The loop is `qvg.sampling.generate`. Here it runs core's network through the guider, as core's `sample_ar_video` does,
with what `causal_wan` has put on the MODEL: attention through our cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.model_management as mm
import comfy.samplers
import torch
from torch import Tensor

from ....qvg import ConfigError, KVCache, UnsupportedModelError
from ....qvg.sampling import BlockPlace, RenoiseSchedule, SolverSchedule, generate
from ...prompts import FRAME_KEY
from ..attach import require_sampled_by
from ..memory import cache_bytes_needed
from ..progress import Progress
from ..settings import HOOKED_KEY
from .plan import OPTIONS, CausalOptions, start_latent
from .recompute import Context
from .run import CausalPass, CausalRun, LayerSlot
from .wan import PASS_KEY


def make_causal_sampler(options: CausalOptions) -> Any:
    """A SAMPLER for SamplerCustomAdvanced."""
    return comfy.samplers.KSAMPLER(sample_causal, {OPTIONS: options})


@torch.no_grad()
def sample_causal(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    options: CausalOptions | None = None,
) -> Tensor:
    """Generate block after block. x: the whole video at the first noise level, [B, C, F, H, W]; -> the same, clean."""
    extra_args = {"model_options": {}} if extra_args is None else extra_args
    guider = model.inner_model
    blocks = _GuidedBlocks(guider, extra_args, x)
    plan = blocks.run.plan
    assert plan.levels is not None
    latents = _given(guider.inner_model, extra_args["model_options"], model.latent_image, x)
    seed = int(extra_args.get("seed") or 0)
    schedule: Any = RenoiseSchedule(plan.levels, plan.places, x, seed)
    if plan.solver is not None:
        schedule = SolverSchedule(plan.solver, plan.places, x, seed, latents)
    passes = sum(max(1, len(plan.levels.of(place))) for place in plan.places)
    blocks.progress = Progress(x.device, guider.inner_model.latent_format, passes, plan.blocks)
    given = [latents[:, :, place.span] for place in plan.places if place.given]
    interrupt = mm.throw_exception_if_processing_interrupted
    try:
        blocks.begin_block(plan.places[0])
        for block in generate(blocks, blocks.run.cache, _origins(plan.places), schedule, given, interrupt, verify=False):
            if block.index + 1 < plan.blocks:
                blocks.begin_block(plan.places[block.index + 1])
    finally:
        blocks.leave()
    if callback is not None:
        # What ComfyUI calls denoised_output is what the last callback got: the video, not its last block.
        seen = {"x": blocks.video, "denoised": blocks.video, "sigma": sigmas[-1], "sigma_hat": sigmas[-1]}
        callback({**seen, "i": len(sigmas) - 2})
    return blocks.video


def _origins(places: Sequence[BlockPlace]) -> list[list[tuple[float, float, float]]]:
    """Places in the video; where positions are counted otherwise, `CausalRun` sees to it at every pass."""
    return [[(float(frame), 0.0, 0.0) for frame in range(place.span.start, place.span.stop)] for place in places]


def _given(base_model: Any, model_options: dict[str, Any], latent: Tensor, x: Tensor) -> Tensor:
    """Latents to take given frames from, as the network knows them."""
    start = start_latent(model_options)
    return latent if start is None else base_model.process_latent_in(start).to(x)


def _cached_run(base_model: Any, model_options: dict[str, Any], x: Tensor) -> tuple[CausalRun, list[LayerSlot]]:
    """The run that QVG KV Cache on the MODEL has planned, and a slot for every layer."""
    require_sampled_by(base_model, "QVG Causal Sampler")
    if HOOKED_KEY not in model_options.get("transformer_options", {}):
        raise ConfigError(
            "this MODEL has no QVG KV Cache, through which QVG Causal Sampler attends; put one between the loader and the guider "
            "(mode exact keeps what ComfyUI keeps), or load the file with 'Load Causal Wan'"
        )
    network = base_model.diffusion_model
    slots = network.init_kv_caches(x.shape[0], 0, x.device, base_model.get_dtype())
    if not slots or not isinstance(slots[0], LayerSlot):
        raise UnsupportedModelError(
            "another node has replaced this model's init_kv_caches, so QVG KV Cache is not reached; take that node out"
        )
    return slots[0].run, slots


class _GuidedBlocks:
    """Core's network behind ComfyUI's guider, so that wrappers, hooks and patches on the MODEL apply. A block at a time, which
    `begin_block` names; `video` is filled in."""

    def __init__(self, guider: Any, extra_args: dict[str, Any], x: Tensor):
        self._guider, self._seed = guider, extra_args.get("seed")
        self._base, self._options = guider.inner_model, extra_args["model_options"]
        self.run, self._slots = _cached_run(self._base, self._options, x)
        self._plan = self.run.plan
        self._conds = guider.conds
        self.video = torch.zeros_like(x)
        self.progress: Progress | None = None
        self.device = x.device
        self._place = self._plan.places[0]
        self._crossattn: Any = None
        self._freqs: Tensor | None = None
        self._position: int | None = None
        vae = self._plan.options.vae if self._plan.options is not None else None
        held = cache_bytes_needed(self._plan.spec, self._plan.settings.config, self._plan.cached_frames)
        self._context = Context(self._base, guider.model_patcher, vae, held) if self._plan.recomputes else None

    def begin_block(self, place: BlockPlace) -> None:
        """Take up a new prompt where one begins, and count positions anew."""
        start = next((start for start in self._plan.prompts if start.block == place.index), None)
        if start is not None and start.scene_cut and place.index:
            self.run.cache.pin_next()
        if start is not None:
            self._guider.conds = {
                name: [cond for cond in conds if cond.get(FRAME_KEY, start.frame) == start.frame]
                for name, conds in self._conds.items()
            }
        if start is not None or self._crossattn is None:
            # Text does not change between blocks, so the network keeps its keys and values: of this prompt from here on.
            dtype = self._base.get_dtype()
            self._crossattn = self._base.diffusion_model.init_crossattn_caches(self.video.shape[0], self.video.device, dtype)
        self._place, self._position = place, self._plan.position_of(place)
        if self._context is not None:
            self._position = self._recompute(place, self._context)
        elif start is not None and start.recache and place.index > 0:
            self._see_again(place)
        self.run.reindex()
        self._freqs = self._rotations(place.first_frame if self._position is None else self._position, place.frames)

    def block_shape(self, frames: int) -> tuple[int, ...]:
        """[B, C, frames, H, W]."""
        return (*self.video.shape[:2], frames, *self.video.shape[3:])

    def predict_clean(self, x: Tensor, noise_level: float, cache: KVCache) -> Tensor:
        """One denoise step."""
        clean = self._pass(x, noise_level, self._coming(commits=False))
        self._tick(clean)
        return clean

    def commit_clean(self, x: Tensor, cache: KVCache) -> None:
        """The pass over the finished block that leaves its keys and values."""
        self.video[:, :, self._place.span] = x
        if self._context is None:
            self._pass(x, self._context_noise, self._coming(commits=True))
        else:
            self.run.note_block(x)
            if self._place.index + 1 < self._plan.blocks:
                self._context.finished(x)
        self._tick(x)

    def leave(self) -> None:
        """The guider and its options are as they were."""
        self._guider.conds = self._conds
        self._options["transformer_options"].pop("ar_state", None)

    def _coming(self, commits: bool) -> CausalPass:
        return CausalPass(self._place.first_frame, self._place.frames, commits, freqs=self._freqs, position=self._position)

    @property
    def _context_noise(self) -> float:
        return 0.0 if self._plan.options is None else self._plan.options.context_noise

    def _tick(self, shown: Tensor) -> None:
        if self.progress is not None:
            self.progress.passed(shown)

    def _see_again(self, place: BlockPlace) -> None:
        """Feed the network what is in memory once more, now that the prompt is another (LongLive, arXiv 2509.22622)."""
        layout, done = self.run.cache.layout, self._plan.places[: place.index]
        sink, newest = len(layout.sink), layout.frames - sum(layout.sink)
        held = [each for each in done if each.index < sink or each.first_frame >= place.first_frame - newest]
        self.run.forget()
        for each in held:
            mm.throw_exception_if_processing_interrupted()
            freqs = self._rotations(each.first_frame, each.frames)
            again = CausalPass(each.first_frame, each.frames, True, repeats=True, freqs=freqs)
            self._pass(self.video[:, :, each.span], self._context_noise, again)

    def _recompute(self, place: BlockPlace, context: Context) -> int:
        """Make memory anew of what the block is to see. -> where the block stands, behind it"""
        if not place.index:
            return 0
        mm.throw_exception_if_processing_interrupted()
        seen = context.of(self.video[:, :, : place.first_frame])
        frames = seen.shape[2]
        first = place.first_frame - frames
        self.run.begin_again(first)
        freqs = self._rotations(0, frames)
        self._pass(seen, self._context_noise, CausalPass(first, frames, True, repeats=True, freqs=freqs, position=0))
        return frames

    def _rotations(self, first: int, frames: int) -> Tensor | None:
        """Core makes positions in the network's dtype, which in bf16 knows no odd number above 256; these are in float32."""
        if not self._plan.as_core:
            return None
        _, rows, cols = self._base.diffusion_model.patch_size
        size = (frames, self._plan.grid[0] * rows, self._plan.grid[1] * cols)
        where = {"t_start": first, "device": self.video.device, "dtype": torch.float32}
        freqs: Tensor = self._base.diffusion_model.rope_encode(*size, **where)
        return freqs

    def _told(self, x: Tensor, noise_level: float, coming: CausalPass) -> CausalPass:
        """What a network with steps of its own is told of each frame, and sees beside the text."""
        solver = self._plan.solver
        if solver is None:
            return coming
        told = solver.context_timestep if coming.commits else solver.told(noise_level)
        timesteps = torch.full((x.shape[0], coming.frames), told, device=x.device)
        if not coming.commits:
            timesteps[:, : self._place.kept_frames] = 0
        beside = self._base.diffusion_model.beside_of(self._plan, coming.first_frame, coming.frames)
        return replace(coming, timesteps=timesteps, beside=beside)

    def _pass(self, x: Tensor, noise_level: float, coming: CausalPass) -> Tensor:
        coming = self._told(x, noise_level, coming)
        for slot in self._slots:
            slot.end = coming.first_frame * self._plan.spec.tokens_per_frame
        state = {"start_frame": coming.first_frame, "kv_caches": self._slots, "crossattn_caches": self._crossattn}
        self._options["transformer_options"]["ar_state"] = {**state, PASS_KEY: coming}
        level = x.new_full(x.shape[:1], noise_level)
        clean: Tensor = self._guider(x, level, model_options=self._options, seed=self._seed)
        return clean
