"""Attention on codes for few queries: codes of both are read once per block of queries, expanded in registers, and nothing is
written but the result. Keys are split over programs, because few queries alone would leave most of a machine idle.

A tile is decoded as two halves of its channels: that is what a rotation pairs up, and two dots of half the depth need no shuffle.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.triton_kernel import add_bias, softmax_step, store_result
from ..compile_case import CompileCase, Tile, strides
from ..launch import LOG2_E, RDNA_TARGETS, Launch, flat_rows, gpu_kind, key_splits, query_block
from ..tiles.triton_kernel import decode_e4m3
from .operand import STRIDE_TYPES, Operand, operand_types

if TYPE_CHECKING:
    from . import CosSin, Stored


@triton.jit
def decode_channels(
    CODES, SCALES, ZEROS, IDS, CENTROIDS, row, tokens, live, strides, clusters,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    STAGES: tl.constexpr, ASYMMETRIC: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Channels FIRST to FIRST + WIDTH of some tokens of one (b, h). -> float32 [BLOCK_N, WIDTH]; BITS 16: stored as they are."""
    channels = FIRST + tl.arange(0, WIDTH)
    mask = live[:, None]
    wide = tokens.to(tl.int64)
    base = CODES + row * strides.codes_row + wide[:, None] * strides.codes_token
    if BITS == 16:
        return tl.load(base + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    if BITS == 3:
        low = tl.load(base + (channels % (DIM // 4))[None, :], mask=mask, other=0).to(tl.int32)
        high = tl.load(base + (DIM // 4 + channels % (DIM // 8))[None, :], mask=mask, other=0).to(tl.int32)
        code = (low >> (channels // (DIM // 4) * 2)[None, :]) & 3
        code |= ((high >> (channels // (DIM // 8))[None, :]) & 1) << 2
    else:
        packed = tl.load(base + (channels % (DIM * BITS // 8))[None, :], mask=mask, other=0).to(tl.int32)
        code = (packed >> (channels // (DIM * BITS // 8) * BITS)[None, :]) & ((1 << BITS) - 1)
    # Behind 2^23 an integer is its own mantissa: no conversion instruction, which runs at a quarter of the speed.
    values = (code | 0x4B000000).to(tl.float32, bitcast=True)
    if ASYMMETRIC:
        values -= 8388608.0
    else:
        values -= 8388608.0 + ((1 << (BITS - 1)) - 1)
    # One scale for all of these channels, or one for each of several groups.
    groups: tl.constexpr = 1 if WIDTH <= GROUP else WIDTH // GROUP
    group = FIRST // GROUP + tl.arange(0, groups)
    scale = SCALES + row * strides.scales_row + group[None, :] * strides.scales_group + wide[:, None]
    scale = decode_e4m3(tl.load(scale, mask=mask, other=0))
    shared: tl.constexpr = WIDTH // groups
    values *= tl.reshape(tl.broadcast_to(scale[:, :, None], (BLOCK_N, groups, shared)), (BLOCK_N, WIDTH))
    if ASYMMETRIC:
        zero = ZEROS + row * strides.zeros_row + group[None, :] * strides.zeros_group + wide[:, None]
        zero = decode_e4m3(tl.load(zero, mask=mask, other=0))
        values += tl.reshape(tl.broadcast_to(zero[:, :, None], (BLOCK_N, groups, shared)), (BLOCK_N, WIDTH))
    for stage in tl.static_range(STAGES):
        name = tl.load(IDS + row * strides.ids_row + stage * strides.ids_stage + wide, mask=live, other=0).to(tl.int32)
        centroid = CENTROIDS + row * strides.centroids_row + (stage * clusters + name[:, None]) * DIM + channels[None, :]
        values += tl.load(centroid, mask=mask, other=0.0).to(tl.float32)
    return values


@triton.jit
def decode_plane(
    packed, SCALES, IDS, CENTROIDS, row, wide, strides,
    PLANE: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    STAGES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Channels PLANE * WIDTH and the WIDTH - 1 next ones, all of a plane, symmetric, with one centroid or none: float16
    [BLOCK_N, WIDTH].

    Exact but for the sum, which is rounded once: a code has at most four bits, an E4M3 scale as many. The code stays where it is
    in its byte and the scale undoes that; behind 2^10 an integer is a float16's own mantissa: no shift and no conversion.
    """
    unit: tl.constexpr = 1 << (BITS * PLANE)
    code = (packed & (((1 << BITS) - 1) * unit)) | 0x6400
    values = code.to(tl.float16, bitcast=True) - tl.full(code.shape, 1024 + ((1 << (BITS - 1)) - 1) * unit, tl.float16)
    groups: tl.constexpr = 1 if WIDTH <= GROUP else WIDTH // GROUP
    group = PLANE * WIDTH // GROUP + tl.arange(0, groups)
    scale = SCALES + row * strides.scales_row + group[None, :] * strides.scales_group + wide[:, None]
    scale = (decode_e4m3(tl.load(scale)) * (1.0 / unit)).to(tl.float16)
    shared: tl.constexpr = WIDTH // groups
    values *= tl.reshape(tl.broadcast_to(scale[:, :, None], (BLOCK_N, groups, shared)), (BLOCK_N, WIDTH))
    if STAGES == 1:
        name = tl.load(IDS + row * strides.ids_row + wide).to(tl.int32)
        channels = PLANE * WIDTH + tl.arange(0, WIDTH)
        centroid = CENTROIDS + row * strides.centroids_row + name[:, None] * DIM + channels[None, :]
        values += tl.load(centroid).to(tl.float16)
    return values


@triton.jit
def side_by_side(first, second, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr):
    """Two tiles [BLOCK_N, WIDTH / 2] as one."""
    return tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), (BLOCK_N, WIDTH))


@triton.jit
def decode_tile(
    CODES, SCALES, IDS, CENTROIDS, COS, SIN, row, wide, strides,
    DIM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr, ROTATE: tl.constexpr,
    BLOCK_N: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """All channels of some tokens of one (b, h), rotated where ROTATE: float16 [BLOCK_N, DIM] for the matrix units.

    Codes of two or four bits, symmetric, with one centroid or none. Planes become channels where they are: a byte is loaded once.
    """
    width: tl.constexpr = DIM * BITS // 8
    at = CODES + row * strides.codes_row + wide[:, None] * strides.codes_token + tl.arange(0, width)[None, :]
    packed = tl.load(at).to(tl.uint16)
    a = decode_plane(packed, SCALES, IDS, CENTROIDS, row, wide, strides, 0, width, DIM, BITS, GROUP, STAGES, BLOCK_N)
    b = decode_plane(packed, SCALES, IDS, CENTROIDS, row, wide, strides, 1, width, DIM, BITS, GROUP, STAGES, BLOCK_N)
    if BITS == 4:
        if ROTATE:
            a, b = rotate_part(a, b, COS, SIN, wide, 0, width, DIM)
        return half_float(side_by_side(a, b, BLOCK_N, DIM), FENCE)
    c = decode_plane(packed, SCALES, IDS, CENTROIDS, row, wide, strides, 2, width, DIM, BITS, GROUP, STAGES, BLOCK_N)
    d = decode_plane(packed, SCALES, IDS, CENTROIDS, row, wide, strides, 3, width, DIM, BITS, GROUP, STAGES, BLOCK_N)
    if ROTATE:
        a, c = rotate_part(a, c, COS, SIN, wide, 0, width, DIM)
        b, d = rotate_part(b, d, COS, SIN, wide, width, width, DIM)
    pairs = tl.join(tl.join(a, c), tl.join(b, d))
    return half_float(tl.reshape(tl.permute(pairs, (0, 2, 3, 1)), (BLOCK_N, DIM)), FENCE)


@triton.jit
def rotate_part(low, high, COS, SIN, wide, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """Channels FIRST to FIRST + WIDTH of the first half and of the second, rotated by their tokens' angles; float16."""
    at = wide[:, None] * (DIM // 2) + (FIRST + tl.arange(0, WIDTH))[None, :]
    cos, sin = tl.load(COS + at), tl.load(SIN + at)
    low, high = low.to(tl.float32), high.to(tl.float32)
    return (low * cos - high * sin).to(tl.float16), (high * cos + low * sin).to(tl.float16)


@triton.jit
def decode_halves(
    CODES, SCALES, ZEROS, IDS, CENTROIDS, COS, SIN, row, tokens, live, strides, clusters,
    DIM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr, ASYMMETRIC: tl.constexpr,
    ROTATE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Both halves of the channels of some keys of one (b, h), rotated where ROTATE: two float32 tiles [BLOCK_N, DIM / 2]."""
    half: tl.constexpr = DIM // 2
    low = decode_channels(
        CODES, SCALES, ZEROS, IDS, CENTROIDS, row, tokens, live, strides, clusters,
        0, half, DIM, BITS, GROUP, STAGES, ASYMMETRIC, BLOCK_N,
    )  # fmt: skip
    high = decode_channels(
        CODES, SCALES, ZEROS, IDS, CENTROIDS, row, tokens, live, strides, clusters,
        half, half, DIM, BITS, GROUP, STAGES, ASYMMETRIC, BLOCK_N,
    )  # fmt: skip
    if ROTATE:
        low, high = rotate_halves(low, high, COS, SIN, tokens, live, half)
    return low, high


@triton.jit
def rotate_halves(low, high, COS, SIN, tokens, live, HALF: tl.constexpr):
    """Both halves of the channels rotated by their tokens' angles."""
    at = tokens.to(tl.int64)[:, None] * HALF + tl.arange(0, HALF)[None, :]
    cos = tl.load(COS + at, mask=live[:, None], other=0.0)
    sin = tl.load(SIN + at, mask=live[:, None], other=0.0)
    return low * cos - high * sin, high * cos + low * sin


@triton.jit
def fenced(half, FENCE: tl.constexpr):
    """A float16 tile as it is.

    FENCE keeps the compiler from moving the change of layout for the matrix units above the arithmetic: without it each of eight
    warps would do the work of all (sm_86, stored keys: 3,874 instructions in the loop and spills; with it 979 and none).
    """
    if FENCE:
        half = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [half], dtype=tl.float16, is_pure=False, pack=2)
    return half


@triton.jit
def half_float(x, FENCE: tl.constexpr):
    """float16 that saturates, fenced."""
    # In 16 bits, where two values share an instruction: what is too large has become infinite.
    most = tl.full(x.shape, 65504.0, tl.float16)
    return fenced(tl.minimum(tl.maximum(x.to(tl.float16), -most), most), FENCE)


@triton.jit
def load_query_halves(Q, row, queries, live, q_row, q_token, scale, HALF: tl.constexpr):
    """Both halves of the channels of one block of queries, times `scale`: two float16 tiles [BLOCK_M, HALF]."""
    at = Q + row * q_row + queries.to(tl.int64)[:, None] * q_token + tl.arange(0, HALF)[None, :]
    # Scaled before they are rounded to 16 bits: large queries then stay within range.
    low = half_float(tl.load(at, mask=live[:, None], other=0.0).to(tl.float32) * scale, False)
    high = half_float(tl.load(at + HALF, mask=live[:, None], other=0.0).to(tl.float32) * scale, False)
    return low, high


@triton.jit
def score_halves(q_low, q_high, low, high, live, FENCE: tl.constexpr):
    """Logits of a block of queries and a tile of keys, -inf where a key is not live: float32 [BLOCK_M, BLOCK_N]."""
    scores = tl.dot(q_low, tl.trans(half_float(low, FENCE)))
    scores = tl.dot(q_high, tl.trans(half_float(high, FENCE)), scores)
    return tl.where(live[None, :], scores, -float("inf"))


@triton.jit
def attend_codes_kernel(
    Q, K, K_SCALES, K_ZEROS, K_IDS, K_CENTROIDS, V, V_SCALES, V_ZEROS, V_IDS, V_CENTROIDS, COS, SIN, BIAS, OUT, LSE,
    q_row, q_token, k_strides, v_strides, k_clusters, v_clusters,
    query_count, key_count, split_keys, scale,
    K_BITS: tl.constexpr, K_GROUP: tl.constexpr, K_STAGES: tl.constexpr, K_ASYMMETRIC: tl.constexpr,
    V_BITS: tl.constexpr, V_GROUP: tl.constexpr, V_STAGES: tl.constexpr, V_ASYMMETRIC: tl.constexpr,
    ROTATE: tl.constexpr, FENCE: tl.constexpr, PLANAR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, B * H, splits); OUT [splits, B * H, queries, DIM] and LSE float32. PLANAR: by `decode_tile`. BIAS: or
    None."""
    row, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live_q = queries < query_count
    K_PLANAR: tl.constexpr = PLANAR and (K_BITS == 2 or K_BITS == 4) and K_STAGES <= 1 and not K_ASYMMETRIC
    V_PLANAR: tl.constexpr = PLANAR and (V_BITS == 2 or V_BITS == 4) and V_STAGES <= 1 and not V_ASYMMETRIC
    if K_PLANAR:
        at = Q + row * q_row + queries.to(tl.int64)[:, None] * q_token + tl.arange(0, DIM)[None, :]
        q = half_float(tl.load(at, mask=live_q[:, None], other=0.0).to(tl.float32) * scale, False)
    else:
        q_low, q_high = load_query_halves(Q, row, queries, live_q, q_row, q_token, scale, DIM // 2)
    best = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, DIM), tl.float32)
    for start in range(split * split_keys, tl.minimum((split + 1) * split_keys, key_count), BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        live = tokens < key_count
        if K_PLANAR or V_PLANAR:
            # What lies behind the last key is that key once more, and does not count: loads need no mask.
            there = tl.minimum(tokens, key_count - 1).to(tl.int64)
        if K_PLANAR:
            keys = decode_tile(
                K, K_SCALES, K_IDS, K_CENTROIDS, COS, SIN, row, there, k_strides,
                DIM, K_BITS, K_GROUP, K_STAGES, ROTATE, BLOCK_N, FENCE,
            )  # fmt: skip
            scores = add_bias(tl.where(live[None, :], tl.dot(q, tl.trans(keys)), -float("inf")), BIAS, tokens, live)
        else:
            low, high = decode_halves(
                K, K_SCALES, K_ZEROS, K_IDS, K_CENTROIDS, COS, SIN, row, tokens, live, k_strides, k_clusters,
                DIM, K_BITS, K_GROUP, K_STAGES, K_ASYMMETRIC, ROTATE, BLOCK_N,
            )  # fmt: skip
            scores = add_bias(score_halves(q_low, q_high, low, high, live, FENCE), BIAS, tokens, live)
        weights, rescale, best, mass = softmax_step(scores, best, mass)
        if V_PLANAR:
            values = decode_tile(
                V, V_SCALES, V_IDS, V_CENTROIDS, COS, SIN, row, there, v_strides,
                DIM, V_BITS, V_GROUP, V_STAGES, False, BLOCK_N, FENCE,
            )  # fmt: skip
        else:
            values = decode_channels(
                V, V_SCALES, V_ZEROS, V_IDS, V_CENTROIDS, row, tokens, live, v_strides, v_clusters,
                0, DIM, DIM, V_BITS, V_GROUP, V_STAGES, V_ASYMMETRIC, BLOCK_N,
            )  # fmt: skip
            values = half_float(values, FENCE)
        total = tl.dot(weights.to(tl.float16), values, total * rescale[:, None])
    result = split.to(tl.int64) * tl.num_programs(1) + row
    store_result(OUT, LSE, result, queries.to(tl.int64), query_count, live_q, total, best, mass, DIM)


@cache
def needs_fence(device: torch.device) -> bool:
    """Cards whose matrix units are fed from registers. Triton before 3.7 dies of packed inline assembly."""
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return version >= (3, 7) and gpu_kind(device).fed_from_registers


def attend_codes(
    q: Tensor, keys: Stored, values: Stored, rotation: CosSin | None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `kernels.direct.attend_codes`: a part per split, [P, B, H, Sq, D] and [P, B, H, Sq], both float32."""
    batch, heads, queries, channels = q.shape
    tokens = keys.shape[2] if isinstance(keys, Tensor) else keys.num_tokens
    block = query_block(queries, channels)
    tile = Launch.for_attention(block.rows, channels)
    blocks = triton.cdiv(queries, block.rows)
    splits = key_splits(q.device, blocks * batch * heads, tokens)
    split_keys = triton.cdiv(triton.cdiv(tokens, splits), tile.keys) * tile.keys
    out = torch.empty((splits, *q.shape), dtype=torch.float32, device=q.device)
    lse = torch.empty((splits, *q.shape[:-1]), dtype=torch.float32, device=q.device)
    if not q.numel():
        return out, lse
    rows, k, v = flat_rows(q), Operand(keys), Operand(values)
    cos, sin = (rows.tensor, rows.tensor) if rotation is None else (part.contiguous() for part in rotation)
    with torch.cuda.device_of(out):
        attend_codes_kernel[(blocks, batch * heads, splits)](
            rows.tensor, *k.pointers, *v.pointers, cos, sin, None if bias is None else bias.contiguous(), out, lse,
            rows.row, rows.token, k.strides, v.strides, k.clusters, v.clusters,
            queries, tokens, split_keys, LOG2_E / math.sqrt(channels),
            **k.named("K_"), **v.named("V_"), ROTATE=rotation is not None, FENCE=needs_fence(q.device),
            PLANAR=not gpu_kind(q.device).amd,
            BLOCK_M=block.rows, BLOCK_N=tile.keys, DIM=channels, num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
    return out, lse


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    pointers = {"Q": "*bf16", **operand_types("K"), **operand_types("V"), **dict.fromkeys(("COS", "SIN", "OUT", "LSE"), "*fp32")}
    integers = dict.fromkeys(
        (*strides(q="row token"), "k_clusters", "v_clusters", "query_count", "key_count", "split_keys"), "i32"
    )
    types = {**pointers, **integers, "k_strides": STRIDE_TYPES, "v_strides": STRIDE_TYPES, "scale": "fp32"}
    cases = []
    kinds = {"": ("sm_90", "sm_100"), "_fence": ("sm_80", "sm_86", "sm_89", "sm_120"), "_amd": ("gfx942", *RDNA_TARGETS)}
    for bits, group, stages, asymmetric, rotate, queries, channels in (
        (2, 64, 1, False, True, 128, 128),
        (2, 64, 1, False, True, 16, 128),
        (2, 64, 1, False, False, 128, 128),
        (2, 16, 4, False, True, 128, 128),
        (4, 64, 1, True, True, 128, 128),
        (3, 64, 1, False, True, 128, 128),
        (2, 64, 1, False, True, 128, 64),
        (2, 64, 1, False, True, 128, 256),
        (16, 1, 0, False, True, 128, 128),
    ):
        block = query_block(queries, channels)
        tile = Launch.for_attention(block.rows, channels)
        options = {"BITS": bits, "GROUP": group, "STAGES": stages, "ASYMMETRIC": asymmetric}
        both = {f"{side}_{name}": value for side in "KV" for name, value in options.items()}
        constants = {**both, "BIAS": None, "ROTATE": rotate, "BLOCK_M": block.rows, "BLOCK_N": tile.keys, "DIM": channels}
        name = f"b{bits}_g{group}_n{stages}_d{channels}_m{block.rows}{'_rotated' * rotate}"
        kind = types | ({"K": "*bf16", "V": "*bf16"} if bits == 16 else {})
        default = channels == 128 and (bits, group) in ((2, 64), (16, 1))
        wide = (*strides(q="row token"), "k_strides", "v_strides")
        for ending, own in kinds.items():
            without = tuple(target for others in kinds.values() if others != own for target in others)
            case, chosen = name + ending, {**constants, "FENCE": ending == "_fence", "PLANAR": ending != "_amd"}
            held = Tile(2 * tile.keys * channels, walked=True)
            cases.append(CompileCase(case, attend_codes_kernel, kind, chosen, wide, tile.warps, 1, True, default, without, held))
    return cases
