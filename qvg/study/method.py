"""A method of the study as a record of its parts, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..cache.spec import CacheSpec
from ..codec import KeyValueCodecs, make_codecs
from ..config import QVGConfig
from ..errors import ConfigError

# Consecutive tokens that share a scale.
GROUP_TOKENS = 16


@dataclass(frozen=True)
class Coding:
    """What tokens are kept in: one of `COMPARED`'s codecs, or "none", 16 bits."""

    codec: str = "none"
    bits: int = 2
    bits_v: int | None = None

    def __post_init__(self) -> None:
        self.config()

    def config(self) -> QVGConfig:
        """As settings of a cache that encodes every block as soon as it is finished. ConfigError for widths that a core lacks."""
        return QVGConfig(
            codec=self.codec,
            bits=self.bits,
            bits_v=self.bits_v,
            group_size=GROUP_TOKENS,
            sink_frames=0,
            recent_frames=0,
            span_frames=1,
        )

    def codecs(self, spec: CacheSpec) -> KeyValueCodecs:
        """Of keys and of values. ConfigError where heads do not fit."""
        spec.check(self.config())
        return make_codecs(self.config(), spec.dtype)


@dataclass(frozen=True)
class Tier:
    """Frames up to some age: a share of those in memory (a float, times the layer's budget), or so many blocks (an int)."""

    until: float | int
    coding: Coding

    def frames(self, frames: int, chunk_frames: int, budget: float) -> int:
        """How many of the newest `frames` frames it reaches back to."""
        if isinstance(self.until, int):
            return min(frames, self.until * chunk_frames)
        return min(frames, max(1, round(min(self.until * budget, 1.0) * frames)))


@dataclass(frozen=True)
class Retention:
    """Of the frames behind all tiers and not important, the share that is kept (times the layer's budget). Of the others
    `pooled` leaves one token per frame, the mean of its keys and of its values, which counts as often as the frame had tokens."""

    share: float
    pooled: bool

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(
                f"a retention of {self.share} leaves nothing or more than everything; give a share above 0 and at most 1"
            )


@dataclass(frozen=True)
class Foreground:
    """Positions of the picture whose values vary most over time, a share of all, get a coding of their own.

    As published positions above `threshold` are taken where their share is between `least` and `most`; corrected it is always
    `share`, so that bytes do not depend on the content.
    """

    coding: Coding
    share: float = 0.65
    threshold: float | None = 0.02
    least: float = 0.45
    most: float = 0.85

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.share <= self.most < 1:
            raise ConfigError(
                f"a foreground of {self.share}, between {self.least} and {self.most}, is no share of a picture that has a "
                "background too; give 0 < least <= share <= most < 1"
            )


@dataclass(frozen=True)
class StudyMethod:
    """One row of the study.

    coding      of everything that no other part speaks of
    tiers       by age, the newest first
    important   share of the frames behind the tiers (times budget) that keeps the first tier's coding, by `Importance`
    budgets     of the first and of the last layer, in between linearly; or of each layer
    refresh     as published: quantize in the clean pass alone; ours always do
    reuse       the denoiser reuses its last velocity (`ReusingDenoiser`); nothing of the cache
    published_ratio  16 bits over what its authors count, MovieGen; None where they ran it in part
    """

    name: str
    coding: Coding
    tiers: tuple[Tier, ...] = ()
    important: float = 0.0
    retention: Retention | None = None
    foreground: Foreground | None = None
    budgets: tuple[float, ...] = (1.0, 1.0)
    refresh: bool = False
    reuse: bool = False
    published_ratio: float | None = None

    def __post_init__(self) -> None:
        for newer, older in zip(self.tiers, self.tiers[1:], strict=False):
            if type(newer.until) is not type(older.until) or older.until <= newer.until:
                raise ConfigError(
                    f"tiers of {self.name} overlap: one reaches back to {newer.until} and the next to {older.until}; let every "
                    "tier reach farther than the one before, all by shares or all by blocks"
                )
        for tier in self.tiers:
            if tier.until <= 0 or (isinstance(tier.until, float) and tier.until > 1):
                raise ConfigError(f"a tier of {self.name} reaches back to {tier.until}; give a share up to 1 or at least a block")
        if not 0 <= self.important < 1 or (self.important and not self.tiers):
            raise ConfigError(
                f"important is {self.important} in {self.name}, but must be from 0 to below 1, and 0 without a tier whose "
                "coding important frames could keep"
            )
        if len(self.budgets) < 2 or not all(math.isfinite(budget) and budget > 0 for budget in self.budgets):
            raise ConfigError(f"budgets of {self.name} are {self.budgets}; give two above 0, or one for every layer")
        if self.foreground is not None and (self.tiers or self.retention):
            raise ConfigError(f"{self.name} has a foreground and tiers or a retention; use one of them")

    @property
    def codings(self) -> tuple[Coding, ...]:
        """By level: of every tier, of important frames, of the others. What comes after them is not kept as it is."""
        important = self.tiers[0].coding if self.tiers else self.coding
        return (*(tier.coding for tier in self.tiers), important, self.coding)

    @property
    def plain(self) -> bool:
        """All frames are kept alike, whatever their age and content."""
        return not self.tiers and self.retention is None and self.foreground is None

    def budget(self, layer: int, layers: int) -> float:
        """What shares of a layer are multiplied by."""
        if len(self.budgets) != 2:
            if len(self.budgets) != layers:
                raise ConfigError(f"{self.name} has budgets for {len(self.budgets)} layers, but the model has {layers}")
            return self.budgets[layer]
        first, last = self.budgets
        return 1.0 if layers == 1 else first + (last - first) * layer / (layers - 1)
