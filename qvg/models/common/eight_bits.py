"""Weights in 8 bits with a scale for each matrix, in the format that ComfyUI unpacks: `weight` in float8_e4m3fn, `weight_scale`
in float32 beside it, and a record in the metadata. Values are multiplied in 16 bits, as unpacked: none is rounded but once."""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from torch import Tensor

from ...safetensors_writer import LateTensor
from .packing import LAYERS_KEY

FP8_NAME = "fp8"
_DTYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(_DTYPE).max
_ROWS = 256


class EightBits:
    """A tensor to be made, as two: its `values` and its `scale`. Either is made from the tensor itself, but the second one asked
    for knows the scale, a number: no more than one tensor is in memory."""

    def __init__(self, late: LateTensor):
        self._late = late
        self._scale: float | None = None
        self.values = LateTensor(late.shape, _DTYPE, self._values)
        self.scale = LateTensor(torch.Size(()), torch.float32, lambda: torch.tensor(self._found()))

    def _found(self, made: Tensor | None = None) -> float:
        if self._scale is None:
            lowest, highest = torch.aminmax(self._late.make() if made is None else made)
            largest = torch.maximum(highest.float(), -lowest.float())
            # Of a matrix of zeros there is nothing to be scaled. As it is stored: rounded to float32.
            self._scale = float(largest / _LARGEST) or 1.0
        return self._scale

    def _values(self) -> Tensor:
        made = self._late.make()
        scale, packed = self._found(made), torch.empty(made.shape, dtype=_DTYPE)
        # Some rows at a time, as there are several copies of them.
        for rows, out in zip(made.split(_ROWS), packed.split(_ROWS), strict=True):
            out.copy_((rows.float() / scale).clamp_(-_LARGEST, _LARGEST))
        return packed


def packed_metadata(layers: Iterable[str]) -> dict[str, str]:
    """What tells ComfyUI how these layers are packed."""
    record = {"format": str(_DTYPE).removeprefix("torch."), "full_precision_matrix_mult": True}
    return {LAYERS_KEY: json.dumps({"format_version": "1.0", "layers": dict.fromkeys(sorted(layers), record)})}
