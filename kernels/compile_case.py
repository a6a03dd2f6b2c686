"""What the compile gate (`tools/compile_gate.py`) is told about a kernel. Imports no Triton."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


def strides(**axes: str) -> tuple[str, ...]:
    """Names of stride arguments, see `launch`: strides(x="batch head", ids="head") -> ("x_batch", "x_head", "ids_head")."""
    return tuple(f"{tensor}_{axis}" for tensor, names in axes.items() for axis in names.split())


class Tile(NamedTuple):
    """What the gate counts a kernel's instructions for.

    values  keys, values or tokens times channels that one tile holds
    walked  the program walks over tiles in its outermost loop; otherwise it does one tile
    turns   how often a loop inside a tile runs
    """

    values: int
    walked: bool = False
    turns: int = 1


class CompileCase(NamedTuple):
    """One configuration of one kernel, as a launch would specialise it. A Triton module lists its own in `compile_cases()`.

    name        unique within the op
    kernel      the `@triton.jit` function
    types       every run-time argument: "*u8", "*bf16", "i32", "i64", "fp32", or a tuple of these; pointers count as
                aligned to 16 bytes
    constants   every compile-time argument, and run-time ones that a launch folds in (a stride of 1)
    multiples   integer arguments that are multiples of 16, which lets loads be wide
    warps       per program
    stages      of the software pipeline
    tensor_cores  whether the compiled code must hold matrix instructions
    default     whether CI compiles it; the others are for `make compile-all`
    without     targets that it is never launched on
    tile        what instructions are counted for
    """

    name: str
    kernel: Any
    types: Mapping[str, str | tuple[str, ...]]
    constants: Mapping[str, Any]
    multiples: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 3
    tensor_cores: bool = False
    default: bool = True
    without: tuple[str, ...] = ()
    tile: Tile = Tile(1)
