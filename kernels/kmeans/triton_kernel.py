"""k-means in Triton. Signatures are those of `reference.py`.

Tensor cores multiply bfloat16, so each float32 operand goes in as two of them, x = high + low, and a product is high * high +
high * low + low * high: what is left out is at most 3 * 2^-16 of |x| |c|. A bfloat16 input is its own high part and saves a
third. So an id may differ from the reference's where two centroids are equally far to that much; a cluster's mean is off by at
most 2^-16 of its largest value.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compile_case import CompileCase, Tile, strides
from ..launch import OTHER_TARGETS, RDNA_TARGETS, gpu_kind

# Tokens that one program of the update adds up; partial sums are then added in a fixed order, so that two runs agree.
_SPLIT_TOKENS = 4096
_SUBTRACT_TOKENS = 64
_PREPARED_CLUSTERS = 32


@triton.jit
def _split(x):
    """float32 tile -> two bfloat16 ones that add up to it to 2^-16."""
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _load_centroids(
    CENTROIDS, row, heads, cluster, known, centroids_batch, centroids_head, centroids_cluster, centroids_channel,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_C, CHANNELS] of one (b, h), in any strides."""
    at = CENTROIDS + (row // heads) * centroids_batch + (row % heads) * centroids_head
    at += cluster.to(tl.int64)[:, None] * centroids_cluster + tl.arange(0, CHANNELS)[None, :] * centroids_channel
    return tl.load(at, mask=known[:, None], other=0.0).to(tl.float32)


@triton.jit
def _prepare(
    CENTROIDS, HIGH, LOW, HALF_NORMS, heads, clusters,
    centroids_batch, centroids_head, centroids_cluster, centroids_channel,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """CENTROIDS [B, H, C, D] as `_assign` takes them."""
    row = tl.program_id(1).to(tl.int64)
    cluster = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = cluster < clusters
    x = _load_centroids(
        CENTROIDS, row, heads, cluster, known, centroids_batch, centroids_head, centroids_cluster, centroids_channel, CHANNELS
    )
    high, low = _split(x)
    place = (row * clusters + cluster)[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    tl.store(HIGH + place, high, mask=known[:, None])
    tl.store(LOW + place, low, mask=known[:, None])
    tl.store(HALF_NORMS + row * clusters + cluster, tl.sum(x * x, 1) / 2, mask=known)


@triton.jit
def _average(
    SUMS, COUNTS, CENTROIDS, OUT, heads, clusters, splits, kept,
    centroids_batch, centroids_head, centroids_cluster, centroids_channel,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Means [B, H, C, D] of what `_sum_clusters` wrote, part after part; the first `kept` clusters, and those without members,
    keep their centroids."""
    row = tl.program_id(1).to(tl.int64)
    cluster = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = cluster < clusters
    channel = tl.arange(0, CHANNELS)
    sums, counts = tl.zeros((BLOCK_C, CHANNELS), tl.float32), tl.zeros((BLOCK_C,), tl.int32)
    for part in range(0, splits):
        place = (row * splits + part) * clusters + cluster
        sums += tl.load(SUMS + place[:, None] * CHANNELS + channel[None, :], mask=known[:, None], other=0.0)
        counts += tl.load(COUNTS + place, mask=known, other=0)
    old = _load_centroids(
        CENTROIDS, row, heads, cluster, known, centroids_batch, centroids_head, centroids_cluster, centroids_channel, CHANNELS
    )
    members = tl.maximum(counts, 1).to(tl.float32)
    moves = (counts > 0) & (cluster >= kept)
    means = tl.where(moves[:, None], tl.div_rn(sums, tl.broadcast_to(members[:, None], sums.shape)), old)
    place = (row * clusters + cluster)[:, None] * CHANNELS + channel[None, :]
    tl.store(OUT + place, means, mask=known[:, None])


@triton.jit
def _assign(
    X, HIGH, LOW, HALF_NORMS, IDS, heads, tokens, clusters, x_batch, x_head, x_token, x_channel,
    EXACT: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """X [B, H, S, D]; HIGH, LOW [BH, C, D] bfloat16 and HALF_NORMS [BH, C] contiguous -> IDS [BH, S]. EXACT: X is bfloat16."""
    row = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    channel = tl.arange(0, CHANNELS)
    live = token < tokens
    place = (row // heads) * x_batch + (row % heads) * x_head + token[:, None] * x_token + channel[None, :] * x_channel
    x = tl.load(X + place, mask=live[:, None], other=0.0)
    if EXACT:
        x_high = x
    else:
        x_high, x_low = _split(x.to(tl.float32))
    best = tl.full((BLOCK_S,), float("inf"), tl.float32)
    winner = tl.zeros((BLOCK_S,), tl.int32)
    for first in range(0, clusters, BLOCK_C):
        cluster = first + tl.arange(0, BLOCK_C)
        known = cluster < clusters
        elements = (row * clusters + cluster)[None, :] * CHANNELS + channel[:, None]
        high = tl.load(HIGH + elements, mask=known[None, :], other=0.0)
        low = tl.load(LOW + elements, mask=known[None, :], other=0.0)
        product = tl.dot(x_high, low)
        if not EXACT:
            product = tl.dot(x_low, high, product)
        product = tl.dot(x_high, high, product)
        half = tl.load(HALF_NORMS + row * clusters + cluster, mask=known, other=float("inf"))
        least, index = tl.min(half[None, :] - product, 1, return_indices=True, return_indices_tie_break_left=True)
        # Strictly less: on a tie the lower id, found earlier, stays.
        nearer = least < best
        winner = tl.where(nearer, first + index, winner)
        best = tl.where(nearer, least, best)
    tl.store(IDS + row * tokens + token, winner.to(tl.uint8), mask=live)


@triton.jit
def _sum_clusters(
    X, IDS, SUMS, COUNTS, heads, tokens, clusters, splits, x_batch, x_head, x_token, x_channel,
    EXACT: tl.constexpr, CHANNELS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """X [B, H, S, D], IDS [BH, S] -> SUMS [BH, splits, C, D], COUNTS [BH, splits, C]: a product with one-hot rows, no atomics."""
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    cluster = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = tl.arange(0, CHANNELS)
    base = (row // heads) * x_batch + (row % heads) * x_head
    sums = tl.zeros((BLOCK_C, CHANNELS), tl.float32)
    counts = tl.zeros((BLOCK_C,), tl.int32)
    for first in range(part * SPLIT, tl.minimum(tokens, (part + 1) * SPLIT), BLOCK_S):
        token = (first + tl.arange(0, BLOCK_S)).to(tl.int64)
        live = token < tokens
        x = tl.load(X + base + token[:, None] * x_token + channel[None, :] * x_channel, mask=live[:, None], other=0.0)
        ids = tl.load(IDS + row * tokens + token, mask=live, other=0).to(tl.int32)
        member = (ids[None, :] == cluster[:, None]) & live[None, :]
        counts += tl.sum(member.to(tl.int32), 1)
        if EXACT:
            sums = tl.dot(member.to(tl.bfloat16), x, sums)
        else:
            high, low = _split(x.to(tl.float32))
            sums = tl.dot(member.to(tl.bfloat16), low, sums)
            sums = tl.dot(member.to(tl.bfloat16), high, sums)
    known = cluster < clusters
    place = (row * splits + part) * clusters + cluster
    tl.store(SUMS + place[:, None] * CHANNELS + channel[None, :], sums, mask=known[:, None])
    tl.store(COUNTS + place, counts, mask=known)


@triton.jit
def _subtract(
    X, IDS, CENTROIDS, OUT, heads, tokens, x_batch, x_head, x_token, x_channel, ids_batch, ids_head, ids_token,
    centroids_batch, centroids_head, centroids_cluster, centroids_channel,
    CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """OUT [BH, S, D] float32 contiguous = X - CENTROIDS[IDS]; all inputs in any strides."""
    row = tl.program_id(1).to(tl.int64)
    batch, head = row // heads, row % heads
    token = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    channel = tl.arange(0, CHANNELS)
    live = token < tokens
    ids = tl.load(IDS + batch * ids_batch + head * ids_head + token * ids_token, mask=live, other=0).to(tl.int64)
    x = X + batch * x_batch + head * x_head + token[:, None] * x_token + channel[None, :] * x_channel
    x = tl.load(x, mask=live[:, None], other=0.0)
    centroid = batch * centroids_batch + head * centroids_head + ids[:, None] * centroids_cluster
    centroid = tl.load(CENTROIDS + (centroid + channel[None, :] * centroids_channel), mask=live[:, None], other=0.0)
    out = (row * tokens + token[:, None]) * CHANNELS + channel[None, :]
    tl.store(OUT + out, x.to(tl.float32) - centroid.to(tl.float32), mask=live[:, None])


def assign_clusters(x: Tensor, centroids: Tensor) -> Tensor:
    """See `kernels.assign_clusters`."""
    batch, heads, tokens, channels = x.shape
    rows, clusters = batch * heads, centroids.shape[2]
    high, low = torch.empty((2, rows, clusters, channels), dtype=torch.bfloat16, device=x.device)
    half_norms = torch.empty((rows, clusters), dtype=torch.float32, device=x.device)
    ids = torch.empty(batch, heads, tokens, dtype=torch.uint8, device=x.device)
    config = _assign_tiles(x.dtype == torch.bfloat16, channels, gpu_kind(x.device).rdna)
    grid = (triton.cdiv(tokens, config["BLOCK_S"]), batch * heads)
    if ids.numel():
        with torch.cuda.device_of(x):
            _prepare[(triton.cdiv(clusters, _PREPARED_CLUSTERS), rows)](
                centroids, high, low, half_norms, heads, clusters, *centroids.stride(),
                CHANNELS=channels, BLOCK_C=_PREPARED_CLUSTERS,
            )  # fmt: skip
            _assign[grid](x, high, low, half_norms, ids, heads, tokens, clusters, *x.stride(), **config)
    return ids


def _assign_tiles(exact: bool, channels: int, rdna: bool) -> dict[str, int | bool]:
    """Tokens stay in shared memory while clusters pass by: as many as leave room for those on cards with 99 KiB."""
    wide = 2 if exact else 1
    block_s = 64 if rdna else min(128, 64 * 128 * wide // channels)
    block_c = 32 if rdna else min(64, 64 * 128 // channels)
    tiles = {"BLOCK_S": block_s, "BLOCK_C": block_c, "num_warps": 8 if rdna else 4, "num_stages": 2}
    return {"EXACT": exact, "CHANNELS": channels, **tiles}


def update_centroids(x: Tensor, ids: Tensor, centroids: Tensor, kept: int = 0) -> Tensor:
    """See `kernels.update_centroids`."""
    batch, heads, tokens, channels = x.shape
    clusters, rows, splits = centroids.shape[2], batch * heads, max(1, triton.cdiv(tokens, _SPLIT_TOKENS))
    config = _sum_tiles(x.dtype == torch.bfloat16, channels, gpu_kind(x.device).rdna)
    sums = torch.empty(rows, splits, clusters, channels, device=x.device)
    counts = torch.empty(rows, splits, clusters, dtype=torch.int32, device=x.device)
    out = torch.empty(centroids.shape, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(clusters, config["BLOCK_C"]), rows, splits)
    if rows:
        with torch.cuda.device_of(x):
            _sum_clusters[grid](
                x, ids.contiguous(), sums, counts, heads, tokens, clusters, splits, *x.stride(), SPLIT=_SPLIT_TOKENS, **config
            )
            _average[(triton.cdiv(clusters, _PREPARED_CLUSTERS), rows)](
                sums, counts, centroids, out, heads, clusters, splits, kept, *centroids.stride(),
                CHANNELS=channels, BLOCK_C=_PREPARED_CLUSTERS,
            )  # fmt: skip
    return out


def _sum_tiles(exact: bool, channels: int, rdna: bool) -> dict[str, int | bool]:
    """The sums of one block of clusters stay in registers, so wider heads get fewer clusters."""
    block_c = min(128, (128 if exact else 64) * 128 // channels)
    return {
        "EXACT": exact,
        "CHANNELS": channels,
        "BLOCK_S": 64 if exact and not rdna else 32,
        "BLOCK_C": block_c,
        "num_warps": 8,
        "num_stages": 2,
    }


def subtract_centroids(x: Tensor, ids: Tensor, centroids: Tensor) -> Tensor:
    """See `kernels.subtract_centroids`."""
    batch, heads, tokens, channels = x.shape
    out = torch.empty(x.shape, device=x.device)
    grid = (triton.cdiv(tokens, _SUBTRACT_TOKENS), batch * heads)
    if out.numel():
        with torch.cuda.device_of(x):
            _subtract[grid](
                x, ids, centroids, out, heads, tokens, *x.stride(), *ids.stride(), *centroids.stride(),
                CHANNELS=channels, BLOCK_S=_SUBTRACT_TOKENS,
            )  # fmt: skip
    return out


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    cases = []
    for channels, dtype, rdna in itertools.product((128, 64, 256), ("bf16", "fp32"), (False, True)):
        name, exact = f"{dtype}_d{channels}{'_rdna' * rdna}", dtype == "bf16"
        wide, default = ("clusters", *strides(x="batch head token")), channels == 128 and not rdna
        x = {"X": f"*{dtype}", **dict.fromkeys(("heads", "tokens", *wide), "i32")}
        without = OTHER_TARGETS if rdna else RDNA_TARGETS
        tiles = _assign_tiles(exact, channels, rdna)
        warps, stages = tiles.pop("num_warps"), tiles.pop("num_stages")
        types = {**x, "HIGH": "*bf16", "LOW": "*bf16", "HALF_NORMS": "*fp32", "IDS": "*u8"}
        constants = {**tiles, "x_channel": 1}
        held = Tile(tiles["BLOCK_S"] * channels, turns=256 // tiles["BLOCK_C"])  # as many as uint8 ids can name
        cases.append(CompileCase(f"assign_{name}", _assign, types, constants, wide, warps, stages, True, default, without, held))
        tiles = _sum_tiles(exact, channels, rdna)
        warps, stages = tiles.pop("num_warps"), tiles.pop("num_stages")
        types = {**x, "IDS": "*u8", "SUMS": "*fp32", "COUNTS": "*i32", "splits": "i32"}
        constants = {**tiles, "SPLIT": _SPLIT_TOKENS, "x_channel": 1}
        held = Tile(tiles["BLOCK_S"] * channels, walked=True)
        name = f"sum_{name}"
        cases.append(CompileCase(name, _sum_clusters, types, constants, wide, warps, stages, True, default, without, held))
    wide = strides(x="batch head token", centroids="batch head cluster")
    integers = ("heads", "tokens", *strides(ids="batch head"), *wide)
    types = {"X": "*bf16", "IDS": "*u8", "CENTROIDS": "*fp32", "OUT": "*fp32", **dict.fromkeys(integers, "i32")}
    constants = {"x_channel": 1, "ids_token": 1, "centroids_channel": 1, "CHANNELS": 128, "BLOCK_S": _SUBTRACT_TOKENS}
    cases.append(CompileCase("subtract", _subtract, types, constants, wide, tile=Tile(_SUBTRACT_TOKENS * 128)))
    wide, own = strides(centroids="batch head cluster"), dict.fromkeys(("heads", "clusters"), "i32")
    constants = {"centroids_channel": 1, "CHANNELS": 128, "BLOCK_C": _PREPARED_CLUSTERS}
    types = {"CENTROIDS": "*fp32", "HIGH": "*bf16", "LOW": "*bf16", "HALF_NORMS": "*fp32", **own, **dict.fromkeys(wide, "i32")}
    tile = Tile(_PREPARED_CLUSTERS * 128)
    cases.append(CompileCase("prepare", _prepare, types, constants, wide, tile=tile))
    types = {"SUMS": "*fp32", "COUNTS": "*i32", "CENTROIDS": "*fp32", "OUT": "*fp32", "splits": "i32", "kept": "i32", **own}
    cases.append(CompileCase("average", _average, {**types, **dict.fromkeys(wide, "i32")}, constants, wide, tile=tile))
    return cases
