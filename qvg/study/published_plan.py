"""Which tokens a layer's cache keeps how, as the code of arXiv 2603.27469 has it, and what its authors count for that.

The cache is allocated in full beforehand. Tiers of AGE_TIER and TPTQ are shares of what is allocated, so that "recent" is what
has not been generated yet; those of FLOWCACHE are shares of the frames that are there. Tokens are picked by lists of their
numbers (8 bytes each), which cut across the groups of 16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from ..cache.spec import CacheSpec
from ..codec.compared import make_core
from ..codec.core import CoreCodec
from .bytes import STUDY_FRAMES, STUDY_SPEC
from .foreground import foreground_tokens
from .method import GROUP_TOKENS, Coding, StudyMethod
from .plan import count, levels

_INDEX_BYTES, _MASK_BYTES = 8, 1


@dataclass
class Portion:
    """Tokens that are quantized together."""

    coding: Coding
    tokens: list[int]


@dataclass
class Partition:
    """A layer's tokens. `pooled` frames are a mean each, `zeroed` ones are zeros; neither is in a portion. `masked`: a byte for
    every token is kept as well; `listed`: their numbers are."""

    portions: list[Portion]
    pooled: list[int] = field(default_factory=list)
    zeroed: list[int] = field(default_factory=list)
    masked: bool = False
    listed: bool = False


def partition(
    method: StudyMethod,
    spec: CacheSpec,
    layer: int,
    capacity: int,
    active: int,
    scores: Sequence[float],
    mask: Sequence[int] = (),
) -> Partition:
    """Of `capacity` allocated tokens, `active` of which are there. `scores`: of the active frames; `mask`: the numbers of the
    foreground's positions in a frame."""
    size, everything = spec.tokens_per_frame, range(capacity)
    if method.foreground is not None:
        inside = set(mask)
        front = [token for token in everything if token % size in inside]
        back = [token for token in everything if token % size not in inside]
        portions = [Portion(method.foreground.coding, front), Portion(method.coding, back)]
        return Partition(portions, masked=True, listed=True)
    if method.plain:
        return Partition([Portion(method.coding, list(everything))])
    if isinstance(method.tiers[0].until, int):
        first = max(0, active - method.tiers[0].until * spec.chunk_frames * size)
        old = [token for token in everything if not first <= token < active]
        return Partition([Portion(method.tiers[0].coding, list(range(first, active))), Portion(method.coding, old)])
    if not _flows(method):
        recent = max(1, round(method.tiers[0].until * capacity))
        tiers = [Portion(method.tiers[0].coding, list(everything[-recent:])), Portion(method.coding, list(everything[:-recent]))]
        return Partition(tiers, masked=True, listed=True)
    return _by_frames(method, spec, layer, active, scores)


def _by_frames(method: StudyMethod, spec: CacheSpec, layer: int, active: int, scores: Sequence[float]) -> Partition:
    size = spec.tokens_per_frame
    frames = -(-active // size)
    counts = count(method, frames, method.budget(layer, spec.layers), spec.chunk_frames)
    places = levels(counts, scores, [0] * frames)
    gone = [frame for frame, level in enumerate(places) if level == len(method.codings)]
    portions = []
    for level, coding in enumerate(method.codings):
        chosen = [frame for frame, place in enumerate(places) if place == level]
        portions.append(Portion(coding, [token for frame in chosen for token in range(frame * size, (frame + 1) * size)]))
    pooled = method.retention is not None and method.retention.pooled
    masked = not method.important  # the plain hybrid keeps its mask beside the lists
    return Partition(portions, gone if pooled else [], [] if pooled else gone, masked, listed=True)


def published_bytes(found: Partition, spec: CacheSpec, capacity: int) -> int:
    """What the authors count for one layer, but for QAQ's and TPTQ's outliers, which their content decides: packed codes, scales
    and zero points, lists and masks."""
    total = _MASK_BYTES * capacity if found.masked else 0
    for portion in found.portions:
        tokens = len(portion.tokens)
        if not tokens:
            continue
        if portion.coding.codec == "none":
            total += 2 * spec.batch * spec.heads * tokens * spec.head_dim * 2
        else:
            shape = (spec.batch, spec.heads, tokens, spec.head_dim)
            for which in (0, 1):
                parts = published_codec(portion.coding, which).predicted_bytes(shape)
                total += sum(size for name, size in parts.items() if name != "outliers")
        total += _INDEX_BYTES * tokens if found.listed else 0
    pooled = 2 * spec.batch * spec.heads * spec.head_dim * 2 + 16  # a mean of keys, one of values, and where they belong
    return total + pooled * len(found.pooled)


def published_codec(coding: Coding, which: int) -> CoreCodec:
    """The core of keys (which = 0) or values (1) with everything that its published code does."""
    bits = coding.bits if which == 0 or coding.bits_v is None else coding.bits_v
    return CoreCodec(coding.codec, make_core(coding.codec, bits, GROUP_TOKENS, which, published=True))


def layers(method: StudyMethod, spec: CacheSpec, frames: int) -> Iterator[Partition]:
    """Of a full cache, every layer's. Which frames matter does not change how many there are."""
    capacity, found = frames * spec.tokens_per_frame, None
    scores = [float(frame) for frame in range(frames)]
    mask: list[int] = []
    if method.foreground is not None:
        mask = list(range(foreground_tokens(method.foreground, spec.tokens_per_frame)))
    for layer in range(spec.layers):
        if found is None or _flows(method):
            found = partition(method, spec, layer, capacity, capacity, scores, mask)
        yield found


@cache
def published_ratio(method: StudyMethod, spec: CacheSpec = STUDY_SPEC, frames: int = STUDY_FRAMES) -> float:
    """16 bits over what the authors count for a full cache, on their own shape unless told otherwise."""
    capacity = frames * spec.tokens_per_frame
    return spec.exact_bytes(frames) / sum(published_bytes(found, spec, capacity) for found in layers(method, spec, frames))


class Held(NamedTuple):
    """What the published integration has in memory for a full cache at its peak, and when that is. `working`: what writing a
    layer back takes meanwhile, if it is then."""

    total: int
    working: int
    denoising: bool


def held_bytes(method: StudyMethod, spec: CacheSpec = STUDY_SPEC, frames: int = STUDY_FRAMES) -> Held:
    """Every code takes 16 bits (the first runs of RTN, KIVI and QuaRot) or 8 (later ones), whatever its width, and the peak is in
    the video's decoder, with the cache still there. The runs of REFRESH, RECENT2 and K2V4 keep a 16-bit cache of everything
    beside their codes while they denoise, which is more than what is left of them in the decoder: their peak is when a layer is
    written back. The network of these runs is not published; that it is so follows from their peaks, and from where they ran out
    of memory.
    """
    beside = method.refresh or method.coding.bits_v is not None or any(isinstance(tier.until, int) for tier in method.tiers)
    code_bytes = 2 if method.name.startswith(("RTN", "KIVI", "QUAROT")) and not beside else 1
    total, working = spec.exact_bytes(frames) if beside else 0, 0
    capacity = frames * spec.tokens_per_frame
    for found in layers(method, spec, frames):
        for portion in found.portions:
            if not beside:
                total += _unpacked_bytes(portion, spec, code_bytes, (0, 1))
            elif portion.coding.codec != "none":  # what is kept in 16 bits is in that cache
                alone = Partition([portion])
                total += published_bytes(alone, spec, capacity) + _unpacked_bytes(portion, spec, code_bytes, (0, 1))
                working = _writing_bytes(portion, spec, code_bytes)
        total += 0 if beside else published_bytes(found, spec, capacity)
    return Held(total, working, beside)


def _writing_bytes(portion: Portion, spec: CacheSpec, code_bytes: int) -> int:
    """At most, while a layer's values are quantized: two 16-bit copies of them for rounding, another where they were rotated
    before, and the keys' new codes and scales."""
    shape = (spec.batch, spec.heads, len(portion.tokens), spec.head_dim)
    copies = 3 if portion.coding.codec == "study-quarot" else 2
    keys = sum(published_codec(portion.coding, 0).predicted_bytes(shape).values())
    return copies * 2 * math.prod(shape) + keys + _unpacked_bytes(portion, spec, code_bytes, (0,))


def _unpacked_bytes(portion: Portion, spec: CacheSpec, code_bytes: int, which: Sequence[int]) -> int:
    """What a portion's codes of keys (0) and values (1) take more than packed ones."""
    shape = (spec.batch, spec.heads, len(portion.tokens), spec.head_dim)
    if portion.coding.codec == "none" or not portion.tokens:
        return 0
    more = 0
    for each in which:
        codec = published_codec(portion.coding, each)
        for name, grid in zip(("codes", "residual_codes"), codec.core.grids, strict=False):
            packed = math.prod(codec.parts(shape)[name].shape)
            more += packed * 8 // grid.bits * code_bytes - packed
    return more


def _flows(method: StudyMethod) -> bool:
    return method.name.startswith("FLOWCACHE")
