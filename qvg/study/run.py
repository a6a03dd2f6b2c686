"""From a method to the cache and the denoiser that it runs with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..cache import KVCache
from ..cache.spec import CacheBytes, CacheSpec
from ..errors import ConfigError
from ..positions.rope import GridRope
from ..sampling.autoregressive import Denoiser
from .bytes import predict
from .cache import StudyCache
from .method import StudyMethod
from .published import PublishedCache
from .reuse import ReusingDenoiser


@dataclass(frozen=True)
class StudyRun:
    """A method in one of its two forms."""

    method: StudyMethod
    published: bool = False

    @property
    def same_as(self) -> StudyRun:
        """The run that this one is the same as, whatever they are called: corrected, REFRESH is the method without it, and tiers
        of one coding are none."""
        if self.published:
            return self
        method = self.method
        if len(set(method.codings)) == 1 and method.retention is None:
            method = replace(method, tiers=(), important=0.0, budgets=(1.0, 1.0))
        return StudyRun(replace(method, name="corrected", refresh=False, published_ratio=None))

    def cache(self, spec: CacheSpec, rope: GridRope | None, frames: int) -> KVCache:
        """For a video of so many frames."""
        return make_cache(self.method, spec, rope, self.published, frames)

    def denoiser(self, denoiser: Denoiser) -> Denoiser:
        """What goes over the video's blocks."""
        return ReusingDenoiser(denoiser) if self.method.reuse else denoiser

    def predicted(self, spec: CacheSpec, frames: int) -> CacheBytes | None:
        """Bytes after so many frames; None as published, where the content has a say."""
        return None if self.published else predict(self.method, spec, frames)


def make_cache(
    method: StudyMethod,
    spec: CacheSpec,
    rope: GridRope | None = None,
    published: bool = False,
    capacity_frames: int | None = None,
    **reading: object,
) -> KVCache:
    """The cache of one run. Corrected: `KVCache` itself where all frames are kept alike, otherwise `StudyCache`. As published:
    `PublishedCache`, allocated for `capacity_frames` beforehand. `reading`: settings that say how it is read (`seed`,
    `workspace_mb`)."""
    if published:
        if capacity_frames is None:
            raise ConfigError("a published cache is allocated beforehand; give capacity_frames, the length of the video")
        return PublishedCache(spec, method, capacity_frames, rope, **reading)
    if method.plain:
        return KVCache(spec, method.coding.config().with_changes(**reading), rope)
    return StudyCache(spec, method, rope, **reading)
