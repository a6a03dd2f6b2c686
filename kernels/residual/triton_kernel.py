"""Group quantization in Triton: subtract, scale, round and pack in one pass. Byte for byte what `reference.py` writes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compile_case import CompileCase, Tile, strides
from ..packing import BITS, packed_width
from ..tiles.triton_kernel import decode_e4m3, encode_e4m3, encode_scale_e4m3, pack_planes

_WARPS = 4


@triton.jit
def _divide(x, scales):
    """x [S, G, group] over decoded scales [S, G], correctly rounded; a scale of zero divides to zero."""
    scale = decode_e4m3(scales)
    return tl.div_rn(x, tl.broadcast_to(tl.where(scale > 0, scale, float("inf"))[:, :, None], x.shape))


@triton.jit
def _quantize(
    X, IDS, CENTROIDS, CODES, SCALES, ZEROS, heads, tokens,
    x_batch, x_head, x_token, x_channel, ids_batch, ids_head, ids_stage, ids_token,
    centroids_batch, centroids_head, centroids_stage, centroids_cluster, centroids_channel,
    STAGES: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """X, IDS, CENTROIDS in any strides -> CODES [BH, S, P], SCALES and ZEROS (None: symmetric) [BH, G, S], contiguous."""
    GROUPS: tl.constexpr = CHANNELS // GROUP
    row = tl.program_id(1).to(tl.int64)
    batch, head = row // heads, row % heads
    token = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    channel = tl.arange(0, CHANNELS)
    live = token < tokens
    x = X + batch * x_batch + head * x_head + token[:, None] * x_token + channel[None, :] * x_channel
    residual = tl.load(x, mask=live[:, None], other=0.0).to(tl.float32)
    for stage in tl.static_range(STAGES):
        names = IDS + batch * ids_batch + head * ids_head + stage * ids_stage + token * ids_token
        ids = tl.load(names, mask=live, other=0).to(tl.int64)
        centroids = CENTROIDS + batch * centroids_batch + head * centroids_head + stage * centroids_stage
        centroids = centroids + ids[:, None] * centroids_cluster + channel[None, :] * centroids_channel
        residual -= tl.load(centroids, mask=live[:, None], other=0.0).to(tl.float32)
    groups = tl.reshape(residual, (BLOCK_S, GROUPS, GROUP))
    place = (row * GROUPS + tl.arange(0, GROUPS))[None, :] * tokens + token[:, None]
    if ZEROS is None:
        offset = tl.full((BLOCK_S, GROUPS), (1 << (BITS - 1)) - 1, tl.float32)
        scales = encode_scale_e4m3(tl.div_rn(tl.max(tl.abs(groups), 2), offset), BITS >= 4)
        steps = _divide(groups, scales) + offset[:, :, None]
        top = 2.0 * ((1 << (BITS - 1)) - 1)
    else:
        top = 1.0 * ((1 << BITS) - 1)
        zeros = encode_e4m3(tl.min(groups, 2))
        lowest = decode_e4m3(zeros)
        spread = tl.maximum(tl.max(groups, 2) - lowest, 0.0)
        scales = encode_scale_e4m3(tl.div_rn(spread, tl.full((BLOCK_S, GROUPS), (1 << BITS) - 1, tl.float32)), BITS >= 4)
        steps = _divide(groups - lowest[:, :, None], scales)
        tl.store(ZEROS + place, zeros, mask=live[:, None])
    tl.store(SCALES + place, scales, mask=live[:, None])
    # Added to 2^23 a float32 keeps whole numbers only: rounded to even, and the code is in the low bits.
    codes = (tl.minimum(tl.maximum(steps, 0.0), top) + 8388608.0).to(tl.int32, bitcast=True) & 0xFF
    codes = tl.reshape(codes, (BLOCK_S, CHANNELS))
    out = CODES + (row * tokens + token[:, None]) * (CHANNELS * BITS // 8)
    if BITS == 3:
        low, high = tl.arange(0, CHANNELS // 4)[None, :], tl.arange(0, CHANNELS // 8)[None, :]
        tl.store(out + low, pack_planes(codes & 3, 2, BLOCK_S, CHANNELS).to(tl.uint8), mask=live[:, None])
        tl.store(out + CHANNELS // 4 + high, pack_planes(codes >> 2, 1, BLOCK_S, CHANNELS).to(tl.uint8), mask=live[:, None])
    else:
        byte = tl.arange(0, CHANNELS * BITS // 8)[None, :]
        tl.store(out + byte, pack_planes(codes, BITS, BLOCK_S, CHANNELS).to(tl.uint8), mask=live[:, None])


def _block(channels: int) -> int:
    """Tokens of one program: 32 values for each of its threads."""
    return 4096 // channels


def quantize_groups(
    x: Tensor, ids: Tensor, centroids: Tensor, bits: int, group_size: int, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `kernels.quantize_groups`."""
    batch, heads, tokens, channels = x.shape
    codes = torch.empty(batch, heads, tokens, packed_width(channels, bits), dtype=torch.uint8, device=x.device)
    scales = torch.empty(batch, heads, channels // group_size, tokens, dtype=torch.uint8, device=x.device)
    zero_points = None if symmetric else torch.empty_like(scales)
    grid = (triton.cdiv(tokens, _block(channels)), batch * heads)
    if codes.numel():
        with torch.cuda.device_of(x):
            _quantize[grid](
                x, ids, centroids, codes, scales, zero_points, heads, tokens, *x.stride(), *ids.stride(), *centroids.stride(),
                STAGES=ids.shape[2], BITS=bits, GROUP=group_size, CHANNELS=channels, BLOCK_S=_block(channels), num_warps=_WARPS,
            )  # fmt: skip
    return codes, scales, zero_points


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    cases = []
    wide = strides(x="batch head token", centroids="batch head stage cluster")
    integers = ("heads", "tokens", *strides(ids="batch head stage"), *wide)
    for bits in BITS:
        for group, stages, symmetric, channels in (
            (64, 1, True, 128),
            (16, 4, True, 128),
            (32, 1, False, 128),
            (64, 2, True, 64),
        ):
            types = {"X": "*bf16", "IDS": "*u8", "CENTROIDS": "*fp16", "CODES": "*u8", "SCALES": "*u8"}
            types |= dict.fromkeys(integers, "i32") | ({} if symmetric else {"ZEROS": "*u8"})
            constants = {"x_channel": 1, "ids_token": 1, "centroids_channel": 1} | ({"ZEROS": None} if symmetric else {})
            constants |= {"STAGES": stages, "BITS": bits, "GROUP": group, "CHANNELS": channels, "BLOCK_S": _block(channels)}
            name = f"b{bits}_g{group}_n{stages}_d{channels}_{'symmetric' if symmetric else 'asymmetric'}"
            default = bits == 2 and (group, stages) != (64, 2)
            held = Tile(_block(channels) * channels)
            cases.append(CompileCase(name, _quantize, types, constants, wide, _WARPS, default=default, tile=held))
    return cases
