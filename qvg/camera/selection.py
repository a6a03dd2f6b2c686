"""Which earlier frames become the context of a chunk: the newest, and the clips that look where the chunk will look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from .overlap import FieldOfView

# How far a clip of four frames (its first frame) is from frames that are about to be painted (their numbers): 0..1.
Distance = Callable[[Sequence[int], int], float]


@dataclass(frozen=True)
class MemoryRule:
    """`context_frames` in all: the newest `recent_frames` and the `first_frames` always, then clips of `chunk_frames`, nearest
    first, of equal ones the older. While history is shorter than `everything_below`, all of it is context."""

    context_frames: int
    recent_frames: int
    everything_below: int
    first_frames: int = 0
    chunk_frames: int = 4

    def __post_init__(self) -> None:
        if self.context_frames < self.recent_frames + self.first_frames + self.chunk_frames:
            raise ConfigError(
                f"a context of {self.context_frames} frames has no room for {self.recent_frames} recent frames, "
                f"{self.first_frames} first ones and one clip of {self.chunk_frames}; raise context_frames"
            )

    def select(self, current: int, frames: int, distance: Distance) -> list[int]:
        """Frames that the chunk starting at frame `current` sees, ascending; `frames` is how many have a pose."""
        if current < self.everything_below:
            return list(range(current))
        queries = range(current, min(current + self.chunk_frames, frames))
        clips = range(self.first_frames, current - self.recent_frames, self.chunk_frames)
        nearest = sorted(clips, key=lambda clip: distance(queries, clip))
        room = self.context_frames - self.recent_frames - self.first_frames
        chosen = {*range(self.first_frames), *range(current - self.recent_frames, current)}
        for clip in nearest[: -(-room // self.chunk_frames)]:
            chosen.update(range(clip, clip + self.chunk_frames))
        return sorted(chosen)


# As the official pipelines call it. The Hunyuan rule takes everything up to and including 20 frames.
WAN_MEMORY = MemoryRule(context_frames=16, recent_frames=12, everything_below=16)
HUNYUAN_MEMORY = MemoryRule(context_frames=20, recent_frames=12, everything_below=21, first_frames=4)


def select_context(rule: MemoryRule, views: Tensor, current: int, field: FieldOfView) -> list[int]:
    """`rule.select` by field-of-view overlap. views [F, 4, 4]. Raises ConfigError where the chunk has no pose."""
    if not 0 <= current < len(views):
        raise ConfigError(f"the chunk starts at frame {current}, but there are poses for {len(views)} frames; lengthen the path")
    views = views.to(torch.float64)
    return rule.select(current, len(views), lambda queries, clip: field.distance(views, queries, clip))
