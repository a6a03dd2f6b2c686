"""Which frame is kept how: numbers only, no tensor comes near this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .method import StudyMethod


class Counts(NamedTuple):
    """Frames by level: of each tier, important, the others that are kept, and those that are not."""

    tiers: tuple[int, ...]
    important: int
    kept: int
    evicted: int


def count(method: StudyMethod, frames: int, budget: float, chunk_frames: int) -> Counts:
    """How many of `frames` frames a layer of this budget keeps how: rounded as published."""
    ends = [tier.frames(frames, chunk_frames, budget) for tier in method.tiers]
    tiers = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    old = frames - sum(tiers)
    important = min(old, max(1, round(method.important * budget * old))) if method.important and old else 0
    kept = old - important
    if method.retention is not None and kept:
        kept = min(kept, max(1, round(method.retention.share * budget * kept)))
    return Counts(tiers, important, kept, old - important - kept)


def levels(counts: Counts, scores: Sequence[float], now: Sequence[int]) -> list[int]:
    """The level of every frame, oldest first; `now` those they have. A frame never rises: what it has lost is gone.

    scores  how much each frame matters; among equals the newer one does more
    """
    frames, tiers = len(now), len(counts.tiers)
    planned = list(now)
    newest = frames
    for level, number in enumerate(counts.tiers):
        for frame in range(newest - number, newest):
            planned[frame] = max(now[frame], level)
        newest -= number
    ranked = sorted(range(newest), key=lambda frame: (scores[frame], frame), reverse=True)
    left = [counts.important, counts.kept]
    for frame in ranked:
        level = max(now[frame], tiers)
        while level < tiers + 2 and not left[level - tiers]:
            level += 1
        if level < tiers + 2:
            left[level - tiers] -= 1
        planned[frame] = level
    return planned
