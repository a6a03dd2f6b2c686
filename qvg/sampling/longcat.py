"""LongCat-Video: one segment from noise, and a video of any number of segments. No ComfyUI; callbacks report and interrupt.

A segment is denoised whole. What it is conditioned on, a picture or the end of the video so far, are its first latent frames:
they are given, told noise level 0, and either run along in every pass (as image to video is released) or are made into a memory
once (as continuation is released). Latents are [B, F, C, h, w], normalised as the network takes them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cache.spec import CacheBytes
from ..config import QVGConfig
from ..errors import ConfigError
from ..models.longcat.config import SegmentFrames
from ..models.longcat.memory import SDPA, ConditionCache, WholeAttention
from ..models.longcat.network import LongCat, Prompt
from ..models.longcat.schedule import LongCatSettings, guided

# The condition of the next segment, of the latents of this one, its own condition in front.
NextCondition = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Texts:
    """A prompt, and what guidance leads away from; None: nothing, for guidance 1."""

    prompt: Prompt
    negative: Prompt | None = None

    def check(self, settings: LongCatSettings) -> None:
        """ConfigError where guidance has nothing to lead away from."""
        if settings.guidance != 1 and self.negative is None:
            raise ConfigError(
                f"guidance is {settings.guidance:g}, but there is no negative prompt; give one (an empty text will do), or use 1"
            )


class LongCatDenoiser:
    """The network as a segment of one size sees it.

    together  both guidance branches in one pass: weights are read once, activations are there twice. The same numbers
    sdpa      attention where there is no memory
    """

    def __init__(
        self,
        model: LongCat,
        texts: Texts,
        settings: LongCatSettings,
        dtype: torch.dtype | None = None,
        together: bool = False,
        sdpa: SDPA = F.scaled_dot_product_attention,
    ):
        texts.check(settings)
        self.model, self.texts, self.settings, self.together, self._sdpa = model, texts, settings, together, sdpa
        self.dtype = dtype or model.x_embedder.proj.weight.dtype

    def record(self, condition: Tensor, cache: ConditionCache) -> None:
        """Fill the memory with what a segment is conditioned on, [1, F, C, h, w]."""
        if condition.shape[0] != 1 or condition.shape[1] != cache.condition_frames:
            raise ConfigError(
                f"the condition is {list(condition.shape)}, but this memory takes 1 video of {cache.condition_frames} latent "
                "frames; make it for as many"
            )
        self.model.record(condition.to(self.dtype), cache.recording())

    def flow(self, x: Tensor, sigma: float, condition_frames: int = 0, cache: ConditionCache | None = None) -> Tensor:
        """noise - clean of x [B, F, C, h, w], in float32. Without a memory the first `condition_frames` of x are the
        condition."""
        told = torch.full(x.shape[:2], self.settings.told(sigma), device=x.device)
        if cache is None:
            told[:, :condition_frames] = 0
            rope = self.model.config.rope(*x.shape[3:])
            attend: WholeAttention | Callable[..., Tensor]
            attend = WholeAttention(rope, x.shape[1], condition_frames, x.device, self._sdpa)
        else:
            cache.begin_pass(x.shape[1])
            attend, condition_frames = cache.attend, 0
        prompts = [self.texts.prompt]
        if self.settings.guidance != 1 and self.texts.negative is not None:
            prompts.append(self.texts.negative)
        if self.together:
            many = len(prompts)
            joined = Prompt.joined(*(_for_batch(prompt, x.shape[0]) for prompt in prompts))
            whole = self.model(x.to(self.dtype).repeat(many, 1, 1, 1, 1), told.repeat(many, 1), joined, attend, condition_frames)
            made = list(whole.chunk(many))
        else:
            texts = (_for_batch(prompt, x.shape[0]) for prompt in prompts)
            made = [self.model(x.to(self.dtype), told, text, attend, condition_frames) for text in texts]
        return -(made[0] if len(made) == 1 else guided(made[0], made[1], self.settings.guidance))


def _for_batch(prompt: Prompt, batch: int) -> Prompt:
    return Prompt(prompt.embedded.expand(batch, -1, -1)) if prompt.batch == 1 else prompt


@torch.inference_mode()
def sample_segment(
    denoiser: LongCatDenoiser,
    noise: Tensor,
    condition: Tensor | None = None,
    cache: ConditionCache | None = None,
    interrupt: Callable[[], None] | None = None,
    step_done: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """A segment from noise [B, F, C, h, w], F all of its latent frames. -> the same shape, the condition in front.

    condition  clean latents [1 or B, Fc, C, h, w] of its first frames; None: text to video
    cache      a memory for one video's condition, filled here; None: the condition runs along in every pass, and CFG-zero* is
               scaled by its frames as well, which makes other videos under guidance
    interrupt  called before every pass; whatever it raises ends the run
    step_done  told of every finished step: its number from 1, how many there are, and the segment's new latents so far
    """
    given = 0 if condition is None else condition.shape[1]
    if given >= noise.shape[1]:
        raise ConfigError(
            f"the segment has {noise.shape[1]} latent frames and is conditioned on {given}, so it adds nothing; make it longer"
        )
    if cache is not None and condition is None:
        raise ConfigError("there is a memory, but nothing to remember; give a condition, or no memory")
    x = noise[:, given:].float()
    front = x[:, :0] if condition is None else condition.to(x).expand(x.shape[0], -1, -1, -1, -1)
    if cache is not None:
        if interrupt is not None:
            interrupt()
        denoiser.record(front[:1], cache)
    levels = denoiser.settings.sigmas(continues=given > 1)
    for step, (sigma, following) in enumerate(itertools.pairwise(levels), 1):
        if interrupt is not None:
            interrupt()
        if cache is None:
            flow = denoiser.flow(torch.cat([front, x], 1), sigma, given)[:, given:]
        else:
            flow = denoiser.flow(x, sigma, cache=cache)
        x = x + (following - sigma) * flow
        if step_done is not None:
            step_done(step, len(levels) - 1, x)
    return torch.cat([front, x], 1)


@dataclass(frozen=True)
class Segment:
    """One finished segment. `latents` [1, F, C, h, w], the first `condition_latents` of which are not new; `cache`: bytes of the
    memory that it was made with, None without one."""

    index: int
    latents: Tensor
    condition_latents: int
    seconds: float
    cache: CacheBytes | None


@dataclass(frozen=True)
class SegmentPlan:
    """A video of `len(texts)` segments, each with its texts.

    frames      of every segment but a first one that starts from text or a picture, which has the same pictures
    config      of the memory
    remember_picture  whether a single picture, too, is made into a memory; as released it runs along in every pass
    """

    texts: Sequence[Texts]
    frames: SegmentFrames
    settings: LongCatSettings
    config: QVGConfig
    remember_picture: bool = False
    together: bool = False

    def __post_init__(self) -> None:
        if not self.texts:
            raise ConfigError("the video has no segments; give at least one prompt")
        for texts in self.texts:
            texts.check(self.settings)
        if len(self.texts) > 1 and not self.frames.condition:
            raise ConfigError(
                f"{len(self.texts)} segments are to follow each other on a condition of 0 pictures; use 13 as released, or 73"
            )


def generate_segments(
    model: LongCat,
    plan: SegmentPlan,
    latent_size: tuple[int, int],
    start: Tensor | None,
    next_condition: NextCondition,
    dtype: torch.dtype | None = None,
    interrupt: Callable[[], None] | None = None,
    step_done: Callable[[int, int, Tensor], None] | None = None,
    sdpa: SDPA = F.scaled_dot_product_attention,
    first_segment: int = 0,
    before: Tensor | None = None,
) -> Iterator[Segment]:
    """Segment after segment; each is yielded as soon as it is there, its memory freed by then.

    latent_size     rows and columns of a latent frame
    start           latents [1, F, C, h, w] of a picture (F = 1) or of the end of a video; None: the first segment is made of text
    next_condition  of the latents of one segment, what the next one is conditioned on: `through_pictures` as released, or
                    `last_latents`, which is ours
    first_segment   begin with this one; `before`: latents of the one before it, its condition in front, as it was yielded
    """
    if (first_segment > 0) != (before is not None):
        raise ConfigError(
            f"segment {first_segment} is to be the first; give the latents of the one before it, and of none before 0"
        )
    condition = start if before is None or first_segment >= len(plan.texts) else next_condition(before)
    for index, texts in itertools.islice(enumerate(plan.texts), first_segment, None):
        started = time.perf_counter()
        denoiser = LongCatDenoiser(model, texts, plan.settings, dtype, plan.together, sdpa)
        device = model.x_embedder.proj.weight.device if start is None else start.device
        noise = segment_noise(plan.settings.seed, index, (1, plan.frames.latents, model.config.channels, *latent_size)).to(device)
        remembers = condition is not None and (condition.shape[1] > 1 or plan.remember_picture)
        if condition is not None and remembers:
            kept = denoiser.dtype if plan.config.codec == "none" else torch.bfloat16
            with ConditionCache(model.config, *latent_size, condition.shape[1], plan.config, kept, device) as cache:
                latents = sample_segment(denoiser, noise, condition, cache, interrupt, step_done)
                size = cache.nbytes()
                if plan.config.codec != "none":
                    cache.verify_encoded()
        else:
            latents, size = sample_segment(denoiser, noise, condition, None, interrupt, step_done), None
        given = 0 if condition is None else condition.shape[1]
        yield Segment(index, latents, given, time.perf_counter() - started, size)
        if index + 1 < len(plan.texts):
            condition = next_condition(latents)


def segment_noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Of one segment; depends on the seed and its number alone, drawn on the CPU, so the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed((seed * 1_000_003 + index) % (1 << 63)))


def last_latents(frames: SegmentFrames) -> NextCondition:
    """Ours: the next segment is conditioned on the last latents of this one, without a way through pictures and back. The first
    of them stands for four pictures where the model was trained with one."""
    return lambda latents: latents[:, -frames.condition_latents :]


def through_pictures(
    decode: Callable[[Tensor], Tensor], encode: Callable[[Tensor], Tensor], frames: SegmentFrames
) -> NextCondition:
    """As released: a segment's latents become pictures, the last of which are encoded again. `decode`: [1, F, C, h, w] ->
    pictures [N, ...]; `encode`: pictures -> latents, both normalised."""

    def condition(latents: Tensor) -> Tensor:
        pictures = decode(latents)
        frames.require_video(len(pictures))
        return encode(pictures[-frames.condition :])

    return condition
