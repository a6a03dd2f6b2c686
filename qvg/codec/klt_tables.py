"""What a `klt` codebook's eight-bit rows mean, in float32: made once for all that one encoding does with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.hadamard import hadamard
from ...kernels.rows8 import Rows8, dual_rows
from .span import Basis, TransformCodebook


class Tables:
    """Float32 tables of the codebooks that come up while a span is encoded, and what decisions are taken by; they go when it is
    done.

    Decisions are taken on the host, which has to wait for them anyway: a copy of a few numbers costs less than the dozen kernels
    that would make one number of them.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[str, int], tuple[object, Tensor]] = {}

    def centers(self, codewords: Rows8) -> Tensor:
        """[B, H, C, D]"""
        return self._rows(codewords)

    def analysis(self, basis: Basis) -> Tensor:
        """Residual @ analysis = coefficients of about unit variance. [B, H, D, D]"""
        return self._once("analysis", basis, lambda: self._analysis(basis))

    def weights(self, basis: Basis) -> Tensor:
        """What a squared error of 1 in each coefficient costs. [B, H, D]"""
        return self._once("weights", basis, lambda: self._weights(basis))

    def weights_on_host(self, basis: Basis) -> Tensor:
        """The same in CPU memory."""
        return self._once("weights on host", basis, lambda: self.weights(basis).cpu())

    def squares(self, rows: Rows8) -> Tensor:
        """Lengths of rows, squared. [B, H, N]"""
        return self._once("squares", rows.scales, lambda: self._rows(rows).square().sum(-1))

    def energy(self, x: Tensor) -> Tensor:
        """See `energy`, in CPU memory."""
        return self._once("energy", x, lambda: energy(x).cpu())

    def energy_of(self, codebook: TransformCodebook) -> Tensor:
        """The energy of the tokens that a codebook describes: what is between its codewords, and what its basis expects. In CPU
        memory."""
        expected = self.weights_on_host(codebook.basis).double().mean(-1)
        return (self.energy(self.centers(codebook.codewords)) + expected).clamp(min=1e-30)

    def _rows(self, rows: Rows8) -> Tensor:
        return self._once("rows", rows.scales, rows.dequantize)  # rows may share their values with others

    def _analysis(self, basis: Basis) -> Tensor:
        if basis.rows is None:
            return hadamard(basis.scales.shape[-1]).to(basis.scales.device) / basis.scales.float()[..., :, None]
        rows = Rows8(basis.rows, basis.scales)
        columns = dual_rows(self._rows(rows), self.squares(rows)).transpose(-1, -2)
        return torch.nn.functional.pad(columns, (0, basis.rows.shape[3] - basis.rows.shape[2]))

    def _weights(self, basis: Basis) -> Tensor:
        if basis.rows is None:
            return basis.synthesis().square().sum(-1)
        squares, missing = self.squares(Rows8(basis.rows, basis.scales)), basis.rows.shape[3] - basis.rows.shape[2]
        return torch.nn.functional.pad(squares, (0, missing)) if missing else squares

    def _once(self, name: str, of: object, make: Callable[[], Tensor]) -> Tensor:
        key = (name, id(of))
        if key not in self._made:
            self._made[key] = (of, make())  # what it is made of stays alive, and so its id is nobody else's
        return self._made[key][1]


def energy(x: Tensor) -> Tensor:
    """Mean squared distance of tokens [B, H, S, D] from their mean, per value: float64 [B, H], never 0."""
    x = in_float64(x)
    return (x - x.mean(2, keepdim=True)).square().mean((2, 3)).clamp(min=1e-30)


def in_float64(x: Tensor) -> Tensor:
    """The same numbers in float64; from an Apple GPU, which has none, in CPU memory."""
    return (x.cpu() if x.device.type == "mps" else x).double()
