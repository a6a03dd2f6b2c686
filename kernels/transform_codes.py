"""Transform coefficients as they are kept: what kernels that read them are given."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .bitplanes import check_planes, packed_width
from .lloyd_max import MAX_BITS
from .rows8 import Rows8


class TransformCodes(NamedTuple):
    """One span's keys or values as `quantize_coefficients` made them, and the codebook that they share with other spans.

    codes       uint8 [B, H, S, P], gains and ids uint8 [B, H, S]; views that cut tokens out are fine
    codewords       int8 [B, H, C, D] with float16 scales [B, H, C]
    directions  int8 [B, H, R, D], one per row, at least as many as get bits; None: the Hadamard matrix
    scales      float16 [B, H, R]: of each direction; without directions [B, H, D], of each channel (`rows8.synthesis`)
    planes      of every batch row (`bitplanes.py`)
    """

    codes: Tensor
    gains: Tensor
    ids: Tensor
    codewords: Rows8
    directions: Tensor | None
    scales: Tensor
    planes: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens held."""
        return self.codes.shape[2]

    def tokens(self, some: slice) -> TransformCodes:
        """A view of some tokens."""
        return self._replace(codes=self.codes[:, :, some], gains=self.gains[:, :, some], ids=self.ids[:, :, some])

    def filled(self) -> TransformCodes:
        """The same with zeros for the directions that are not kept: [B, H, D, D]."""
        if self.directions is None or self.directions.shape[2] == self.directions.shape[3]:
            return self
        missing = self.directions.shape[3] - self.directions.shape[2]
        directions = torch.nn.functional.pad(self.directions, (0, 0, 0, missing))
        return self._replace(directions=directions, scales=torch.nn.functional.pad(self.scales, (0, missing)))

    def shares_codebook(self, other: TransformCodes) -> bool:
        """Whether both are decoded with the same codewords and the same basis."""
        return self.codewords.values is other.codewords.values and self.scales is other.scales

    def check(self, tokens: int, rows: tuple[int, int], channels: int) -> None:
        """Raise ValueError unless these are so many tokens of [B, H] and channels."""
        shape = (*rows, tokens)
        directions = self.scales.shape[2] if self.directions is None else self.directions.shape[2]
        kept = channels if self.directions is None else directions
        if self.gains.shape != shape or self.ids.shape != shape or self.scales.shape != (*rows, kept):
            raise ValueError(
                f"gains {tuple(self.gains.shape)}, ids {tuple(self.ids.shape)} and scales {tuple(self.scales.shape)} do not "
                f"belong to {tokens} tokens of {rows} heads with {channels} channels"
            )
        for planes in self.planes:
            check_planes(planes, directions, MAX_BITS)
            if self.codes.shape != (*shape, packed_width(planes)) or len(self.planes) != rows[0]:
                raise ValueError(f"codes {tuple(self.codes.shape)} are not {shape} in planes {self.planes}")
