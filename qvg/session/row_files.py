"""Rows of a cache that merges tokens, out of a file, checked against its state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .checked import MisfitError
from .state import SavedState


def restored_rows(state: SavedState, read: Callable[[str], Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and counts of a file whose shapes are known to fit. MisfitError where they cannot be those of its frames."""
    tokens, counts = read("rows.tokens"), read("rows.counts")
    first, merged = (frames * state.spec.tokens_per_frame for frames in (sum(state.layout.sink), state.layout.merged))
    counted, wide = int(counts.to(torch.int64).sum()), tokens.to(torch.int64)
    if counted != merged or bool((counts.to(torch.int32) == 0).any()):
        raise MisfitError(f"its rows count {counted} tokens, or one of them none, but {merged} were merged")
    if len(tokens) and not first <= int(wide.min()) <= int(wide.max()) < first + merged:
        raise MisfitError(f"a row stands for token {int(wide.max())}, but those that were merged are {first} to {first + merged}")
    return tokens, counts
