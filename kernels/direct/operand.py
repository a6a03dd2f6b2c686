"""Keys or values as kernels that read codes take them: pointers, strides and what is compiled in. Plain integers, no Triton."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..launch import dense_rows, flat_rows, row_stride
from . import Stored


class CodeStrides(NamedTuple):
    """Elements from one place to the next in the tensors of one operand; a row is a (b, h). All others are dense."""

    codes_row: int
    codes_token: int
    scales_row: int = 0
    scales_group: int = 0
    zeros_row: int = 0
    zeros_group: int = 0
    ids_row: int = 0
    ids_stage: int = 0
    centroids_row: int = 0


class Operand:
    """One tensor of keys or values as the kernels take it: pointers, strides and what is known at compile time."""

    def __init__(self, stored: Stored):
        if isinstance(stored, Tensor):
            rows = flat_rows(stored)
            anything = rows.tensor
            self.pointers = (rows.tensor, anything, anything, anything, anything)
            self.strides = CodeStrides(rows.row, rows.token)
            self.clusters, self.options = 0, {"BITS": 16, "GROUP": 1, "STAGES": 0, "ASYMMETRIC": False}
            return
        codes, scales, ids = flat_rows(stored.codes), dense_rows(stored.scales), dense_rows(stored.ids)
        zeros = scales if stored.zero_points is None else dense_rows(stored.zero_points)
        centroids = stored.centroids if stored.centroids[0, 0].is_contiguous() else stored.centroids.contiguous()
        centroids = dense_rows(centroids)
        self.pointers = (codes.tensor, scales, zeros, ids, centroids)
        self.strides = CodeStrides(
            codes_row=codes.row,
            codes_token=codes.token,
            scales_row=row_stride(scales),
            scales_group=scales.stride(2),
            zeros_row=row_stride(zeros),
            zeros_group=zeros.stride(2),
            ids_row=row_stride(ids),
            ids_stage=ids.stride(2),
            centroids_row=row_stride(centroids),
        )
        self.clusters = centroids.shape[3]
        self.options = {
            "BITS": stored.bits,
            "GROUP": stored.group_size,
            "STAGES": ids.shape[2],
            "ASYMMETRIC": stored.zero_points is not None,
        }

    def named(self, prefix: str) -> dict[str, int | bool]:
        """Compile-time options under a kernel's names."""
        return {prefix + name: value for name, value in self.options.items()}


# Types of a `CodeStrides`, for `tools/compile_gate.py`.
STRIDE_TYPES = CodeStrides._make(("i32",) * len(CodeStrides._fields))


def operand_types(prefix: str) -> dict[str, str]:
    """Pointers of one operand, for `tools/compile_gate.py`."""
    bytes_ = dict.fromkeys((prefix, f"{prefix}_SCALES", f"{prefix}_ZEROS", f"{prefix}_IDS"), "*u8")
    return {**bytes_, f"{prefix}_CENTROIDS": "*fp16"}
