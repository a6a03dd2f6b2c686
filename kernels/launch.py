"""How attention kernels are started: block sizes, splits and strides. Plain integers, no Triton.

Strides have names in every kernel: `<tensor>_<axis>`, as in `codes_token` or `centroids_stage`; a row is one (b, h), the two
first axes as one. An operand of several tensors brings its strides as one NamedTuple, whose fields are called so, too.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)
# Shared memory of a GeForce card holds tiles of so many 16-bit channels twice.
_TILE_CHANNELS = 64 * 128
_SPLIT_WAVES = 2
_SMALLEST_SPLIT_KEYS = 256
_MAX_SPLITS = 64


class Rows(NamedTuple):
    """A tensor [B, H, S, D] and the elements from one (b, h) to the next and from one token to the next; channels are dense."""

    tensor: Tensor
    row: int
    token: int


class Block(NamedTuple):
    """Queries per program."""

    rows: int


class Launch(NamedTuple):
    """Keys per tile and how a program runs."""

    keys: int
    warps: int
    stages: int

    @staticmethod
    def for_attention(rows: int, channels: int) -> Launch:
        """128 x 64 tiles with eight warps: what fits a GeForce card's shared memory and registers; wider heads halve them."""
        keys = max(16, min(64, _TILE_CHANNELS // channels))
        return Launch(keys, 8 if rows >= 128 or rows * channels >= 128 * 128 else 4, 2)


class GpuKind(NamedTuple):
    """What decides how large tiles may be: whose matrix units, and lanes that run together (64 on AMD's CDNA)."""

    amd: bool = False
    lanes: int = 32
    fed_from_registers: bool = False  # NVIDIA's `mma.sync`: sm_8x and sm_12x

    @property
    def rdna(self) -> bool:
        """AMD's cards for games: 256 registers for every lane and no more, so tiles have to be smaller."""
        return self.amd and self.lanes == 32


def on_gpu(device: torch.device) -> bool:
    """Whether kernels, streams and 16-bit tiles are used for tensors of this device."""
    return device.type == "cuda"


def coefficient_tiles(queries: int, channels: int, kind: GpuKind) -> tuple[Block, Launch]:
    """Queries of one program and its launch where transform coefficients are read directly. A key's product with the basis, four
    sums and two codebooks leave less room than codes do: these are the largest tiles that compile with no or few spills."""
    rows = min(query_block(queries, channels).rows, 64 if channels <= 128 else 32)
    keys = 64 if channels <= 128 else 32
    if kind.rdna:
        return Block(32), Launch(keys // 2, 8, 1)
    if kind.fed_from_registers and rows > 16:
        keys = 32
    return Block(rows), Launch(keys, 4 if kind.amd else 8, 1)


# As the compile gate names the cards: those of AMD's whose tiles are smaller, and all others.
RDNA_TARGETS = ("gfx1100", "gfx1201")
OTHER_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


@cache
def gpu_kind(device: torch.device) -> GpuKind:
    """Of a GPU; an interpreted kernel runs as one for Hopper does."""
    if device.type != "cuda":
        return GpuKind()
    if torch.version.hip is not None:
        return GpuKind(amd=True, lanes=int(getattr(torch.cuda.get_device_properties(device), "warp_size", 32)))
    return GpuKind(fed_from_registers=torch.cuda.get_device_capability(device)[0] in (8, 12))


def query_block(queries: int, channels: int = 128) -> Block:
    """A power of two that wastes few rows; dots need 16."""
    most = 128 if channels <= 128 else 64
    return Block(max(16, min(most, 1 << max(0, queries - 1).bit_length())))


def flat_rows(x: Tensor) -> Rows:
    """x [B, H, S, D] with one stride over (b, h); copied only where there is none, or where channels are not dense."""
    batch, heads = x.shape[:2]
    if x.stride(-1) != 1 or (batch > 1 and heads > 1 and x.stride(0) != heads * x.stride(1)):
        x = x.contiguous()
    return Rows(x, x.stride(1) if heads > 1 else x.stride(0), x.stride(2))


def dense_rows(x: Tensor) -> Tensor:
    """x with one stride over its two first axes and a dense last one, as it is if it has them."""
    batch, heads = x.shape[:2]
    flat = batch == 1 or heads == 1 or x.stride(0) == heads * x.stride(1)
    return x if flat and x.stride(-1) == 1 else x.contiguous()


def row_stride(x: Tensor) -> int:
    """Elements from one (b, h) to the next of what `dense_rows` returned."""
    return x.stride(1) if x.shape[1] > 1 else x.stride(0)


def key_splits(device: torch.device, programs: int, keys: int) -> int:
    """In how many parts keys are read side by side so that few queries fill a machine, too."""
    wanted = -(-_SPLIT_WAVES * processors(device) // max(1, programs))
    return max(1, min(wanted, keys // _SMALLEST_SPLIT_KEYS, _MAX_SPLITS))


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU. 8 elsewhere, so that an interpreted kernel is split as a compiled one."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return 8


@cache
def has_float8(device: torch.device) -> bool:
    """Whether the matrix units of a GPU take E4M3: NVIDIA's from sm_89 on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)
