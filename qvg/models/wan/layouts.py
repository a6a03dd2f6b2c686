"""Networks that are Wan's with other channels, and layers of their own: their tensors' names and shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

# By these a whole Wan is known.
TELLING = ("patch_embedding.weight", "blocks.0.self_attn.q.weight", "head.modulation")
# A shape by the network's width.
Shape = Callable[[int], tuple[int, ...]]


@dataclass(frozen=True)
class WanLayout:
    """`channels` that go in, `out_channels` that come out; layers of its own in every block and around them, by their names.
    `get`: where it is released, a sentence's second half."""

    title: str
    get: str
    channels: int
    out_channels: int
    in_block: Mapping[str, Shape] = field(default_factory=dict)
    outside: Mapping[str, Shape] = field(default_factory=dict)
    packed: bool = True

    def is_own(self, name: str) -> bool:
        """Whether it is of a layer that a plain Wan does not have."""
        return name in self.outside or re.sub(r"^blocks\.\d+\.", "", name) in self.in_block

    def matches(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these are a Wan of its channels, which has its own layers if it has some."""
        embedding = tensors.get(TELLING[0])
        if embedding is None or embedding.ndim != 5 or embedding.shape[1] != self.channels:
            return False
        if not all(name in tensors for name in TELLING):
            return False
        own = {*self.outside, *(f"blocks.0.{name}" for name in self.in_block)}
        return not own or any(name in tensors for name in own)


def linear(name: str, rows: Callable[[int], int], columns: Callable[[int], int]) -> dict[str, Shape]:
    """A layer's matrix and bias."""
    return {f"{name}.weight": lambda width: (rows(width), columns(width)), f"{name}.bias": lambda width: (rows(width),)}
