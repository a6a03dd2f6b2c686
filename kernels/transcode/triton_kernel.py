"""Into eight bits, straight from the codes: read once, expanded in registers, written at half the size of 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compile_case import CompileCase, Tile, strides
from ..direct.triton_kernel import STRIDE_TYPES, Operand, decode_channels, decode_halves, half_float, operand_types
from ..launch import dense_rows, row_stride
from ..tiles.triton_kernel import encode_e4m3

if TYPE_CHECKING:
    from ..direct import CosSin, Stored
    from . import Keys8, Values8

_TILE_TOKENS = 64


@triton.jit
def to_int8(x):
    """Nearest whole number, ties to even as torch rounds: adding 1.5 * 2^23 leaves no bits behind the point."""
    return ((x + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def transcode_keys_kernel(
    K, K_SCALES, K_ZEROS, K_IDS, K_CENTROIDS, COMMON, COS, SIN, OUT, OUT_SCALES,
    k_strides, k_clusters, out_row, out_token, out_scales_row, key_count,
    BITS: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr, ASYMMETRIC: tl.constexpr,
    ROTATE: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Grid (token blocks, B * H). COMMON float32 [B * H, DIM]."""
    half: tl.constexpr = DIM // 2
    row = tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = tokens < key_count
    low, high = decode_halves(
        K, K_SCALES, K_ZEROS, K_IDS, K_CENTROIDS, COS, SIN, row, tokens, live, k_strides, k_clusters,
        DIM, BITS, GROUP, STAGES, ASYMMETRIC, ROTATE, BLOCK_N,
    )  # fmt: skip
    channels = tl.arange(0, half)
    low -= tl.load(COMMON + row * DIM + channels)[None, :]
    high -= tl.load(COMMON + row * DIM + half + channels)[None, :]
    largest = tl.maximum(tl.max(tl.abs(low), 1), tl.max(tl.abs(high), 1))
    scale = tl.maximum(largest / 127.0, 1e-12)
    wide = tokens.to(tl.int64)
    at = OUT + row * out_row + wide[:, None] * out_token + channels[None, :]
    tl.store(at, to_int8(low / scale[:, None]), mask=live[:, None])
    tl.store(at + half, to_int8(high / scale[:, None]), mask=live[:, None])
    tl.store(OUT_SCALES + row * out_scales_row + wide, scale, mask=live)


@triton.jit
def transcode_values_kernel(
    V, V_SCALES, V_ZEROS, V_IDS, V_CENTROIDS, CHANNEL_SCALES, OUT,
    v_strides, v_clusters, out_row, out_outer, value_count,
    BITS: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr, ASYMMETRIC: tl.constexpr,
    EIGHT: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Grid (token blocks, B * H). EIGHT: E4M3 bytes, channels first, `out_outer` from channel to channel; else float16 tokens."""
    row = tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = tokens < value_count
    x = decode_channels(
        V, V_SCALES, V_ZEROS, V_IDS, V_CENTROIDS, row, tokens, live, v_strides, v_clusters,
        0, DIM, DIM, BITS, GROUP, STAGES, ASYMMETRIC, BLOCK_N,
    )  # fmt: skip
    channels, wide = tl.arange(0, DIM), tokens.to(tl.int64)
    if EIGHT:
        scale = tl.load(CHANNEL_SCALES + row * DIM + channels)
        code = tl.trans(encode_e4m3(x / scale[None, :]))
        at = OUT + row * out_row + channels.to(tl.int64)[:, None] * out_outer + wide[None, :]
        tl.store(at, code, mask=live[None, :])
    else:
        at = OUT + row * out_row + wide[:, None] * out_outer + channels[None, :]
        tl.store(at, half_float(x, False), mask=live[:, None])


def transcode_keys(keys: Stored, common: Tensor, rotation: CosSin | None, out: Keys8) -> None:
    """See `kernels.transcode.transcode_keys`."""
    batch, heads, tokens, channels = out.values.shape
    if not out.values.numel():
        return
    _require_flat(out.values, out.scales)
    k, common = Operand(keys), common.float().contiguous()
    cos, sin = (common, common) if rotation is None else (part.contiguous() for part in rotation)
    with torch.cuda.device_of(out.values):
        transcode_keys_kernel[(triton.cdiv(tokens, _TILE_TOKENS), batch * heads)](
            *k.pointers, common, cos, sin, out.values, out.scales,
            k.strides, k.clusters, row_stride(out.values), out.values.stride(2), row_stride(out.scales), tokens,
            **k.options, ROTATE=rotation is not None, BLOCK_N=_TILE_TOKENS, DIM=channels, num_warps=4,
        )  # fmt: skip


def transcode_values(values: Stored, out: Values8) -> None:
    """See `kernels.transcode.transcode_values`."""
    eight = out.scales is not None
    batch, heads = out.values.shape[:2]
    tokens, channels = out.values.shape[2:][:: -1 if eight else 1]
    if not out.values.numel():
        return
    _require_flat(out.values)
    v = Operand(values)
    with torch.cuda.device_of(out.values):
        transcode_values_kernel[(triton.cdiv(tokens, _TILE_TOKENS), batch * heads)](
            *v.pointers, out.scales.contiguous() if eight else out.values, out.values,
            v.strides, v.clusters, row_stride(out.values), out.values.stride(2), tokens,
            **v.options, EIGHT=eight, BLOCK_N=_TILE_TOKENS, DIM=channels, num_warps=4,
        )  # fmt: skip


def _require_flat(*outputs: Tensor) -> None:
    if any(dense_rows(out) is not out for out in outputs):
        raise ValueError("an output is written in place: it needs one stride over batch and heads and a dense last axis")


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    tile = {"BLOCK_N": _TILE_TOKENS, "DIM": 128}
    cases = []
    for bits, group, stages, asymmetric in ((2, 64, 1, False), (2, 16, 4, False), (4, 64, 1, True), (16, 1, 0, False)):
        name, default = f"b{bits}_g{group}_n{stages}", (bits, group) == (2, 64)
        options = {"BITS": bits, "GROUP": group, "STAGES": stages, "ASYMMETRIC": asymmetric, **tile}
        wide = ("k_strides", *strides(out="row token", out_scales="row"))
        integers = dict.fromkeys((*wide, "k_clusters", "key_count"), "i32") | {"k_strides": STRIDE_TYPES}
        kept = {"K": "*bf16"} if bits == 16 else {}
        others = {**dict.fromkeys(("COMMON", "COS", "SIN", "OUT_SCALES"), "*fp32"), "OUT": "*i8", **integers}
        types = {**operand_types("K"), **kept, **others}
        constants, held = {**options, "ROTATE": True}, Tile(_TILE_TOKENS * 128)
        cases.append(CompileCase(f"keys_{name}", transcode_keys_kernel, types, constants, wide, default=default, tile=held))
        for eight in (True, False):
            wide = ("v_strides", *strides(out="row outer"))
            integers = dict.fromkeys((*wide, "v_clusters", "value_count"), "i32") | {"v_strides": STRIDE_TYPES}
            kept, out = {"V": "*bf16"} if bits == 16 else {}, "*u8" if eight else "*fp16"
            types = {**operand_types("V"), **kept, "CHANNEL_SCALES": "*fp32", "OUT": out, **integers}
            constants, case_name = {**options, "EIGHT": eight}, f"values{8 if eight else 16}_{name}"
            cases.append(CompileCase(case_name, transcode_values_kernel, types, constants, wide, default=default, tile=held))
    return cases
