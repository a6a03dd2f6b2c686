"""From a method to the cache that it runs in."""

from __future__ import annotations

from ..cache import KVCache
from ..cache.spec import CacheSpec
from ..errors import ConfigError
from ..positions.rope import GridRope
from .cache import StudyCache
from .method import StudyMethod
from .published import PublishedCache


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
