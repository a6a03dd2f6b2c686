"""Eight-bit attention (after SageAttention 2, arXiv 2411.10958): int8 matrix units for the logits, E4M3 or float16 ones for the
output, the running softmax in float32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.triton_kernel import add_bias, softmax_step, store_result
from ..compile_case import CompileCase, Tile, strides
from ..launch import LOG2_E, Launch, dense_rows, flat_rows, query_block, row_stride
from ..transcode.triton_kernel import to_int8

if TYPE_CHECKING:
    from ..transcode import Keys8, Values8


@triton.jit
def attention8_kernel(
    Q, K, K_SCALES, V, V_SCALES, BIAS, OUT, LSE,
    q_row, q_token, k_row, k_token, k_scales_row, v_row, v_outer,
    query_count, key_count, scale,
    EIGHT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, B * H). EIGHT: V holds E4M3 bytes, channels first, else float16 tokens. BIAS None: no bias."""
    row = tl.program_id(1).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live_q = queries < query_count
    channels, offsets = tl.arange(0, DIM), tl.arange(0, BLOCK_N)
    q_at = Q + row * q_row + queries.to(tl.int64)[:, None] * q_token + channels[None, :]
    x = tl.load(q_at, mask=live_q[:, None], other=0.0).to(tl.float32)
    q_scale = tl.maximum(tl.max(tl.abs(x), 1) / 127.0, 1e-12)
    q = to_int8(x / q_scale[:, None])
    q_scale *= scale
    best = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, DIM), tl.float32)
    for start in range(0, key_count, BLOCK_N):
        tokens = start + offsets
        live, wide = tokens < key_count, tokens.to(tl.int64)
        k = tl.load(K + row * k_row + wide[None, :] * k_token + channels[:, None], mask=live[None, :], other=0)
        k_scale = tl.load(K_SCALES + row * k_scales_row + wide, mask=live, other=0.0)
        scores = tl.dot(q, k, out_dtype=tl.int32).to(tl.float32) * k_scale[None, :] * q_scale[:, None]
        scores = tl.where(live[None, :], add_bias(scores, BIAS, tokens, live), -float("inf"))
        weights, rescale, best, mass = softmax_step(scores, best, mass)
        total = total * rescale[:, None]
        if EIGHT:
            at = V + row * v_row + channels.to(tl.int64)[None, :] * v_outer + wide[:, None]
            v = tl.load(at, mask=live[:, None], other=0).to(tl.float8e4nv, bitcast=True)
            total = tl.dot((weights * 448.0).to(tl.float8e4nv), v, total)
        else:
            v = tl.load(V + row * v_row + wide[:, None] * v_outer + channels[None, :], mask=live[:, None], other=0.0)
            total = tl.dot(weights.to(tl.float16), v, total)
    if EIGHT:
        total *= tl.load(V_SCALES + row * DIM + channels)[None, :] / 448.0
    store_result(OUT, LSE, row, queries.to(tl.int64), query_count, live_q, total, best, mass, DIM)


def attention8(q: Tensor, keys: Keys8, values: Values8, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `kernels.attention8.attention8`; lse without the common part."""
    batch, heads, queries, channels = q.shape
    out, lse = torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(q.shape[:3], device=q.device)
    if not q.numel():
        return out, lse
    block = query_block(queries, channels)
    tile = Launch.for_attention(block.rows, channels)
    eight = values.scales is not None
    rows, k, scales, v = flat_rows(q), flat_rows(keys.values), dense_rows(keys.scales), dense_rows(values.values)
    with torch.cuda.device_of(out):
        attention8_kernel[(triton.cdiv(queries, block.rows), batch * heads)](
            rows.tensor, k.tensor, scales, v, values.scales.contiguous() if eight else scales,
            None if bias is None else bias.contiguous(), out, lse,
            rows.row, rows.token, k.row, k.token, row_stride(scales), row_stride(v), v.stride(2),
            queries, k.tensor.shape[2], LOG2_E / math.sqrt(channels),
            EIGHT=eight, BLOCK_M=block.rows, BLOCK_N=tile.keys, DIM=channels, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, lse


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    wide = strides(q="row token", k="row token", k_scales="row", v="row outer")
    integers = dict.fromkeys((*wide, "query_count", "key_count"), "i32")
    cases = []
    for eight, channels in ((True, 128), (False, 128), (True, 64), (False, 256)):
        block = query_block(4680, channels)
        tile = Launch.for_attention(block.rows, channels)
        pointers = {"Q": "*bf16", "K": "*i8", "K_SCALES": "*fp32", "V": "*u8" if eight else "*fp16", "V_SCALES": "*fp32"}
        types = {**pointers, "OUT": "*bf16", "LSE": "*fp32", **integers, "scale": "fp32"}
        constants = {"BIAS": None, "EIGHT": eight, "BLOCK_M": block.rows, "BLOCK_N": tile.keys, "DIM": channels}
        name = f"v{8 if eight else 16}_d{channels}"
        # Launched on cards with E4M3 matrix units only, see `launch.has_float8`.
        without = ("sm_80", "sm_86", "gfx942", "gfx1100", "gfx1201") if eight else ()
        default, held = channels == 128, Tile(2 * tile.keys * channels, walked=True)
        cases.append(
            CompileCase(name, attention8_kernel, types, constants, wide, tile.warps, tile.stages, True, default, without, held)
        )
    return cases
