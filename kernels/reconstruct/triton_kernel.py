"""Reconstruction in Triton: unpack, scale, add centroids and, for keys, rotate, straight into the output.

Channels go by stretches of one plane, each with its partner half a head further on, so that a rotation needs no shuffle.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compile_case import CompileCase, Tile, strides
from ..packing import BITS
from ..tiles.triton_kernel import dequantize_stretch, stretch_width

_WARPS = 4
_BLOCK_S = 64


@triton.jit
def load_stretch_of_codes(
    CODES, SCALES, PLACES, IDS, CENTROIDS, rows, offsets, named, live,
    scales_group, ids_stage, centroids_stage, centroids_cluster,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    ZEROS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_S, WIDTH]: channels FIRST to FIRST + WIDTH, before rotation. PLACES: zero points, if there are ZEROS."""
    x = dequantize_stretch(
        CODES, SCALES, PLACES, rows, offsets, live, scales_group, FIRST, WIDTH, BITS, GROUP, ZEROS, CHANNELS, BLOCK_S
    )
    for stage in tl.static_range(STAGES):
        ids = tl.load(IDS + named + stage * ids_stage, mask=live, other=0).to(tl.int64)
        centroids = (
            CENTROIDS + stage * centroids_stage + ids[:, None] * centroids_cluster + (FIRST + tl.arange(0, WIDTH))[None, :]
        )
        x += tl.load(centroids, mask=live[:, None], other=0.0).to(tl.float32)
    return x


@triton.jit
def _reconstruct(
    CODES, SCALES, ZEROS, IDS, CENTROIDS, COS, SIN, OUT, heads, tokens,
    codes_batch, codes_head, codes_token, scales_batch, scales_head, scales_group, ids_batch, ids_head, ids_stage,
    centroids_batch, centroids_head, centroids_stage, centroids_cluster,
    angles_token, out_batch, out_head, out_token, out_channel,
    STAGES: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """OUT [B, H, S, D] in any strides; the inputs' last axes have stride 1. ZEROS None: symmetric. COS None: not rotated."""
    HALF: tl.constexpr = CHANNELS // 2
    row = tl.program_id(1).to(tl.int64)
    batch, head = row // heads, row % heads
    token = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    live = token < tokens
    rows = batch * codes_batch + head * codes_head + token * codes_token
    offsets = batch * scales_batch + head * scales_head + token
    named, CENTROIDS = batch * ids_batch + head * ids_head + token, CENTROIDS + batch * centroids_batch + head * centroids_head
    target = OUT + batch * out_batch + head * out_head + token[:, None] * out_token
    column = tl.arange(0, WIDTH)[None, :].to(tl.int64)
    for index in tl.static_range(HALF // WIDTH):
        low = load_stretch_of_codes(
            CODES, SCALES, ZEROS, IDS, CENTROIDS, rows, offsets, named, live,
            scales_group, ids_stage, centroids_stage, centroids_cluster,
            index * WIDTH, WIDTH, STAGES, BITS, GROUP, ZEROS is not None, CHANNELS, BLOCK_S,
        )  # fmt: skip
        high = load_stretch_of_codes(
            CODES, SCALES, ZEROS, IDS, CENTROIDS, rows, offsets, named, live,
            scales_group, ids_stage, centroids_stage, centroids_cluster,
            index * WIDTH + HALF, WIDTH, STAGES, BITS, GROUP, ZEROS is not None, CHANNELS, BLOCK_S,
        )  # fmt: skip
        if COS is not None:
            angle = token[:, None] * angles_token + index * WIDTH + column
            cos = tl.load(COS + angle, mask=live[:, None], other=0.0)
            sin = tl.load(SIN + angle, mask=live[:, None], other=0.0)
            low, high = low * cos - high * sin, high * cos + low * sin
        place = target + (index * WIDTH + column) * out_channel
        tl.store(place, low.to(OUT.dtype.element_ty), mask=live[:, None])
        tl.store(place + HALF * out_channel, high.to(OUT.dtype.element_ty), mask=live[:, None])


def reconstruct(
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    ids: Tensor,
    centroids: Tensor,
    bits: int,
    group_size: int,
    out: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """See `kernels.reconstruct`."""
    batch, heads, tokens, channels = out.shape
    if not out.numel():
        return out
    codes, scales, ids, centroids = (_rows(part) for part in (codes, scales, ids, centroids))
    if zero_points is not None and _rows(zero_points).stride() != scales.stride():
        scales, zero_points = scales.contiguous(), zero_points.contiguous()
    cos, sin = (None, None) if rotation is None else (_rows(part) for part in rotation)
    if cos is not None and cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    with torch.cuda.device_of(out):
        _reconstruct[(triton.cdiv(tokens, _BLOCK_S), batch * heads)](
            codes, scales, zero_points, ids, centroids, cos, sin, out, heads, tokens,
            *codes.stride()[:3], *scales.stride()[:3], *ids.stride()[:3], *centroids.stride()[:4],
            0 if cos is None else cos.stride(0), *out.stride(),
            STAGES=ids.shape[2], BITS=bits, GROUP=group_size, CHANNELS=channels, WIDTH=stretch_width(bits, channels),
            BLOCK_S=_BLOCK_S, num_warps=_WARPS,
        )  # fmt: skip
    return out


def _rows(x: Tensor) -> Tensor:
    """x with a last stride of 1: as a rule x itself."""
    return x if x.stride(-1) == 1 else x.contiguous()


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    cases = []
    wide = strides(codes="batch head token", centroids="batch head stage cluster", angles="token", out="batch head token")
    integers = ("heads", "tokens", *strides(scales="batch head group", ids="batch head stage"), *wide)
    pointers = {"CODES": "*u8", "SCALES": "*u8", "IDS": "*u8", "CENTROIDS": "*fp16", "OUT": "*bf16"}
    shapes = [(64, 1, True, 128, False), (64, 1, True, 128, True), (16, 4, True, 128, True), (64, 1, False, 128, True)]
    for bits in BITS:
        for group, stages, symmetric, channels, rotated in (
            *(shapes if bits == 2 else shapes[2:]),
            (64, 0, False, 64, False),
            (64, 1, True, 256, True),
        ):
            types = pointers | dict.fromkeys(integers, "i32")
            types |= ({} if symmetric else {"ZEROS": "*u8"}) | ({"COS": "*fp32", "SIN": "*fp32"} if rotated else {})
            constants = {"out_channel": 1, "STAGES": stages, "BITS": bits, "GROUP": group, "CHANNELS": channels}
            constants |= {"WIDTH": stretch_width(bits, channels), "BLOCK_S": _BLOCK_S} | ({"ZEROS": None} if symmetric else {})
            constants |= {} if rotated else {"COS": None, "SIN": None}
            name = f"b{bits}_g{group}_n{stages}_d{channels}{'' if symmetric else '_asymmetric'}{'_rotated' if rotated else ''}"
            default = bits == 2 and (group, stages, symmetric, channels, rotated) in shapes
            held = Tile(_BLOCK_S * channels)
            cases.append(CompileCase(name, _reconstruct, types, constants, wide, _WARPS, default=default, tile=held))
    return cases
