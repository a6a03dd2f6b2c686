"""Keys and values that a block's queries see besides memory and block, as they come: never rotated, projected or kept. A text."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CacheError

# Each [B, H, n, D], or [1, H, n, D] for all of a batch; keys with pairs apart where the block's are.
JointKV = tuple[Tensor, Tensor]


def prepend_joint(joint: JointKV | None, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, H, S, D] of a block, rotated, with `joint` in front of them. Raises CacheError where that has another
    shape."""
    if joint is None:
        return k, v
    batch, heads, _, channels = k.shape
    for x in joint:
        if x.ndim != 4 or x.shape[0] not in (1, batch) or (x.shape[1], x.shape[3]) != (heads, channels):
            raise CacheError(
                f"{list(x.shape)} was given to be seen beside a block of {list(k.shape)}; give [1 or {batch}, {heads}, n, "
                f"{channels}]"
            )
    keys, values = (torch.cat([x.to(own).expand(batch, -1, -1, -1), own], 2) for x, own in zip(joint, (k, v), strict=True))
    return keys, values
