"""What a segment of LongCat-Video attends to: everything at once, or a memory of what it is conditioned on.

The frames that a segment is conditioned on see themselves alone and are told noise level 0, so their keys and values are the same
in every step and under every text: they are made once, kept before RoPE as one span, and read by all steps, guidance branches and
videos of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...cache import KVCache
from ...config import QVGConfig
from ...errors import CacheError, ConfigError
from ...positions.rope import GridRope, rotate
from ..common.condition import condition_config as condition_config
from .config import LongCatConfig

SDPA = Callable[[Tensor, Tensor, Tensor], Tensor]


class WholeAttention:
    """An `Attend` without memory: frames from 0 on, the first `condition_frames` of which see themselves alone. `sdpa(q, k, v)`,
    all [B, H, S, D], is the attention to use."""

    def __init__(
        self,
        rope: GridRope,
        frames: int,
        condition_frames: int = 0,
        device: Any = None,
        sdpa: SDPA = F.scaled_dot_product_attention,
    ):
        self._rotation = rope.rotation(torch.tensor(places(0, frames), device=device))
        self._silent, self._sdpa = condition_frames * rope.tokens_per_frame, sdpa

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Attend`."""
        q, k = rotate(q, self._rotation), rotate(k, self._rotation)
        cut = self._silent
        if not cut:
            return self._sdpa(q, k, v)
        return torch.cat([self._sdpa(*(x[:, :, :cut] for x in (q, k, v))), self._sdpa(q[:, :, cut:], k, v)], 2)


class ConditionCache(KVCache):
    """The memory of one segment. `LongCat.record` fills it with what the segment is conditioned on; after that every pass of the
    segment reads it by `attend`, a batch of any size, and leaves nothing behind.

    config    codec, bits and how it is read; sink, recent frames and spans are set here (`condition_config`)
    dtype     of exact keys and values
    ConfigError: settings that do not go with such a memory.
    """

    def __init__(
        self,
        shape: LongCatConfig,
        latent_rows: int,
        latent_cols: int,
        condition_frames: int,
        config: QVGConfig | None = None,
        dtype: torch.dtype = torch.bfloat16,
        home: torch.device | str = "cpu",
    ):
        if condition_frames < 1:
            raise ConfigError(f"a memory of {condition_frames} latent frames was asked for; make it of at least 1, or use none")
        spec = shape.condition_spec(latent_rows, latent_cols, condition_frames, dtype)
        settings = condition_config(config or QVGConfig.preset("balanced"), condition_frames)
        super().__init__(spec, settings, shape.rope(latent_rows, latent_cols), home)

    def __enter__(self) -> ConditionCache:
        return self

    @property
    def condition_frames(self) -> int:
        """Latent frames that it is made for."""
        return self.spec.chunk_frames

    def recording(self) -> _Record:
        """For `LongCat.record`; empties the memory first."""
        self.reset()
        self.place(places(0, self.condition_frames))
        return _Record(self)

    def begin_pass(self, frames: int) -> None:
        """So many latent frames, behind the condition, are about to attend. CacheError: it is not filled yet."""
        if self.frames_committed != self.condition_frames:
            raise CacheError(
                f"the memory holds {self.frames_committed} of {self.condition_frames} latent frames that the segment is "
                "conditioned on; fill it with LongCat.record first"
            )
        self.place(places(self.condition_frames, frames))

    @torch.no_grad()
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, joint: Any = None) -> Tensor:
        """See `KVCache.attend`; of a filled memory for any batch."""
        if q.shape[0] == 1:
            return super().attend(layer, q, k, v, joint=joint)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for item in range(q.shape[0]):
            one = slice(item, item + 1)
            out[one] = super().attend(layer, q[one], k[one], v[one], joint=joint)
        return out

    def _hold(self, layer: int, k: Tensor, v: Tensor) -> None:
        """A block that is never committed needs no place in memory, and may have any number of frames."""
        if self.frames_committed == 0:
            super()._hold(layer, k, v)
        elif k.shape != v.shape or k.ndim != 4 or k.shape[1] != self.spec.heads or k.shape[3] != self.spec.head_dim:
            raise CacheError(
                f"layer {layer} got keys {tuple(k.shape)} and values {tuple(v.shape)}, but this memory is read with [1, "
                f"{self.spec.heads}, S, {self.spec.head_dim}]; make it from the model's LongCatConfig"
            )


class _Record:
    """See `Recording`. A layer's keys and values are encoded as soon as it has attended, so that one layer's at a time are there
    in 16 bits."""

    def __init__(self, cache: ConditionCache):
        self._cache = cache

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = self._cache.attend(layer, q, k, v)
        self._cache.commit_layer(layer)
        return out

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """See `Recording`."""
        if self._cache.config.keys == "after_rope":
            k = rotate(k, self._cache.positions.block_rotation(k))
        self._cache.layers[layer].append(k, v)
        self._cache.commit_layer(layer)


def places(first_frame: int, frames: int) -> Sequence[tuple[float, float, float]]:
    """Time, row and column of the first token of so many consecutive latent frames."""
    return [(float(first_frame + frame), 0.0, 0.0) for frame in range(frames)]
