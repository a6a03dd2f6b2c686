"""Ranking tiles by their means, and attention to the means of the others, without a matrix of logits.

One program takes a block of queries that chooses together. It walks over the means twice: once for the mass of every query, once
for the largest share that any of them has of each tile. torch takes the largest of these shares; a second kernel is flash
attention over the means, where a byte says of each tile whether the block reads it instead.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.triton_kernel import softmax_step, store_result
from ..compile_case import CompileCase, Tile, strides
from ..launch import LOG2_E, Launch, flat_rows
from ..rows8 import Rows8
from .reference import MOST_SPREAD


@triton.jit
def mean_keys(KEYS, KEY_SCALES, row, tiles, live, tile_count, DIM: tl.constexpr):
    """Means [DIM, N] as they are kept, and their scales [N]."""
    channels = tl.arange(0, DIM)
    at = row * tile_count + tiles.to(tl.int64)
    k = tl.load(KEYS + at[None, :] * DIM + channels[:, None], mask=live[None, :], other=0)
    return k, tl.load(KEY_SCALES + at, mask=live, other=0.0).to(tl.float32)


@triton.jit
def mean_logits(q, k, scales, LOG_SIZES, tiles, live, scale):
    """Logits in log 2 of queries [M, DIM] for some tiles [N]; -inf where there is none."""
    sizes = tl.load(LOG_SIZES + tiles, mask=live, other=0.0) * 1.4426950408889634
    scores = tl.dot(q, k.to(q.dtype)) * (scales * scale)[None, :] + sizes[None, :]
    return tl.where(live[None, :], scores, -float("inf"))


@triton.jit
def add_spread(scores, squares, k, scales, norm, most, DIM: tl.constexpr):
    """What the spreads of tiles add to logits, both in log 2."""
    wide = k.to(tl.float32)
    spreads = tl.maximum(norm - tl.sum(wide * wide, 0) * scales * scales, 0.0) / DIM
    return scores + tl.minimum(squares[:, None] * spreads[None, :], most)


@triton.jit
def rank_kernel(
    Q, KEYS, KEY_SCALES, LOG_SIZES, NORMS, NEAR, SHARES,
    q_row, q_token,
    query_count, tile_count, scale, most_spread,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, B * H): the largest share of any query of a block of each tile, in log 2, to SHARES
    [B * H, blocks, tiles]. NEAR: natural logarithm of the mass that every query has besides."""
    row, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    live_q = queries < query_count
    channels, offsets = tl.arange(0, DIM), tl.arange(0, BLOCK_N)
    q_at = Q + row * q_row + queries.to(tl.int64)[:, None] * q_token + channels[None, :]
    kind = tl.float16 if HALF else Q.dtype.element_ty
    q = tl.load(q_at, mask=live_q[:, None], other=0.0).to(kind)
    norm = tl.load(NORMS + row)
    # log2(e) / 2D times the square: in log 2, what a spread of 1 adds.
    squares = tl.sum(q.to(tl.float32) * q.to(tl.float32), 1) * (scale * scale * 0.34657359027997264)
    best = tl.load(NEAR + row * query_count + queries, mask=live_q, other=-float("inf")) * 1.4426950408889634
    mass = tl.where(best > -float("inf"), 1.0, 0.0)
    for start in range(0, tile_count, BLOCK_N):
        tiles = start + offsets
        live = tiles < tile_count
        k, scales = mean_keys(KEYS, KEY_SCALES, row, tiles, live, tile_count, DIM)
        scores = mean_logits(q, k, scales, LOG_SIZES, tiles, live, scale)
        scores = add_spread(scores, squares, k, scales, norm, most_spread, DIM)
        _, _, best, mass = softmax_step(scores, best, mass)
    # Of queries that are not there no share counts.
    all_mass = tl.where(live_q, best + tl.log2(mass), float("inf"))
    shares_at = SHARES + (row * tl.num_programs(0) + block) * tile_count
    for start in range(0, tile_count, BLOCK_N):
        tiles = start + offsets
        live = tiles < tile_count
        k, scales = mean_keys(KEYS, KEY_SCALES, row, tiles, live, tile_count, DIM)
        scores = mean_logits(q, k, scales, LOG_SIZES, tiles, live, scale)
        scores = add_spread(scores, squares, k, scales, norm, most_spread, DIM)
        tl.store(shares_at + tiles, tl.max(scores - all_mass[:, None], 0), mask=live)


@triton.jit
def rest_kernel(
    Q, KEYS, KEY_SCALES, VALUES, VALUE_SCALES, LOG_SIZES, READ, OUT, LSE,
    q_row, q_token,
    query_count, tile_count, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, B * H): attention to the means of the tiles whose byte in READ [B * H, blocks, tiles] is 0."""
    row, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    live_q = queries < query_count
    channels, offsets = tl.arange(0, DIM), tl.arange(0, BLOCK_N)
    q_at = Q + row * q_row + queries.to(tl.int64)[:, None] * q_token + channels[None, :]
    kind = tl.float16 if HALF else Q.dtype.element_ty
    q = tl.load(q_at, mask=live_q[:, None], other=0.0).to(kind)
    read_at = READ + (row * tl.num_programs(0) + block) * tile_count
    best = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, DIM), tl.float32)
    for start in range(0, tile_count, BLOCK_N):
        tiles = start + offsets
        live = tiles < tile_count
        rest = tl.load(read_at + tiles, mask=live, other=1) == 0
        k, scales = mean_keys(KEYS, KEY_SCALES, row, tiles, live, tile_count, DIM)
        scores = mean_logits(q, k, scales, LOG_SIZES, tiles, live, scale)
        weights, rescale, best, mass = softmax_step(tl.where(rest[None, :], scores, -float("inf")), best, mass)
        at = row * tile_count + tiles.to(tl.int64)
        v = tl.load(VALUES + at[:, None] * DIM + channels[None, :], mask=live[:, None], other=0).to(tl.float32)
        v *= tl.load(VALUE_SCALES + at, mask=live, other=0.0).to(tl.float32)[:, None]
        total = tl.dot(weights.to(kind), v.to(kind), total * rescale[:, None])
    store_result(OUT, LSE, row, queries.to(tl.int64), query_count, live_q, total, best, mass, DIM)


def rank_means(
    q: Tensor, keys: Rows8, values: Rows8, log_sizes: Tensor, norms: Tensor, near: Tensor, most: int, queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.means.rank_means`."""
    batch, heads, count, channels = q.shape
    tiles, grid = keys.scales.shape[2], (triton.cdiv(count, queries), batch * heads)
    shares = torch.empty(batch, heads, grid[0], tiles, device=q.device)
    out, lse = torch.empty(q.shape, device=q.device), torch.empty(q.shape[:3], device=q.device)
    flat, half = flat_rows(q), q.dtype == torch.float32
    key_parts, value_parts = ([part.contiguous() for part in rows] for rows in (keys, values))
    numbers = (flat.row, flat.token, count, tiles, LOG2_E / math.sqrt(channels))
    tile = Launch.for_attention(queries, channels)
    sizes = {"BLOCK_M": queries, "BLOCK_N": tile.keys, "DIM": channels, "HALF": half}
    run = {"num_warps": tile.warps, "num_stages": tile.stages}
    with torch.cuda.device_of(out):
        rank_kernel[grid](
            flat.tensor, *key_parts, log_sizes, norms.contiguous(), near.contiguous(), shares,
            *numbers, LOG2_E * MOST_SPREAD, **sizes, **run,
        )  # fmt: skip
        chosen = shares.topk(most).indices.sort().values
        read = torch.zeros(shares.shape, dtype=torch.uint8, device=q.device).scatter_(3, chosen, 1)
        rest_kernel[grid](flat.tensor, *key_parts, *value_parts, log_sizes, read, out, lse, *numbers, **sizes, **run)
    return chosen, out, lse


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    rows, channels = 64, 128
    tile, wide = Launch.for_attention(rows, channels), strides(q="row token")
    integers = dict.fromkeys((*wide, "query_count", "tile_count"), "i32")
    means = {"KEYS": "*i8", "KEY_SCALES": "*fp16", "LOG_SIZES": "*fp32", "Q": "*bf16", **integers, "scale": "fp32"}
    rest = {"VALUES": "*i8", "VALUE_SCALES": "*fp16", "READ": "*u8", "OUT": "*fp32", "LSE": "*fp32"}
    constants = {"BLOCK_M": rows, "BLOCK_N": tile.keys, "DIM": channels, "HALF": False}
    return [
        CompileCase(name, kernel, types, constants, wide, tile.warps, tile.stages, True, tile=Tile(tile.keys * channels, True))
        for name, kernel, types in (
            ("rank", rank_kernel, means | {"NORMS": "*fp32", "NEAR": "*fp32", "SHARES": "*fp32", "most_spread": "fp32"}),
            ("rest", rest_kernel, means | rest),
        )
    ]
