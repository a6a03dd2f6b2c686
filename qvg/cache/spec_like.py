"""The shape of a model's memory as far as it is counted; `spec.CacheSpec` is it."""

from __future__ import annotations

from typing import Protocol

import torch

from ..codec import KeyValueCodecs
from ..config import QVGConfig
from .policy import CachePolicy


class SpecLike(Protocol):
    """What a backbone asks of its cache, without what is predicted from it."""

    @property
    def layers(self) -> int:
        """That have a memory each."""

    @property
    def heads(self) -> int:
        """Of keys and values."""

    @property
    def head_dim(self) -> int:
        """Channels of a head."""

    @property
    def tokens_per_frame(self) -> int:
        """Of a latent frame."""

    @property
    def batch(self) -> int:
        """Videos at once."""

    @property
    def dtype(self) -> torch.dtype:
        """What exact values are kept in."""

    def check(self, config: QVGConfig) -> CachePolicy:
        """Raise ConfigError where a config does not fit; otherwise the policy it asks for."""

    def tile_bytes(self, config: QVGConfig, frames: int) -> int:
        """Of a span of so many frames in one layer, where a share of it is read."""

    def codecs(self, config: QVGConfig) -> KeyValueCodecs:
        """What keys and values are encoded with."""
