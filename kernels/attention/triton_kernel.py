"""Flash attention (arXiv 2205.14135) with the logarithm of the mass, and the fold of partial results. Logits are in units of
log 2 inside, because exp2 is what the hardware has."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compile_case import CompileCase, Tile, strides
from ..launch import LOG2_E, Launch, flat_rows, query_block


@triton.jit
def softmax_step(scores, best, mass):
    """One tile of a running softmax: scores [M, N] in log 2, best and mass [M]. -> weights, rescale, best, mass."""
    new = tl.maximum(best, tl.max(scores, 1))
    # Before the first live key the maximum is -inf, and -inf - -inf would be NaN.
    safe = tl.where(new == -float("inf"), 0.0, new)
    rescale = tl.exp2(best - safe)
    weights = tl.exp2(scores - safe[:, None])
    return weights, rescale, new, mass * rescale + tl.sum(weights, 1)


@triton.jit
def add_bias(scores, BIAS, tokens, live):
    """Logits in log 2 plus what stands in BIAS for each key, float32 in natural logarithms; None: nothing."""
    if BIAS is not None:
        scores += (tl.load(BIAS + tokens, mask=live, other=0.0) * 1.4426950408889634)[None, :]
    return scores


@triton.jit
def store_result(OUT, LSE, row, queries, count, live, total, best, mass, DIM: tl.constexpr):
    """Output and natural logarithm of the mass of one block of queries. OUT and LSE are contiguous, `row` counts (b, h)."""
    channels = tl.arange(0, DIM)
    seen = mass > 0
    at = row * count + queries
    result = total / tl.where(seen, mass, 1.0)[:, None]
    tl.store(OUT + at[:, None] * DIM + channels[None, :], result.to(OUT.dtype.element_ty), mask=live[:, None])
    lse = (tl.where(seen, best, 0.0) + tl.log2(tl.where(seen, mass, 1.0))) * 0.6931471805599453
    tl.store(LSE + at, tl.where(seen, lse, -float("inf")), mask=live)


@triton.jit
def attention_kernel(
    Q, K, V, BIAS, OUT, LSE,
    q_row, q_token, k_row, k_token, v_row, v_token,
    query_count, key_count, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, B * H). BIAS None: no bias. HALF: products in float16 instead of Q's own 16 bits."""
    row = tl.program_id(1).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live_q = queries < query_count
    channels, offsets = tl.arange(0, DIM), tl.arange(0, BLOCK_N)
    q_at = Q + row * q_row + queries.to(tl.int64)[:, None] * q_token + channels[None, :]
    q = tl.load(q_at, mask=live_q[:, None], other=0.0)
    kind = tl.float16 if HALF else Q.dtype.element_ty
    q = q.to(kind)
    best = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, DIM), tl.float32)
    for start in range(0, key_count, BLOCK_N):
        tokens = start + offsets
        live = tokens < key_count
        wide = tokens.to(tl.int64)
        k = tl.load(K + row * k_row + wide[None, :] * k_token + channels[:, None], mask=live[None, :], other=0.0)
        scores = add_bias(tl.dot(q, k.to(kind)) * scale, BIAS, tokens, live)
        scores = tl.where(live[None, :], scores, -float("inf"))
        weights, rescale, best, mass = softmax_step(scores, best, mass)
        v = tl.load(V + row * v_row + wide[:, None] * v_token + channels[None, :], mask=live[:, None], other=0.0)
        total = tl.dot(weights.to(kind), v.to(kind), total * rescale[:, None])
    store_result(OUT, LSE, row, queries.to(tl.int64), query_count, live_q, total, best, mass, DIM)


@triton.jit
def listed_kernel(
    Q, K, V, LISTED, OUT, LSE,
    q_row, q_token, k_row, k_token, v_row, v_token, listed_row, listed_block,
    query_count, listed_count, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, B * H): as `attention_kernel`, of the keys that LISTED names for each block."""
    row = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0)
    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    live_q = queries < query_count
    channels, offsets = tl.arange(0, DIM), tl.arange(0, BLOCK_N)
    q_at = Q + row * q_row + queries.to(tl.int64)[:, None] * q_token + channels[None, :]
    q = tl.load(q_at, mask=live_q[:, None], other=0.0)
    kind = tl.float16 if HALF else Q.dtype.element_ty
    q = q.to(kind)
    names = LISTED + row * listed_row + block.to(tl.int64) * listed_block
    best = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, DIM), tl.float32)
    for start in range(0, listed_count, BLOCK_N):
        places = start + offsets
        tokens = tl.load(names + places, mask=places < listed_count, other=-1)
        live = tokens >= 0
        wide = tl.maximum(tokens, 0).to(tl.int64)
        k = tl.load(K + row * k_row + wide[None, :] * k_token + channels[:, None], mask=live[None, :], other=0.0)
        scores = tl.where(live[None, :], tl.dot(q, k.to(kind)) * scale, -float("inf"))
        weights, rescale, best, mass = softmax_step(scores, best, mass)
        v = tl.load(V + row * v_row + wide[:, None] * v_token + channels[None, :], mask=live[:, None], other=0.0)
        total = tl.dot(weights.to(kind), v.to(kind), total * rescale[:, None])
    store_result(OUT, LSE, row, queries.to(tl.int64), query_count, live_q, total, best, mass, DIM)


@triton.jit
def merge_kernel(
    PARTS, MASSES, OUT, LSE, parts_part, masses_part, parts, rows,
    FRESH: tl.constexpr, BLOCK_M: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks): fold `parts` results [rows, DIM] with their LSE [rows] into OUT and LSE, all rows contiguous. FRESH:
    there is nothing in these yet."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels, live = tl.arange(0, DIM), row < rows
    at = row[:, None] * DIM + channels[None, :]
    if FRESH:
        best, total = tl.full((BLOCK_M,), -float("inf"), tl.float32), tl.zeros((BLOCK_M, DIM), tl.float32)
    else:
        best = tl.load(LSE + row, mask=live, other=-float("inf"))
        total = tl.load(OUT + at, mask=live[:, None], other=0.0)
    for part in range(0, parts):
        many = row * 0 + part  # 64 bits: all parts together may be larger than 32 bits count
        new = tl.load(MASSES + many * masses_part + row, mask=live, other=-float("inf"))
        high = tl.maximum(best, new)
        safe = tl.where(high == -float("inf"), 0.0, high)
        old_weight, new_weight = tl.exp(best - safe), tl.exp(new - safe)
        mass = old_weight + new_weight
        norm = tl.where(mass > 0, mass, 1.0)
        values = tl.load(PARTS + (many * parts_part)[:, None] + at, mask=live[:, None], other=0.0).to(tl.float32)
        total = total * (old_weight / norm)[:, None] + values * (new_weight / norm)[:, None]
        best = tl.where(mass > 0, safe + tl.log(norm), -float("inf"))
    tl.store(OUT + at, total, mask=live[:, None])
    tl.store(LSE + row, best, mask=live)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `kernels.attention.attention`."""
    batch, heads, queries, channels = q.shape
    out, lse = torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(q.shape[:3], device=q.device)
    if not q.numel():
        return out, lse
    block = query_block(queries, channels)
    tile = Launch.for_attention(block.rows, channels)
    q, k, v = flat_rows(q), flat_rows(k), flat_rows(v)
    with torch.cuda.device_of(out):
        attention_kernel[(triton.cdiv(queries, block.rows), batch * heads)](
            q.tensor, k.tensor, v.tensor, None if bias is None else bias.contiguous(), out, lse,
            q.row, q.token, k.row, k.token, v.row, v.token,
            queries, k.tensor.shape[2], LOG2_E / math.sqrt(channels),
            BLOCK_M=block.rows, BLOCK_N=tile.keys, DIM=channels, HALF=q.tensor.dtype == torch.float32,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, lse


def attention_to_listed(q: Tensor, k: Tensor, v: Tensor, listed: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """See `kernels.attention.attention_to_listed`."""
    batch, heads, count, channels = q.shape
    out, lse = torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(q.shape[:3], device=q.device)
    if not q.numel():
        return out, lse
    tile = Launch.for_attention(queries, channels)
    q, k, v = flat_rows(q), flat_rows(k), flat_rows(v)
    listed = listed if batch == 1 or listed.stride(0) == heads * listed.stride(1) else listed.contiguous()
    with torch.cuda.device_of(out):
        listed_kernel[(listed.shape[2], batch * heads)](
            q.tensor, k.tensor, v.tensor, listed, out, lse,
            q.row, q.token, k.row, k.token, v.row, v.token, listed.stride(1), listed.stride(2),
            count, listed.shape[3], LOG2_E / math.sqrt(channels),
            BLOCK_M=queries, BLOCK_N=tile.keys, DIM=channels, HALF=q.tensor.dtype == torch.float32,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, lse


def merge_attention(outs: Tensor, lses: Tensor, out: Tensor, lse: Tensor, fresh: bool = False) -> None:
    """See `kernels.attention.merge_attention`. fresh: `out` and `lse` hold nothing yet, not even zeros."""
    if not ((fresh or len(outs)) and out.numel()):
        return
    outs, lses = (x if not len(x) or x[0].is_contiguous() else x.contiguous() for x in (outs, lses))
    rows, channels = lse.numel(), out.shape[-1]
    with torch.cuda.device_of(out):
        merge_kernel[(triton.cdiv(rows, 16),)](
            outs, lses, out, lse, outs.stride(0), lses.stride(0), len(outs), rows,
            FRESH=fresh, BLOCK_M=16, DIM=channels, num_warps=4,
        )  # fmt: skip


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    wide = strides(q="row token", k="row token", v="row token")
    integers = dict.fromkeys((*wide, "query_count", "key_count"), "i32")
    cases = []
    for dtype, channels, queries in (
        ("bf16", 128, 4680),
        ("fp16", 128, 4680),
        ("bf16", 64, 4680),
        ("bf16", 256, 4680),
        ("bf16", 128, 16),
    ):
        block = query_block(queries, channels)
        tile = Launch.for_attention(block.rows, channels)
        types = {**dict.fromkeys(("Q", "K", "V", "OUT"), f"*{dtype}"), "LSE": "*fp32", **integers, "scale": "fp32"}
        constants = {"BLOCK_M": block.rows, "BLOCK_N": tile.keys, "DIM": channels, "HALF": False, "BIAS": None}
        name, default = f"{dtype}_d{channels}_m{block.rows}", (dtype, channels, queries) == ("bf16", 128, 4680)
        case = CompileCase(name, attention_kernel, types, constants, wide, tile.warps, tile.stages, True, default)
        cases.append(case._replace(tile=Tile(2 * tile.keys * channels, walked=True)))
    cases.append(_listed_case())
    wide = strides(parts="part", masses="part")
    integers = dict.fromkeys((*wide, "parts", "rows"), "i32")
    types = {**dict.fromkeys(("PARTS", "MASSES", "OUT", "LSE"), "*fp32"), **integers}
    for fresh in (False, True):
        name, constants = f"merge{'_fresh' * fresh}", {"FRESH": fresh, "BLOCK_M": 16, "DIM": 128}
        cases.append(CompileCase(name, merge_kernel, types, constants, wide, 4, default=not fresh, tile=Tile(16 * 128, True)))
    return cases


def _listed_case() -> CompileCase:
    """64 queries that read keys of their own."""
    rows, channels = 64, 128
    tile = Launch.for_attention(rows, channels)
    wide = strides(q="row token", k="row token", v="row token", listed="row block")
    integers = dict.fromkeys((*wide, "query_count", "listed_count"), "i32")
    types = {**dict.fromkeys(("Q", "K", "V", "OUT"), "*bf16"), "LISTED": "*i32", "LSE": "*fp32", **integers, "scale": "fp32"}
    constants = {"BLOCK_M": rows, "BLOCK_N": tile.keys, "DIM": channels, "HALF": False}
    of_tile = Tile(2 * tile.keys * channels, walked=True)
    return CompileCase("listed", listed_kernel, types, constants, wide, tile.warps, tile.stages, True, tile=of_tile)
