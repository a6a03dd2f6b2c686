"""What a `klt` codebook's eight-bit rows mean, in float32: made once for all that one encoding does with them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...kernels.rows8 import Rows8
from .span import Basis, TransformCodebook


class Tables:
    """Float32 tables of the codebooks that come up while a span is encoded; they go when it is done."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, int], tuple[object, Tensor]] = {}

    def centers(self, codewords: Rows8) -> Tensor:
        """[B, H, C, D]"""
        return self._once("centers", codewords.values, codewords.dequantize)

    def analysis(self, basis: Basis) -> Tensor:
        """See `Basis.analysis`."""
        return self._once("analysis", basis, basis.analysis)

    def weights(self, basis: Basis) -> Tensor:
        """See `Basis.weights`."""
        return self._once("weights", basis, basis.weights)

    def energy(self, codebook: TransformCodebook, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What `measure` makes of a codebook's centers and weights."""
        return self._once("energy", codebook, lambda: measure(self.centers(codebook.codewords), self.weights(codebook.basis)))

    def _once(self, name: str, of: object, make: Callable[[], Tensor]) -> Tensor:
        key = (name, id(of))
        if key not in self._made:
            self._made[key] = (of, make())  # what it is made of stays alive, and so its id is nobody else's
        return self._made[key][1]
