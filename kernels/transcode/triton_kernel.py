"""Into eight bits, straight from the codes: read once, expanded in registers, written at half the size of 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compile_case import CompileCase, Tile, strides
from ..direct.operand import STRIDE_TYPES, Operand, operand_types
from ..direct.triton_kernel import decode_channels, decode_halves, half_float
from ..launch import OTHER_TARGETS, RDNA_TARGETS, dense_rows, gpu_kind, row_stride
from ..rotary import Grid
from ..spans import SPAN_FIELDS
from ..spans.triton_kernel import (
    OutStrides,
    Stretches,
    decoding_tiles,
    find_live,
    levels_on,
    load_stretch,
    span_halves,
)
from ..turn.triton_kernel import turn_keys, turn_values, turns_for_kernel

if TYPE_CHECKING:
    from ..direct import CosSin, Stored
    from ..spans import SpanTable, StretchTable
    from ..turn import Turns
    from . import Keys8, Values8

_TILE_TOKENS = 64
# Cards whose matrix units do not take E4M3: values are float16 there, see `launch.has_float8`.
WITHOUT_FLOAT8 = ("sm_80", "sm_86", "gfx942", "gfx1100", "gfx1201")
_STRETCH_TOKENS = 32
_SPAN_FIELDS = tl.constexpr(len(SPAN_FIELDS))


@triton.jit
def to_int8(x):
    """Nearest whole number, ties to even as torch rounds: adding 1.5 * 2^23 leaves no bits behind the point, and the number's own
    last eight bits at the end. No conversion instruction, which runs at a quarter of the speed."""
    return (x + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _store_keys(OUT, OUT_SCALES, COMMON, low, high, row, tokens, live, out_row, out_token, out_scales_row, HALF: tl.constexpr):
    """Both halves of some keys, float32, as int8 with a scale each."""
    channels = tl.arange(0, HALF)
    low -= tl.load(COMMON + row * 2 * HALF + channels)[None, :]
    high -= tl.load(COMMON + row * 2 * HALF + HALF + channels)[None, :]
    largest = tl.maximum(tl.max(tl.abs(low), 1), tl.max(tl.abs(high), 1))
    scale = tl.maximum(largest / 127.0, 1e-12)
    inverse = (1.0 / scale)[:, None]
    wide = tokens.to(tl.int64)
    at = OUT + row * out_row + wide[:, None] * out_token + channels[None, :]
    tl.store(at, to_int8(low * inverse), mask=live[:, None])
    tl.store(at + HALF, to_int8(high * inverse), mask=live[:, None])
    tl.store(OUT_SCALES + row * out_scales_row + wide, scale, mask=live)


@triton.jit
def _store_values(
    OUT, CHANNEL_SCALES, x, row, tokens, live, out_row, out_outer,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, EIGHT: tl.constexpr,
):  # fmt: skip
    """Channels FIRST to FIRST + WIDTH of some values, float32. EIGHT: as E4M3 bytes, channels first, `out_outer` from channel to
    channel; else as float16 tokens."""
    channels, wide = FIRST + tl.arange(0, WIDTH), tokens.to(tl.int64)
    if EIGHT:
        scale = tl.load(CHANNEL_SCALES + row * DIM + channels)
        # Launched where matrix units take E4M3, and such cards round to it, to nearest and saturating, in one instruction.
        code = tl.trans((x * (1.0 / scale)[None, :]).to(tl.float8e4nv).to(tl.uint8, bitcast=True))
        at = OUT + row * out_row + channels.to(tl.int64)[:, None] * out_outer + wide[None, :]
        tl.store(at, code, mask=live[None, :])
    else:
        at = OUT + row * out_row + wide[:, None] * out_outer + channels[None, :]
        tl.store(at, half_float(x, False), mask=live[:, None])


class Outputs(NamedTuple):
    """Elements from one place to the next in the outputs; a row is a (b, h)."""

    keys_row: int
    keys_token: int
    key_scales_row: int
    values_row: int
    values_outer: int


@triton.jit
def turn_and_store(
    A, B, COMMON, CHANNEL_SCALES, KEYS, KEY_SCALES, VALUES, low, high, which, row, place, live, grid, out,
    TURNS: tl.constexpr, EIGHT: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Both halves of some keys (`which` is 0) or values through what they go through, and into eight bits. `out`: `Outputs`."""
    HALF: tl.constexpr = CHANNELS // 2
    if which == 0:
        low, high = turn_keys(low, high, A, B, place, live, grid, TURNS, BLOCK_S, HALF)
        _store_keys(KEYS, KEY_SCALES, COMMON, low, high, row, place, live, out.keys_row, out.keys_token, out.key_scales_row, HALF)
    else:
        low, high = turn_values(low, high, A, place, live, grid, TURNS, BLOCK_S, HALF)
        _store_values(VALUES, CHANNEL_SCALES, low, row, place, live, out.values_row, out.values_outer, 0, HALF, CHANNELS, EIGHT)
        _store_values(
            VALUES, CHANNEL_SCALES, high, row, place, live, out.values_row, out.values_outer, HALF, HALF, CHANNELS, EIGHT
        )


# Numbers that change from tile to tile: a kernel of its own for each kind of them would be compiled in the midst of a video.
_CHANGING = ("count", "blocks", "start", "tokens")
_CHANGING_STRETCHES = (*_CHANGING, "stretches", "current_first", "current_tokens")


@triton.jit(do_not_specialize=_CHANGING)
def transcode_spans_kernel(
    ROWS, LEVELS, A, B, COMMON, CHANNEL_SCALES, KEYS, KEY_SCALES, VALUES,
    count, blocks, start, tokens, heads, grid, out,
    PLANES: tl.constexpr, TURNS: tl.constexpr, EIGHT: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Grid (spans * blocks of one span, B * H, 2): keys, then values. A, B and TURNS: see `turn_keys`."""
    which, row = tl.program_id(2), tl.program_id(1).to(tl.int64)
    ROW = ROWS + (which * count + tl.program_id(0) // blocks) * _SPAN_FIELDS
    token = (tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    place, live = find_live(ROW, token, start, tokens)
    if tl.max(live.to(tl.int32)) == 0:
        return
    low, high = span_halves(ROW, LEVELS, row // heads, row, token, live, PLANES, CHANNELS, BLOCK_D, BLOCK_S)
    turn_and_store(
        A, B, COMMON, CHANNEL_SCALES, KEYS, KEY_SCALES, VALUES, low, high, which, row, place.to(tl.int32), live, grid, out,
        TURNS, EIGHT, CHANNELS, BLOCK_S,
    )  # fmt: skip


@triton.jit(do_not_specialize=_CHANGING_STRETCHES)
def transcode_stretches_kernel(
    ROWS, KIND, CURRENT_KEYS, CURRENT_VALUES, A, B, COMMON, CHANNEL_SCALES, KEYS, KEY_SCALES, VALUES,
    count, blocks, start, tokens, stretches, current_first, current_tokens, current_keys, current_values,
    heads, grid, out,
    TURNS: tl.constexpr, EIGHT: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Grid (stretches, the current block last, * blocks of one, B * H, 2): keys, then values. KIND: what they are kept in."""
    HALF: tl.constexpr = CHANNELS // 2
    which, row = tl.program_id(2), tl.program_id(1).to(tl.int64)
    number = tl.program_id(0) // blocks
    token = (tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    low, high, place, live = load_stretch(
        ROWS, KIND, CURRENT_KEYS, CURRENT_VALUES, which, number, token, row // heads, row % heads,
        count, start, tokens, stretches, current_first, current_tokens, current_keys, current_values, HALF, BLOCK_S,
    )  # fmt: skip
    if tl.max(live.to(tl.int32)) == 0:
        return
    if which == 0:
        if number < stretches:
            low, high = turn_keys(low, high, A, B, place, live, grid, TURNS, BLOCK_S, HALF)
        _store_keys(KEYS, KEY_SCALES, COMMON, low, high, row, place, live, out.keys_row, out.keys_token, out.key_scales_row, HALF)
    else:
        if number < stretches:
            low, high = turn_values(low, high, A, place, live, grid, TURNS, BLOCK_S, HALF)
        _store_values(VALUES, CHANNEL_SCALES, low, row, place, live, out.values_row, out.values_outer, 0, HALF, CHANNELS, EIGHT)
        _store_values(
            VALUES, CHANNEL_SCALES, high, row, place, live, out.values_row, out.values_outer, HALF, HALF, CHANNELS, EIGHT
        )


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
    _store_keys(OUT, OUT_SCALES, COMMON, low, high, row, tokens, live, out_row, out_token, out_scales_row, half)


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
    half: tl.constexpr = DIM // 2
    for part in tl.static_range(2):
        x = decode_channels(
            V, V_SCALES, V_ZEROS, V_IDS, V_CENTROIDS, row, tokens, live, v_strides, v_clusters,
            part * half, half, DIM, BITS, GROUP, STAGES, ASYMMETRIC, BLOCK_N,
        )  # fmt: skip
        _store_values(OUT, CHANNEL_SCALES, x, row, tokens, live, out_row, out_outer, part * half, half, DIM, EIGHT)


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


def transcode_spans(
    table: SpanTable,
    spans: tuple[int, int],
    start: int,
    common: Tensor,
    turns: Turns | None,
    keys: Keys8,
    values: Values8,
) -> None:
    """See `kernels.transcode.transcode_spans`."""
    batch, heads, tokens, channels = keys.values.shape
    options = decoding_tiles(channels, gpu_kind(keys.values.device).rdna)
    blocks = triton.cdiv(table.longest, options["BLOCK_S"])
    a, b, grid, kind = turns_for_kernel(turns, keys.values)
    pointers, outputs = eight_bit_outputs(keys, values)
    with torch.cuda.device_of(keys.values):
        transcode_spans_kernel[((spans[1] - spans[0]) * blocks, batch * heads, 2)](
            table.rows[:, slice(*spans)], levels_on(keys.values.device), a, b, common.float().contiguous(), *pointers,
            len(table.keys), blocks, start, tokens, heads, grid, outputs,
            PLANES=max(table.planes), TURNS=kind, EIGHT=values.scales is not None, CHANNELS=channels, num_stages=1, **options,
        )  # fmt: skip


def transcode_stretches(
    table: StretchTable,
    stretches: tuple[int, int],
    start: int,
    common: Tensor,
    turns: Turns | None,
    keys: Keys8,
    values: Values8,
    current: tuple[Tensor, Tensor, int] | None,
) -> None:
    """See `kernels.transcode.transcode_stretches`."""
    batch, heads, tokens, channels = keys.values.shape
    source = Stretches(table, stretches, current, keys.values)
    blocks = triton.cdiv(source.longest, _STRETCH_TOKENS)
    a, b, grid, kind = turns_for_kernel(turns, keys.values)
    pointers, outputs = eight_bit_outputs(keys, values)
    with torch.cuda.device_of(keys.values):
        transcode_stretches_kernel[(source.programs * blocks, batch * heads, 2)](
            *source.pointers, a, b, common.float().contiguous(), *pointers,
            len(table.keys), blocks, start, tokens, source.count, *source.current, heads, grid, outputs,
            TURNS=kind, EIGHT=values.scales is not None, CHANNELS=channels, BLOCK_S=_STRETCH_TOKENS, num_warps=4,
        )  # fmt: skip


def eight_bit_outputs(keys: Keys8, values: Values8) -> tuple[tuple[Tensor, ...], Outputs]:
    """Scales of channels, and what is written; and where in it."""
    _require_flat(keys.values, keys.scales, values.values)
    channel_scales = keys.scales if values.scales is None else values.scales.contiguous()
    strides = Outputs(
        keys_row=row_stride(keys.values),
        keys_token=keys.values.stride(2),
        key_scales_row=row_stride(keys.scales),
        values_row=row_stride(values.values),
        values_outer=values.values.stride(2),
    )
    return (channel_scales, keys.values, keys.scales, values.values), strides


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
            case = CompileCase(case_name, transcode_values_kernel, types, constants, wide, default=default, tile=held)
            cases.append(case._replace(without=WITHOUT_FLOAT8 if eight else ()))
    return cases + _table_cases()


def _table_cases() -> list[CompileCase]:
    cases = []
    pointers = {**dict.fromkeys(("A", "B", "COMMON", "CHANNEL_SCALES", "KEY_SCALES"), "*fp32"), "ROWS": "*i64", "KEYS": "*i8"}
    places = {"heads": "i32", "grid": Grid(*("i32",) * 7), "out": Outputs(*("i32",) * 5)}
    for eight, turns, channels in ((True, 1, 128), (False, 1, 128), (True, 3, 128), (True, 1, 64), (False, 1, 256)):
        name = f"{'e4m3' if eight else 'float16'}_d{channels}{('', '_rotated', '_projected', '_projected_apart')[turns]}"
        types = {**pointers, "VALUES": "*u8" if eight else "*fp16", **dict.fromkeys(_CHANGING, "i32"), **places}
        for rdna in (False, True):
            tiles = decoding_tiles(channels, rdna)
            warps = tiles.pop("num_warps")
            constants = {"PLANES": 4, "TURNS": turns, "EIGHT": eight, "CHANNELS": channels, **tiles}
            held = Tile(tiles["BLOCK_S"] * channels, turns=channels // tiles["BLOCK_D"])
            case = CompileCase(f"spans_{name}{'_rdna' * rdna}", transcode_spans_kernel, {**types, "LEVELS": "*fp32"}, constants)
            if eight and rdna:
                continue
            without = OTHER_TARGETS if rdna else (WITHOUT_FLOAT8 if eight else RDNA_TARGETS)
            default = channels == 128 and not rdna
            case = case._replace(warps=warps, stages=1, tensor_cores=True, default=default, without=without, tile=held)
            cases.append(case._replace(multiples=("out",)))
        types |= dict.fromkeys(_CHANGING_STRETCHES, "i32") | dict.fromkeys(("KIND", "CURRENT_KEYS", "CURRENT_VALUES"), "*bf16")
        types |= dict.fromkeys(("current_keys", "current_values"), OutStrides(*("i32",) * 3))
        constants = {"TURNS": turns, "EIGHT": eight, "CHANNELS": channels, "BLOCK_S": _STRETCH_TOKENS}
        held, wide = Tile(_STRETCH_TOKENS * channels), ("out", "current_keys", "current_values")
        case = CompileCase(f"stretches_{name}", transcode_stretches_kernel, types, constants, wide, tile=held)
        cases.append(case._replace(default=channels == 128, without=WITHOUT_FLOAT8 if eight else ()))
    return cases
