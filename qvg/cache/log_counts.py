"""What the counts of rows add to the logits of their keys."""

from __future__ import annotations

import torch
from torch import Tensor


class LogCounts:
    """The natural logarithms of rows' counts, uint16 [S]. The first row stands behind `first` tokens in memory."""

    def __init__(self, first: int, counts: Tensor):
        self._first, self._logs = first, counts.to(torch.float32).log()
        self._there: dict[torch.device, Tensor] = {}

    def of(self, start: int, stop: int, device: torch.device) -> Tensor | None:
        """Of what stands at start:stop in memory: float32 [stop - start] on a device; None where everything counts once."""
        low, high = max(start - self._first, 0), min(stop - self._first, len(self._logs))
        if high <= low or not bool(self._logs[low:high].any()):
            return None
        if device not in self._there:
            self._there[device] = self._logs.to(device)
        before, behind = low - (start - self._first), (stop - self._first) - high
        return torch.nn.functional.pad(self._there[device][low:high], (before, behind))
