"""Quant VideoGen's protocol for LongCat-Video (arXiv 2602.02958): 73 pictures are remembered, 20 new ones are judged.

Every method makes the same segment from the same noise on the same condition; its new pictures are held against the exact
cache's, the first of them and all of them apart, because one says what the memory lost and the other how far the video went
another way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import QVGConfig
from ..errors import ConfigError
from ..metrics import psnr_db
from ..models.longcat.config import LONG_CONDITION_PICTURES, SegmentFrames
from ..models.longcat.memory import ConditionCache
from .longcat import LongCatDenoiser, sample_segment, segment_noise

FRAMES = SegmentFrames(condition=LONG_CONDITION_PICTURES)
# As their script sets it up: two bits, one stage, 256 centroids of one span, 100 iterations; 70,587,904 bytes a layer at 480p.
QVG_PAPER = QVGConfig(clusters=256, iterations=100)


@dataclass(frozen=True)
class ProtocolRow:
    """What one method made. `cache_bytes` are counted, `exact_bytes` those of 16 bits; PSNR in dB of new pictures against the
    exact cache's: of the first, and the mean of all."""

    method: str
    cache_bytes: int
    exact_bytes: int
    first_psnr_db: float
    all_psnr_db: float
    seconds: float

    @property
    def ratio(self) -> float:
        """How many times fewer bytes than at 16 bits."""
        return self.exact_bytes / self.cache_bytes


@torch.inference_mode()
def run_protocol(
    denoiser: LongCatDenoiser,
    condition: Tensor,
    methods: Mapping[str, QVGConfig],
    decode: Callable[[Tensor], Tensor],
    frames: SegmentFrames = FRAMES,
    interrupt: Callable[[], None] | None = None,
) -> Iterator[ProtocolRow]:
    """A row for each method as soon as it is there; the exact cache is run first, without one.

    condition  latents [1, F, C, h, w] of the pictures that are remembered
    decode     a segment's latents [1, F, C, h, w] -> pictures [N, H, W, 3], uint8 or 0..1; the condition's are cut off here
    ConfigError: a condition of another length, a method that does not fit.
    """
    if condition.shape[1] != frames.condition_latents:
        raise ConfigError(
            f"the condition has {condition.shape[1]} latent frames, but {frames.condition} pictures are "
            f"{frames.condition_latents}; encode as many"
        )
    size = (int(condition.shape[3]), int(condition.shape[4]))
    shape = (1, frames.latents, denoiser.model.config.channels, *size)
    noise = segment_noise(denoiser.settings.seed, 0, shape).to(condition.device)

    def made(config: QVGConfig) -> tuple[Tensor, int, int, float]:
        started = time.perf_counter()
        kept = denoiser.dtype if config.codec == "none" else torch.bfloat16
        with ConditionCache(denoiser.model.config, *size, frames.condition_latents, config, kept, condition.device) as cache:
            latents = sample_segment(denoiser, noise, condition, cache, interrupt)
            exact = cache.spec.exact_bytes(frames.condition_latents)
            if config.codec != "none":
                cache.verify_encoded()
            counted = cache.nbytes().total
        pictures = decode(latents)
        if len(pictures) != frames.pictures:
            raise ConfigError(
                f"decode made {len(pictures)} pictures of a segment of {frames.pictures}; decode all of its latents"
            )
        return pictures[frames.condition :], counted, exact, time.perf_counter() - started

    reference = made(QVGConfig.preset("exact"))[0]
    for name, config in methods.items():
        pictures, counted, exact, seconds = made(config)
        each = psnr_db(reference, pictures)
        yield ProtocolRow(name, counted, exact, float(each[0]), float(each.mean()), seconds)
