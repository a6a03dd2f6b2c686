"""The one piece of memory that attention may take beside the cache: named buffers, reused from call to call, bounded."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Workspace:
    """Buffers by name. A buffer grows when asked for more and is never given back before `clear`."""

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(buffer.untyped_storage().nbytes() for buffer in self._buffers.values())

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised contiguous tensor; the next `take` of the same name overwrites it."""
        count, key = math.prod(shape), (name, dtype, device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < count:
            self._buffers.pop(key, None)  # free the small one before the large one is made
            buffer = self._buffers[key] = torch.empty(count, dtype=dtype, device=device)
        return buffer[:count].view(shape)

    def clear(self) -> None:
        """Give everything back."""
        self._buffers.clear()
