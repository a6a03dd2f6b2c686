"""One layer's cache as a run fills it: by `KVCache` and a preset, block by block, out of a made-up video without cuts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...cache import KVCache
from ...cache.spec import CacheSpec
from ...codec import ExactCodec
from ...codec.span import ExactSpan
from ...config import QVGConfig
from ...positions.projective import Projector, projection_matrices
from ...positions.rope import rotate, wan_rope

# Smooth fields that keys and values are sums of, and what noise adds to them, as a share.
_FIELDS, _NOISE = 24, 0.35


@dataclass(frozen=True)
class Shape:
    """A model's layer: heads of so many channels, the tokens of a latent frame, latent frames denoised together."""

    name: str
    heads: int
    rows: int
    cols: int
    chunk_frames: int = 3
    channels: int = 128

    @property
    def block(self) -> tuple[int, int, int, int]:
        """[B, H, S, D] of a block."""
        return 1, self.heads, self.chunk_frames * self.rows * self.cols, self.channels

    def spec(self) -> CacheSpec:
        """What one layer asks of its cache."""
        return CacheSpec(1, self.heads, self.channels, self.rows * self.cols, self.chunk_frames)


class LayerRun:
    """A cache of one layer that grows. `dtype`: of queries, keys and values."""

    def __init__(self, shape: Shape, config: QVGConfig, device: torch.device, dtype: torch.dtype | None = None, seed: int = 0):
        self.shape, self.device = shape, device
        self.dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        self.cache = KVCache(shape.spec(), config, wan_rope(shape.rows, shape.cols, shape.channels))
        self._generator = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(device).manual_seed(seed)
        self._fields = [self._randn(shape.heads, _FIELDS, shape.channels) for _ in range(3)]
        self._turns, self._phases = self._randn(3, _FIELDS), 3 * self._randn(_FIELDS)
        self._place(self.cache)

    def _randn(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self._generator).to(self.device)

    def _place(self, cache: KVCache) -> None:
        first = cache.frames_committed
        cache.place([(float(first + frame), 0.0, 0.0) for frame in range(self.shape.chunk_frames)])

    def grow(self, frames: int) -> None:
        """Commit blocks until so many latent frames are in memory."""
        while self.cache.frames_committed < frames:
            self.commit()

    def commit(self) -> None:
        """One block more."""
        self.cache.layers[0].append(*self.block()[1:])
        self.cache.commit_layer(0)
        self._place(self.cache)

    def block(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the next block, [B, H, S, D]."""
        shape, first = self.shape, self.cache.frames_committed
        counts = (shape.chunk_frames, shape.rows, shape.cols)
        axes = [torch.arange(count, device=self.device, dtype=torch.float32) for count in counts]
        places = torch.stack(torch.meshgrid(axes[0] + first, axes[1], axes[2], indexing="ij"), -1).flatten(0, 2)
        steps = torch.tensor((0.08, 0.2, 0.15), device=self.device)
        waves = torch.sin((places * steps) @ self._turns + self._phases) * math.sqrt(2 / _FIELDS)
        made = []
        for fields in self._fields:
            x = waves @ fields
            x += _NOISE * torch.randn(x.shape, generator=self._noise, device=self.device)
            made.append(x[None].to(self.dtype))
        return made[0], made[1], made[2]

    def reader(self, read: str, backend: str | None = None, workspace_mb: int | None = None) -> KVCache:
        """A cache that reads this one's memory in another way; valid until the next commit."""
        changes: dict[str, str | int] = {"read": read, "backend": backend or self.cache.config.backend}
        changes |= {} if workspace_mb is None else {"workspace_mb": workspace_mb}
        other = KVCache(self.cache.spec, self.cache.config.with_changes(**changes), self.cache.rope)
        other.layers[0].state = self.cache.layers[0].state
        other.resume(self.cache.layout, self.cache.frames_committed, self.cache.spans_due, self.cache.origins)
        self._place(other)
        return other

    def stored_tokens(self, which: int, dtype: torch.dtype) -> Tensor:
        """All committed keys (0, before RoPE) or values (1) as torch decodes them: [B, H, S, D]."""
        config = self.cache.config.with_changes(backend="torch")
        codecs, exact = self.cache.spec.codecs(config), ExactCodec(self.cache.spec.dtype)
        pairs, per_frame = self.cache.layers[0].state.history, self.cache.spec.tokens_per_frame
        shape = (1, self.shape.heads, per_frame * self.cache.layout.frames, self.shape.channels)
        out, start = torch.empty(shape, dtype=dtype, device=self.device), 0
        for span in (pair[which] for pair in pairs):
            codec = exact if isinstance(span, ExactSpan) else codecs.keys
            part = out[:, :, start : start + span.num_tokens]
            codec.decode(span, slice(None), slice(None), part)
            start += span.num_tokens
        return out

    def visible(self, k: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What attention sees, in `dtype`: the cache's keys, rotated, and values, and behind them the block's."""
        rope, per_frame = self.cache.rope, self.cache.spec.tokens_per_frame
        assert rope is not None
        keys, values = self.stored_tokens(0, dtype), self.stored_tokens(1, dtype)
        origins = torch.tensor(self.cache.origins, device=self.device)
        for start in range(0, len(origins), 8):  # angles of a whole history would take as much as its keys
            part = keys[:, :, start * per_frame : (start + 8) * per_frame]
            part.copy_(rotate(part.float(), rope.rotation(origins[start : start + 8])))
        return torch.cat([keys, self.rotated(k).to(dtype)], 2), torch.cat([values, v.to(dtype)], 2)

    def rotated(self, x: Tensor) -> Tensor:
        """Queries or keys of the block at its place."""
        assert self.cache.rope is not None
        first = self.cache.frames_committed
        places = [(float(first + frame), 0.0, 0.0) for frame in range(x.shape[2] // self.cache.spec.tokens_per_frame)]
        return rotate(x.float(), self.cache.rope.rotation(torch.tensor(places, device=x.device))).to(x.dtype)

    def projector(self) -> Projector:
        """Cameras that walk and turn, of all frames in memory and of the block."""
        frames = self.cache.layout.frames + self.shape.chunk_frames
        angles = 0.1 * torch.arange(frames, dtype=torch.float64)
        views = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
        views[:, 0, 0], views[:, 0, 2] = angles.cos(), angles.sin()
        views[:, 2, 0], views[:, 2, 2] = -angles.sin(), angles.cos()
        views[:, 2, 3] = 0.05 * torch.arange(frames)
        lenses = torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1)
        to_picture, to_world = (each.float() for each in projection_matrices(views, lenses))
        block = to_picture[frames - self.shape.chunk_frames :]
        return Projector(block, to_world, self.cache.spec.tokens_per_frame, apart=True)
