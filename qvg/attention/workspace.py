"""The one piece of memory that attention may take beside the cache: named buffers, reused from call to call, bounded."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Workspace:
    """Buffers by name, `limit_bytes` in all. A buffer grows when asked for more; `clear` gives everything back."""

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self._buffers: dict[str, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(buffer.untyped_storage().nbytes() for buffer in self._buffers.values())

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised contiguous tensor; the next `take` of the same name overwrites it."""
        count = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < count or buffer.dtype != dtype or buffer.device != device:
            self._buffers.pop(name, None)  # free the small one before the large one is made
            if self.nbytes + count * dtype.itemsize > self.limit_bytes:
                self._buffers.clear()  # left by calls of other shapes; what is still in use lives on in its user's hands
            buffer = self._buffers[name] = torch.empty(count, dtype=dtype, device=device)
        return buffer[:count].view(shape)

    def clear(self) -> None:
        """Give everything back."""
        self._buffers.clear()
