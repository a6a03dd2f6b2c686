"""A LongCat video of any number of segments as a SAMPLER for ComfyUI's SamplerCustomAdvanced.

A segment is `qvg.sampling.longcat.sample_segment`; here the network runs in it behind ComfyUI's guider.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as mm
import comfy.samplers
import torch
from torch import Tensor

from ....qvg import CacheBytes, ConfigError
from ....qvg.cache.offload import Placement
from ....qvg.models.longcat.memory import ConditionCache
from ....qvg.models.longcat.schedule import LongCatSettings
from ....qvg.sampling.longcat import sample_segment
from ...records import RECORDS, RunRecord
from ..keep import finished_blocks
from ..progress import Progress, how_it_ended, say
from ..world.run import conds_from
from .model import PASS_KEY, LongCatPass
from .pictures import through_pictures
from .run import LATENTS, OPTIONS, PLAN_KEY, LongCatOptions, LongCatPlan, SegmentPlace, cache_bytes, remembers
from .shape import NAME

logger = logging.getLogger(__name__)


def make_longcat_sampler(options: LongCatOptions) -> Any:
    """A SAMPLER."""
    return comfy.samplers.KSAMPLER(sample_longcat, {OPTIONS: options})


@torch.no_grad()
def sample_longcat(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    options: LongCatOptions | None = None,
) -> Tensor:
    """Make segment after segment. x: the whole video at the first noise level, [1, C, F, h, w] -> the same, clean."""
    extra_args = {"model_options": {}} if extra_args is None else extra_args
    guider = model.inner_model
    base_model = guider.inner_model
    plan: LongCatPlan | None = extra_args["model_options"].get("transformer_options", {}).get(PLAN_KEY)
    if plan is None:
        raise ConfigError(
            f"LongCat Sampler makes videos of {NAME}, and {type(base_model).__name__} is another model; connect the MODEL of "
            "'Load LongCat'"
        )
    progress = Progress(x.device, base_model.latent_format, plan.passes, len(plan.segments))
    network = GuidedLongCat(guider, extra_args, plan, progress)
    video = _Video(plan, network)
    kept: Any = None
    try:
        with contextlib.ExitStack() as ended:
            kept = ended.enter_context(finished_blocks(base_model, plan.given, plan.options.keep_finished))
            condition = model.latent_image[:, :, : plan.given].transpose(1, 2).float() if plan.given else None
            for place in plan.segments:
                latents = video.make(place, x[:, :, place.span].transpose(1, 2), condition)
                if kept is not None:
                    kept.add(video.latents[-1].transpose(1, 2))
                progress.remembered(place.index, place.new_frames, video.seconds[-1], video.sizes[-1].total, video.exact(place))
                say(video.line(place))
                if place.index + 1 < len(plan.segments):
                    condition = _carried(plan, guider, latents)
            record = video.record(x.device)
    except BaseException as error:  # an interrupt is no Exception to ComfyUI
        made, total = len(video.latents), len(plan.segments)
        logger.info("QVG: %s after segment %d of %d; the memory is free", how_it_ended(error), made, total)
        if kept is not None:
            kept.keep([latent.transpose(1, 2) for latent in video.latents])
        raise
    finally:
        network.take_prompt(None)
    samples = torch.cat(video.latents, 1).transpose(1, 2).contiguous()
    RECORDS.add(base_model.process_latent_out(samples.float()), record)
    say(record.headline())
    if callback is not None:
        # What ComfyUI calls denoised_output is what the last callback got: the video, not its last segment.
        seen = {"x": samples, "denoised": samples, "sigma": sigmas[-1], "sigma_hat": sigmas[-1]}
        callback({**seen, "i": len(sigmas) - 2})
    return samples


def _carried(plan: LongCatPlan, guider: Any, latents: Tensor) -> Tensor:
    """What the next segment is conditioned on, of this one's latents [1, F, C, h, w]."""
    if plan.options.carry == LATENTS:
        return latents[:, -plan.frames.condition_latents :].clone()
    base_model = guider.inner_model
    condition = through_pictures(base_model, plan.options.vae, latents.transpose(1, 2), plan.frames).transpose(1, 2)
    # ComfyUI may have moved the model away for the VAE.
    shape = [1, latents.shape[2], plan.pass_frames, *plan.size]
    needed = base_model.memory_required([2 if plan.cfg != 1 else 1, *shape[1:]]) + cache_bytes(plan)
    mm.load_models_gpu([guider.model_patcher], memory_required=needed)
    return condition.to(latents)


class GuidedLongCat:
    """The network behind ComfyUI's guider, so that wrappers, hooks and patches on the MODEL apply; a denoiser of
    `sample_segment`, whose `settings` say noise levels: those of the segment that `begin` names."""

    def __init__(self, guider: Any, extra_args: dict[str, Any], plan: LongCatPlan, progress: Progress):
        self._guider, self._plan, self._progress = guider, plan, progress
        self._conds = guider.conds
        self._options, self._seed = extra_args["model_options"], extra_args.get("seed")
        self._told = LongCatSettings(exact_timesteps=plan.options.exact_timesteps)
        self._place = plan.segments[0]
        self.settings = self

    def begin(self, place: SegmentPlace) -> None:
        """The segment that comes, and the prompt that holds in it."""
        self._place = place
        self.take_prompt(next((start for start in reversed(self._plan.prompts) if start.block <= place.index), None))

    def take_prompt(self, start: Any) -> None:
        """What holds from here on; None: all that the guider has."""
        self._guider.conds = conds_from(self._conds, start)

    def sigmas(self, continues: bool = False) -> tuple[float, ...]:
        """Of this segment."""
        return self._place.sigmas

    def record(self, condition: Tensor, cache: ConditionCache) -> None:
        """Fill the memory; the prompt has no part in that, so the guider has none."""
        base_model, video = self._guider.inner_model, condition.transpose(1, 2)
        coming = LongCatPass(0.0, cache, records=True)
        options = {**self._options.get("transformer_options", {}), PASS_KEY: coming}
        base_model.apply_model(video, video.new_zeros(1), transformer_options=options)
        self._require_one_run(coming)
        self._progress.passed(video)

    def flow(self, x: Tensor, sigma: float, condition_frames: int = 0, cache: ConditionCache | None = None) -> Tensor:
        """noise - clean of x [1, F, C, h, w]."""
        coming = LongCatPass(self._told.told(sigma), cache, condition_frames)
        video = x.transpose(1, 2)
        options = self._options.setdefault("transformer_options", {})
        options[PASS_KEY] = coming
        try:
            clean = self._guider(video, video.new_full((1,), sigma), model_options=self._options, seed=self._seed)
        finally:
            del options[PASS_KEY]
        if coming.runs not in (1, 2 if self._plan.cfg != 1 else 1):
            self._require_one_run(coming)
        self._progress.passed(clean[:, :, condition_frames:])
        flow: Tensor = ((video - clean) / sigma).transpose(1, 2)
        return flow

    def _require_one_run(self, coming: LongCatPass) -> None:
        if coming.runs != 1:
            raise ConfigError(
                f"a step ran the network {coming.runs} times, but a segment's step runs it once for each of guidance's texts; "
                "take out the node that skips or repeats passes (step caches; perturbed, self-attention or skip-layer guidance)"
            )


@dataclass
class _Video:
    """A run under way, and what it has cost so far; `latents` are new ones, those that were given in front."""

    plan: LongCatPlan
    network: GuidedLongCat
    latents: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sizes: list[CacheBytes] = field(default_factory=list)
    read: tuple[str, ...] = ()
    workspace_bytes: int = 0
    placement: Placement | None = None

    def make(self, place: SegmentPlace, noise: Tensor, condition: Tensor | None) -> Tensor:
        """A segment from the noise of its place [1, F, C, h, w] -> its latents, what it is conditioned on in front."""
        began = time.perf_counter()
        self.network.begin(place)
        whole = noise if condition is None or place.index == 0 else torch.cat([condition.to(noise), noise], 1)
        interrupt = mm.throw_exception_if_processing_interrupted
        if remembers(place):
            with self.plan.memory(place.condition) as cache:
                latents = sample_segment(self.network, whole, condition, cache, interrupt)  # type: ignore[arg-type]  # a denoiser
                self._note(cache)
        else:
            latents = sample_segment(self.network, whole, condition, None, interrupt)  # type: ignore[arg-type]  # a denoiser
            self.sizes.append(CacheBytes())
        self.latents.append(latents[:, 0 if place.index == 0 else place.condition :])
        self.seconds.append(time.perf_counter() - began)
        return latents

    def _note(self, cache: ConditionCache) -> None:
        self.sizes.append(cache.nbytes())
        self.read, self.workspace_bytes, self.placement = tuple(cache.explain()), cache.workspace.nbytes, cache.placement()

    def line(self, place: SegmentPlace) -> str:
        """About the segment that has just ended."""
        held, seconds = self.sizes[-1].total / 1e6, self.seconds[-1] / place.new_frames
        return f"{held:.1f} MB, {seconds:.2f} s/frame, segment {place.index + 1}/{len(self.plan.segments)}"

    def exact(self, place: SegmentPlace) -> int:
        """Bytes at 16 bits per value of what a segment remembers."""
        return self.plan.memory(place.condition).spec.exact_bytes(place.condition) if remembers(place) else 0

    def record(self, device: Any) -> RunRecord:
        """The run in numbers."""
        plan = self.plan
        exact = [self.exact(place) for place in plan.segments]
        per_frame = [seconds / place.new_frames for place, seconds in zip(plan.segments, self.seconds, strict=True)]
        return RunRecord(
            model=NAME,
            device=str(device),
            config=plan.settings.config,
            span_frames=plan.remembered_frames,
            cache_bytes=self._spread([size.total for size in self.sizes]),
            exact_bytes=self._spread(exact),
            seconds=(*(0.0 for _ in range(plan.given)), *self._spread(per_frame)[plan.given :]),
            components=self.sizes[-1],
            workspace_bytes=self.workspace_bytes,
            given_frames=plan.given,
            read=self.read,
            placement=self.placement,
            remembers=self._remembers(),
        )

    def _spread(self, values: list[Any]) -> tuple[Any, ...]:
        """A value for each latent frame of its segment."""
        return tuple(value for place, value in zip(self.plan.segments, values, strict=True) for _ in range(place.frames))

    def _remembers(self) -> str:
        place, count = self.plan.segments[-1], len(self.plan.segments)
        segments = f"{count} segment{'s' if count > 1 else ''}"
        if not remembers(place):
            given = "one latent frame runs along in every pass" if place.condition else "it begins with nothing"
            return f"{segments}; the last one remembers nothing: {given}"
        if count == 1:
            carried = "those that were given"
        elif self.plan.options.carry == LATENTS:
            carried = "the latents of the one before, as they are (ours)"
        else:
            carried = "pictures of the one before, through the VAE (as released)"
        return f"{segments}; the last one remembers the {place.condition} latent frames that it is conditioned on: {carried}"
