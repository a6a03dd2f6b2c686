"""Bytes of a study's method before anything is allocated; what its authors count; and what their integration holds."""

from __future__ import annotations

from collections import Counter

import torch

from ..cache.spec import CacheBytes, CacheSpec
from ..codec import ExactCodec, KeyValueCodecs
from .foreground import foreground_tokens
from .method import StudyMethod
from .plan import count

# Self-Forcing 1.3B as the study runs it: 42 latent frames of 1,560 tokens in blocks of 3, all of them allocated beforehand.
STUDY_SPEC = CacheSpec(layers=30, heads=12, head_dim=128, tokens_per_frame=1560, chunk_frames=3)
STUDY_FRAMES = 42


def predict(method: StudyMethod, spec: CacheSpec, frames: int) -> CacheBytes:
    """A corrected cache of so many committed frames, by component: exactly what `make_cache`'s counts then."""
    if method.plain:
        return spec.predict(method.coding.config(), frames)
    total: Counter[str] = Counter()
    if method.foreground is not None:
        total.update(_times(frames * spec.layers, _mixed_frame(method, spec)))
        total["ids"] += frames * spec.layers * -(-spec.tokens_per_frame // 8)
        total["scales"] += spec.layers * 2 * spec.tokens_per_frame * torch.float32.itemsize
        return CacheBytes(**total)
    levels = [_frame(coding.codecs(spec), spec) for coding in method.codings]
    pooled = Counter(_pooled(spec)) if method.retention is not None and method.retention.pooled else Counter[str]()
    for layer in range(spec.layers):
        counts = count(method, frames, method.budget(layer, spec.layers), spec.chunk_frames)
        for number, sizes in zip((*counts.tiers, counts.important, counts.kept), levels, strict=True):
            total.update(_times(number, sizes))
        total.update(_times(counts.evicted, pooled))
    return CacheBytes(**total)


def ratio(method: StudyMethod, spec: CacheSpec = STUDY_SPEC, frames: int = STUDY_FRAMES) -> float:
    """How many times less the corrected cache takes than 16 bits per value."""
    return spec.exact_bytes(frames) / predict(method, spec, frames).total


def _frame(codecs: KeyValueCodecs, spec: CacheSpec) -> Counter[str]:
    """Keys and values of one frame of one layer."""
    sizes: Counter[str] = Counter()
    for codec in codecs:
        sizes.update(codec.predicted_bytes((spec.batch, spec.heads, spec.tokens_per_frame, spec.head_dim)))
    return sizes


def _pooled(spec: CacheSpec) -> dict[str, int]:
    size = ExactCodec(spec.dtype).predicted_bytes((spec.batch, spec.heads, 1, spec.head_dim))
    return {name: 2 * value for name, value in size.items()}


def _mixed_frame(method: StudyMethod, spec: CacheSpec) -> Counter[str]:
    assert method.foreground is not None
    sizes: Counter[str] = Counter()
    counts = foreground_tokens(method.foreground, spec.tokens_per_frame)
    for coding, tokens in ((method.foreground.coding, counts), (method.coding, spec.tokens_per_frame - counts)):
        for codec in coding.codecs(spec):
            sizes.update(codec.predicted_bytes((spec.batch, spec.heads, tokens, spec.head_dim)))
    return sizes


def _times(factor: int, sizes: Counter[str]) -> Counter[str]:
    return Counter({name: factor * size for name, size in sizes.items()})
