"""A cache that reads its frames itself: what both forms of a study's method have in common on their way to attention."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..attention.history import PositionEncodings
from ..cache import KVCache
from ..errors import CacheError
from ..positions.projective import Projector
from .method import StudyMethod


class ReadAlone(KVCache, ABC):
    """A `KVCache` whose history `KVCache`'s reader cannot read: frames that are one token, or codes of the whole buffer."""

    method: StudyMethod

    def _read(
        self,
        layer: int,
        q: Tensor,
        current: tuple[Tensor, Tensor],
        encodings: PositionEncodings | None = None,
        projected: bool = False,
    ) -> Tensor:
        """See `KVCache`. Keys in memory know where they are by their frames' numbers, so `encodings` say nothing new."""
        return self.attend_alone(layer, q, current)

    @abstractmethod
    def attend_alone(self, layer: int, q: Tensor, current: tuple[Tensor, Tensor]) -> Tensor:
        """Attention of q [B, H, Sq, D] over a layer's history and the current block; block and queries are rotated already.
        -> [B, H, Sq, D] in q's dtype"""

    def attend_projected(self, layer: int, q: Tensor, k: Tensor, v: Tensor, projector: Projector, **more: object) -> Tensor:
        """Not of these: what is evicted, pooled or rebuilt has no camera."""
        raise CacheError(
            f"method {self.method.name} is read along a rope only, but this model sees along cameras; use a codec of KVCache"
        )
