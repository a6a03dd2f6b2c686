"""The shape of a model's memory, and the bytes a cache will take, stated before anything is allocated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch

from .codec import Codec, ExactCodec, make_codecs
from .config import GROUP_SIZES, QVGConfig
from .errors import ConfigError
from .policy import CachePolicy, Layout


@dataclass(frozen=True)
class CacheBytes:
    """Bytes by component. `exact` is what is kept in 16 bits (sink and tail, or everything with codec "none")."""

    centroids: int = 0
    basis: int = 0
    ids: int = 0
    codes: int = 0
    scales: int = 0
    zero_points: int = 0
    exact: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))

    def by_component(self) -> dict[str, int]:
        """Components that are there, largest first."""
        sizes = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: size for name, size in sorted(sizes.items(), key=lambda item: -item[1]) if size}


@dataclass(frozen=True)
class CacheSpec:
    """What a backbone asks of its cache. `dtype` is what exact values are kept in: bf16 on every device unless a model needs
    another; `chunk_frames` are the latent frames it denoises and commits together."""

    layers: int
    heads: int
    head_dim: int
    tokens_per_frame: int
    chunk_frames: int = 1
    batch: int = 1
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "head_dim", "tokens_per_frame", "chunk_frames", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}, but must be a whole number of at least 1; read it from the model")

    def exact_bytes(self, frames: int) -> int:
        """Keys and values of so many frames at 16 bits per value."""
        return 2 * self.layers * self.batch * self.heads * self.head_dim * self.tokens_per_frame * frames * 2

    def check(self, config: QVGConfig) -> CachePolicy:
        """Raise ConfigError where a config does not fit this model; otherwise the policy it asks for."""
        policy = CachePolicy.of(config, self.chunk_frames, self.tokens_per_frame)
        if config.codec == "none":
            return policy
        self._check_channels(config)
        if config.codec != "klt" and self.head_dim % config.group_size:
            fitting = [size for size in GROUP_SIZES if self.head_dim % size == 0]
            raise ConfigError(
                f"group_size {config.group_size} does not divide head_dim {self.head_dim}; "
                + (f"use one of {fitting}" if fitting else "this model's heads cannot be quantized in groups, use codec 'none'")
            )
        tokens = policy.span_chunks * self.chunk_frames * self.tokens_per_frame
        if config.codec in ("qvg", "klt") and config.clusters != "auto" and config.clusters > tokens:
            raise ConfigError(
                f"clusters is {config.clusters}, but a span holds only {tokens} tokens ({policy.span_chunks} chunks of "
                f"{self.chunk_frames} frames of {self.tokens_per_frame} tokens); use at most {tokens} clusters or longer spans"
            )
        return policy

    def _check_channels(self, config: QVGConfig) -> None:
        channels = self.head_dim
        if (config.codec == "quarot" or (config.codec == "klt" and config.transform == "hadamard")) and channels & (channels - 1):
            other = "codec 'klt', 'kivi' or 'rtn'" if config.codec == "quarot" else "transform 'klt'"
            raise ConfigError(f"head_dim {channels} is not a power of two, which a Hadamard transform needs; use {other}")
        for name, bits in (("bits", config.bits), ("bits_v", config.bits_v or config.bits)):
            if config.codec == "klt" and bits * channels % 8:
                raise ConfigError(
                    f"{name} {bits} times head_dim {channels} is not a whole number of bytes; use a multiple of {8 / channels:g}"
                )

    def predict(self, config: QVGConfig, frames: int) -> CacheBytes:
        """Bytes of the cache after `frames` committed frames, in chunks of `chunk_frames` (the last one may be short)."""
        policy, layout, evicted = self.check(config), Layout(), 0
        for start in range(0, frames, self.chunk_frames):
            step = policy.commit(layout, min(self.chunk_frames, frames - start))
            layout, evicted = step.layout, evicted + step.evict_spans
        return self._bytes(config, layout, evicted)

    def _bytes(self, config: QVGConfig, layout: Layout, evicted_spans: int) -> CacheBytes:
        exact = ExactCodec(self.dtype)
        sizes: Counter[str] = Counter()
        for frames in (*layout.sink, *layout.tail):
            sizes.update(self._each(exact.predicted_bytes, frames, 2))
        for codec in make_codecs(config, self.dtype):
            for frames in layout.spans:
                sizes.update(self._each(codec.predicted_bytes, frames, 1))
            sizes.update(self._codebooks(codec, config.spans_per_codebook, layout.spans, evicted_spans))
        return CacheBytes(**{name: self.layers * size for name, size in sizes.items()})

    def _codebooks(self, codec: Codec, shared: int, spans: Sequence[int], evicted: int) -> Counter[str]:
        """Codebooks that some span in memory uses. One that evicted spans have trained stays as long as one of its spans does."""
        sizes: Counter[str] = Counter()
        for group in range(evicted // shared, -(-(evicted + len(spans)) // shared)):
            members = range(group * shared, min((group + 1) * shared, evicted + len(spans)))
            # Only the last span of a video may be short, so spans that have left were as long as the first that is here.
            frames = [spans[max(0, index - evicted)] for index in members]
            rows = (self.batch, self.heads, self.head_dim)
            sizes.update(codec.predicted_codebook_bytes(rows, [count * self.tokens_per_frame for count in frames]))
        return sizes

    def _each(self, predict: Callable[[tuple[int, int, int, int]], dict[str, int]], frames: int, times: int) -> dict[str, int]:
        sizes = predict((self.batch, self.heads, frames * self.tokens_per_frame, self.head_dim))
        return {name: times * size for name, size in sizes.items()}
