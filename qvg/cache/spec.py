"""The shape of a model's memory, and the bytes a cache will take, stated before anything is allocated."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch

from ..attention.sparse import LEAST_TOKENS, tiles_read
from ..attention.tiles import TILE_TOKENS, tile_bytes, tile_count
from ..codec import ExactCodec, KeyValueCodecs, KLTCodec, make_codecs
from ..codec.base import Codebooks
from ..codec.compared import check_channels
from ..config import COMPARED, GROUP_SIZES, QVGConfig
from ..errors import ConfigError
from .even_growth import EvenGrowth
from .growth import Growth, Memory, even_chunks
from .merge_bytes import MergedBytes
from .merge_peak import MergedPeaks, merged_peaks
from .peak import EvenPeaks, peaks
from .policy import CachePolicy
from .short_spans import encoding, short_spans_text


@dataclass(frozen=True)
class CacheBytes:
    """Bytes by component. `exact` is what is kept in 16 bits (sink and tail, or everything with codec "none"); `rows` says where
    merged tokens are and how many each row counts, once for all layers; `tiles` are the order and the means of tokens of which
    only a share is read."""

    centroids: int = 0
    basis: int = 0
    ids: int = 0
    codes: int = 0
    scales: int = 0
    zero_points: int = 0
    exact: int = 0
    rows: int = 0
    outliers: int = 0
    tiles: int = 0

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
        if config.merges and self.batch > 1:
            raise ConfigError(
                f"merge {config.merge:g} does not go with a batch of {self.batch}: what is kept of one video would depend on the "
                "others; generate them one by one, or use merge 0"
            )
        if config.codec == "none":
            return policy
        self._check_channels(config)
        if config.codec in COMPARED:
            check_channels(config, self.head_dim)
        elif config.codec != "klt" and self.head_dim % config.group_size:
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

    def span_tokens(self, config: QVGConfig) -> int:
        """Tokens of a whole span."""
        return self.check(config).span_chunks * self.chunk_frames * self.tokens_per_frame

    def codecs(self, config: QVGConfig) -> KeyValueCodecs:
        """What keys and values are encoded with."""
        return make_codecs(encoding(config, self.span_tokens(config), self.head_dim), self.dtype)

    def short_spans_text(self, config: QVGConfig) -> str:
        """A sentence where a window makes spans too short to learn a basis from; otherwise empty."""
        return short_spans_text(config, self.span_tokens(config), self.head_dim)

    def _check_channels(self, config: QVGConfig) -> None:
        channels = self.head_dim
        if channels % 8 and config.codec != "none":
            raise ConfigError(f"head_dim {channels} is not a multiple of 8, but codes are packed in bytes; use codec 'none'")
        if (config.codec == "quarot" or (config.codec == "klt" and config.transform == "hadamard")) and channels & (channels - 1):
            other = "codec 'klt', 'kivi' or 'rtn'" if config.codec == "quarot" else "transform 'klt'"
            raise ConfigError(f"head_dim {channels} is not a power of two, which a Hadamard transform needs; use {other}")
        for name, bits in (("bits", config.bits), ("bits_v", config.bits_v or config.bits)):
            if config.codec == "klt" and bits * channels % 8:
                raise ConfigError(
                    f"{name} {bits} times head_dim {channels} is not a whole number of bytes; use a multiple of {8 / channels:g}"
                )

    def predict(
        self,
        config: QVGConfig,
        frames: int,
        chunks: Sequence[int] | None = None,
        codebooks: Codebooks | Literal["most"] | None = None,
        rows: int | None = None,
    ) -> CacheBytes:
        """Bytes of the cache after `frames` committed frames, in chunks of `chunk_frames` (the last one may be short), or of
        these sizes: what `chunks` says of later frames is not looked at.

        codebooks  codec "klt" begins further codebooks and bases where frames do not fit those that are there. None: the ordinary
                   number, without any; what `KVCache.codebooks` says: the bytes of that cache, exactly; "most": an upper bound,
                   with a codebook begun at every span in every layer
        rows       of a cache that merges tokens: how many rows there are (`KVCache.merged_rows`). None: an upper bound, because
                   what looks alike is not known before
        """
        if config.merges:
            merged = MergedBytes(self, config)
            layout = merged.layout(self._cut(frames, chunks))
            return CacheBytes(**(merged.most(layout, codebooks) if rows is None else merged.sizes(layout, rows, codebooks)))
        memory = self._memory(config, frames, chunks)
        sizes = self._span_bytes(config, memory)
        for which, codec in enumerate(self.codecs(config)):
            if codebooks is None or not isinstance(codec, KLTCodec):
                for codebook, many in memory.codebooks.items():
                    tokens = [count * self.tokens_per_frame for count in codebook]
                    sizes.update(_times(many * self.layers, codec.predicted_codebook_bytes(self._rows, tokens)))
            elif isinstance(codebooks, str):
                for count, many in memory.spans.items():
                    window = config.window_frames is not None
                    for size in codec.most_codebooks([count * self.tokens_per_frame], self.head_dim, window):
                        sizes.update(_times(many * self.layers, codec.codebook_bytes(self._rows, size)))
            else:
                for layer in codebooks:
                    for size in layer[which]:
                        sizes.update(codec.codebook_bytes(self._rows, size))
        return CacheBytes(**sizes)

    def codebook_bytes(self, config: QVGConfig) -> int:
        """Bytes of one codebook more in every layer, for keys and values: the price of a scene that does not fit those before."""
        tokens = [self.span_tokens(config)]
        sizes = (codec.predicted_codebook_bytes(self._rows, tokens) for codec in self.codecs(config))
        return self.layers * sum(sum(size.values()) for size in sizes)

    def predict_peak(
        self,
        config: QVGConfig,
        frames: int,
        chunks: Sequence[int] | None = None,
        block_dtype: torch.dtype | None = None,
        by_layer: bool = True,
    ) -> int:
        """Bytes at the worst moment of a run of so many frames: what `peak` counts. For the arguments see `peak.peaks`."""
        sizes = list(self._cut(frames, chunks))
        if (first := self._first_of_even(sizes)) is not None:
            return self.even_peaks(config, first, block_dtype, by_layer).after(frames).peak_bytes
        walked = (merged_peaks if config.merges else peaks)(self, config, sizes, block_dtype, by_layer)
        return max((peak.peak_bytes for peak in walked), default=0)

    def even_peaks(
        self, config: QVGConfig, first_frames: int = 0, block_dtype: torch.dtype | None = None, by_layer: bool = True
    ) -> EvenPeaks | MergedPeaks:
        """See `EvenPeaks`; upper bounds where tokens are merged."""
        return (MergedPeaks if config.merges else EvenPeaks)(self, config, first_frames, block_dtype, by_layer)

    def _memory(self, config: QVGConfig, frames: int, chunks: Sequence[int] | None) -> Memory:
        """What is in it after so many frames."""
        policy, sizes = self.check(config), list(self._cut(frames, chunks))
        if (first := self._first_of_even(sizes)) is not None:
            growth = EvenGrowth(policy, config.spans_per_codebook, first)
            return growth.memory(*growth.commits(sum(sizes)))
        walk = Growth(policy, config.spans_per_codebook)
        for size in sizes:
            walk.commit(size)
        return walk.memory()

    def _first_of_even(self, sizes: list[int]) -> int | None:
        """The size of the first of chunks that are otherwise of `chunk_frames`, the last perhaps shorter; None: they are not."""
        first = sizes[0] if sizes else self.chunk_frames
        even = first <= self.chunk_frames and sizes == even_chunks(sum(sizes), self.chunk_frames, first if sizes else 0)
        return first if even else None

    def _cut(self, frames: int, chunks: Sequence[int] | None) -> Iterator[int]:
        """Sizes of the chunks that `frames` frames are committed in."""
        for size in itertools.repeat(self.chunk_frames) if chunks is None else chunks:
            if frames <= 0:
                return
            yield min(size, frames)
            frames -= size
        if frames > 0:
            raise ConfigError(f"chunks {list(chunks or ())} are {frames} frames short of those to predict for; name them all")

    def device_bytes(self, config: QVGConfig, frames: int) -> int:
        """Bytes of `predict` that are on the device that attends. With `offload="cpu"`: exact frames, and the packed spans of two
        layers (further codebooks, which `predict` does not know by itself, not counted). Where that device is the CPU itself,
        nothing is away."""
        sizes = self.predict(config, frames)
        if not config.offloads:
            return sizes.total
        return sizes.exact + (sizes.total - sizes.exact) // self.layers * min(2, self.layers)

    @property
    def _rows(self) -> tuple[int, int, int]:
        return self.batch, self.heads, self.head_dim

    def _span_bytes(self, config: QVGConfig, memory: Memory) -> Counter[str]:
        """Of exact frames and of spans without their codebooks, by component."""
        exact = ExactCodec(self.dtype).predicted_bytes(self._shape(memory.exact_frames))
        sizes = Counter(_times(2 * self.layers, exact))
        for frames, many in memory.spans.items():
            sizes["tiles"] += many * self.layers * self.tile_bytes(config, frames)
        for codec in self.codecs(config):
            for frames, many in memory.spans.items():
                sizes.update(_times(many * self.layers, codec.predicted_bytes(self._shape(frames))))
        return sizes

    def tokens_read(self, config: QVGConfig, frames: int, chunks: Sequence[int] | None = None) -> int:
        """Of the history after so many frames, tokens that a block of queries reads at most; of others it sees means. What a
        window leaves of its oldest span is read whole."""
        memory = self._memory(config, frames, chunks)
        spans = [count * self.tokens_per_frame for count, many in memory.spans.items() for _ in range(many)]
        seen = memory.exact_frames * self.tokens_per_frame + sum(spans)
        skipping = sorted(spans)[int(config.window_frames is not None) :]
        if not config.skips or sum(skipping) < LEAST_TOKENS:
            return seen
        read = tiles_read(config.sparse, sum(map(tile_count, skipping))) * TILE_TOKENS
        return seen - sum(skipping) + min(read, sum(skipping))

    def tile_bytes(self, config: QVGConfig, frames: int) -> int:
        """Of a span of so many frames in one layer."""
        return tile_bytes(self.batch * self.heads, frames * self.tokens_per_frame, self.head_dim) if config.skips else 0

    def _shape(self, frames: int) -> tuple[int, int, int, int]:
        return self.batch, self.heads, frames * self.tokens_per_frame, self.head_dim


def _times(factor: int, sizes: dict[str, int]) -> dict[str, int]:
    return {name: factor * size for name, size in sizes.items()}
