"""A tile of a memory of codes in one launch: each program finds its span in the table, decodes some of its tokens and turns them.

Channels go by stretches of one plane, each with its partner half a head further on, as in `kernels/reconstruct`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compile_case import CompileCase, Tile, strides
from ..direct.operand import CodeStrides
from ..direct.triton_kernel import decode_channels
from ..reconstruct.triton_kernel import load_stretch_of_codes
from ..rotary import Grid
from ..spans import Tiles
from ..spans.triton_kernel import address, sides_of
from ..tiles.triton_kernel import project_halves, stretch_width
from ..transcode import Keys8, Values8
from ..transcode.triton_kernel import WITHOUT_FLOAT8, Outputs, eight_bit_outputs, turn_and_store
from ..turn import Turns
from ..turn.triton_kernel import load_some_angles, turns_for_kernel
from . import CODE_FIELDS, CodeTable

_WARPS = 4
_BLOCK_S = 64
CODE_COLUMNS = tl.constexpr(len(CODE_FIELDS))
# Numbers that change from tile to tile: a kernel of its own for each kind of them would be compiled in the midst of a video.
_CHANGING = ("count", "blocks", "side", "start", "tokens", "tile_heads", "first_head")
_CHANGING_EIGHT = ("count", "blocks", "start", "tokens")


@triton.jit(do_not_specialize=_CHANGING)
def _decode_code_spans(
    ROWS, COS, SIN, KEYS, VALUES, count, blocks, side, start, tokens, heads, tile_heads, first_head, grid,
    out_batch, out_head, out_token,
    STAGES: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, TURNS: tl.constexpr,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Grid (spans * blocks of one span, B * tile_heads, sides from `side` on): keys are side 0, values side 1.

    TURNS: 0 none, 1 rotation of keys, 2 and 3 matrices for both (`kernels/spans`).
    """
    HALF: tl.constexpr = CHANNELS // 2
    which = side + tl.program_id(2)
    ROW = ROWS + (which * count + tl.program_id(0) // blocks) * CODE_COLUMNS
    span_tokens, first, skip = tl.load(ROW + 5), tl.load(ROW + 7) - start, tl.load(ROW + 8)
    token = (tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    live = (token >= skip) & (token < span_tokens) & (first + token >= 0) & (first + token < tokens)
    if tl.max(live.to(tl.int32)) == 0:
        return
    batch, head = (tl.program_id(1) // tile_heads).to(tl.int64), (tl.program_id(1) % tile_heads).to(tl.int64)
    row = batch * heads + first_head + head
    place = (first + token).to(tl.int32)
    stage = tl.load(ROW + 6) * CHANNELS
    CODES, SCALES = address(ROW, 0, tl.uint8), address(ROW, 1, tl.uint8)
    PLACES, IDS = address(ROW, 2, tl.uint8), address(ROW, 3, tl.uint8)
    CENTROIDS = address(ROW, 4, tl.float16) + row * STAGES * stage
    rows = (row * span_tokens + token) * (CHANNELS * BITS // 8)
    offsets = row * (CHANNELS // GROUP) * span_tokens + token
    named = row * STAGES * span_tokens + token
    target = batch * out_batch + head * out_head + place.to(tl.int64)[:, None] * out_token
    for index in tl.static_range(HALF // WIDTH):
        low = load_stretch_of_codes(
            CODES, SCALES, PLACES, IDS, CENTROIDS, rows, offsets, named, live, span_tokens, span_tokens, stage, CHANNELS,
            index * WIDTH, WIDTH, STAGES, BITS, GROUP, ZEROS, CHANNELS, BLOCK_S,
        )  # fmt: skip
        high = load_stretch_of_codes(
            CODES, SCALES, PLACES, IDS, CENTROIDS, rows, offsets, named, live, span_tokens, span_tokens, stage, CHANNELS,
            index * WIDTH + HALF, WIDTH, STAGES, BITS, GROUP, ZEROS, CHANNELS, BLOCK_S,
        )  # fmt: skip
        if TURNS == 1:
            if which == 0:
                cos, sin = load_some_angles(COS, SIN, place, live, grid, index * WIDTH, WIDTH)
                low, high = low * cos - high * sin, high * cos + low * sin
        elif TURNS == 2:
            low, high = project_halves(low, high, COS, place, live, grid.first, grid.cols, False, BLOCK_S, WIDTH)
        elif TURNS == 3:
            if which == 0:
                low, high = project_halves(low, high, COS, place, live, grid.first, grid.cols, True, BLOCK_S, WIDTH)
            else:
                low, high = project_halves(low, high, COS, place, live, grid.first, grid.cols, False, BLOCK_S, WIDTH)
        at = target + (index * WIDTH + tl.arange(0, WIDTH))[None, :]
        if which == 0:
            tl.store(KEYS + at, low.to(KEYS.dtype.element_ty), mask=live[:, None])
            tl.store(KEYS + at + HALF, high.to(KEYS.dtype.element_ty), mask=live[:, None])
        else:
            tl.store(VALUES + at, low.to(VALUES.dtype.element_ty), mask=live[:, None])
            tl.store(VALUES + at + HALF, high.to(VALUES.dtype.element_ty), mask=live[:, None])


@triton.jit
def dense_strides(
    tokens, clusters, BITS: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """`CodeStrides` of a span in a table, whose tensors are dense."""
    width: tl.constexpr = CHANNELS * BITS // 8
    of_groups = CHANNELS // GROUP * tokens
    return CodeStrides(
        tokens * width, width, of_groups, tokens, of_groups, tokens, STAGES * tokens, tokens, STAGES * clusters * CHANNELS
    )


@triton.jit(do_not_specialize=_CHANGING_EIGHT)
def _transcode_code_spans(
    ROWS, A, B, COMMON, CHANNEL_SCALES, KEYS, KEY_SCALES, VALUES, count, blocks, start, tokens, grid, out,
    STAGES: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, TURNS: tl.constexpr,
    EIGHT: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Grid (spans * blocks of one span, B * H, 2): keys, then values. A, B and TURNS: see `turn_keys`."""
    HALF: tl.constexpr = CHANNELS // 2
    which, row = tl.program_id(2), tl.program_id(1).to(tl.int64)
    ROW = ROWS + (which * count + tl.program_id(0) // blocks) * CODE_COLUMNS
    span_tokens, clusters = tl.load(ROW + 5), tl.load(ROW + 6)
    token = (tl.program_id(0) % blocks * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    place = tl.load(ROW + 7) - start + token
    live = (token >= tl.load(ROW + 8)) & (token < span_tokens) & (place >= 0) & (place < tokens)
    if tl.max(live.to(tl.int32)) == 0:
        return
    CODES, SCALES, PLACES = address(ROW, 0, tl.uint8), address(ROW, 1, tl.uint8), address(ROW, 2, tl.uint8)
    IDS, CENTROIDS = address(ROW, 3, tl.uint8), address(ROW, 4, tl.float16)
    strides = dense_strides(span_tokens, clusters, BITS, GROUP, STAGES, CHANNELS)
    low = decode_channels(
        CODES, SCALES, PLACES, IDS, CENTROIDS, row, token, live, strides, clusters,
        0, HALF, CHANNELS, BITS, GROUP, STAGES, ZEROS, BLOCK_S,
    )  # fmt: skip
    high = decode_channels(
        CODES, SCALES, PLACES, IDS, CENTROIDS, row, token, live, strides, clusters,
        HALF, HALF, CHANNELS, BITS, GROUP, STAGES, ZEROS, BLOCK_S,
    )  # fmt: skip
    turn_and_store(
        A, B, COMMON, CHANNEL_SCALES, KEYS, KEY_SCALES, VALUES, low, high, which, row, place.to(tl.int32), live, grid, out,
        TURNS, EIGHT, CHANNELS, BLOCK_S,
    )  # fmt: skip


def decode_code_spans(table: CodeTable, spans: tuple[int, int], tiles: Tiles, turns: Turns | None) -> None:
    """See `kernels.code_spans.decode_code_spans`."""
    out, (bits, group, stages, zeros) = tiles.either, table.kind
    batch, tile_heads, tokens, channels = out.shape
    blocks = triton.cdiv(table.longest, _BLOCK_S)
    keys, values, side, sides = sides_of(tiles)
    cos, sin, grid, kind = turns_for_kernel(turns, out)
    with torch.cuda.device_of(out):
        _decode_code_spans[((spans[1] - spans[0]) * blocks, batch * tile_heads, sides)](
            table.rows[:, slice(*spans)], cos, sin, keys, values, len(table.keys), blocks, side,
            tiles.start, tokens, table.keys[0].codes.shape[1], tile_heads, tiles.first_head, grid, *out.stride()[:3],
            STAGES=stages, BITS=bits, GROUP=group, ZEROS=zeros, TURNS=kind, CHANNELS=channels,
            WIDTH=stretch_width(bits, channels), BLOCK_S=_BLOCK_S, num_warps=_WARPS,
        )  # fmt: skip


def transcode_code_spans(
    table: CodeTable,
    spans: tuple[int, int],
    start: int,
    common: Tensor,
    turns: Turns | None,
    keys: Keys8,
    values: Values8,
) -> None:
    """See `kernels.code_spans.transcode_code_spans`."""
    batch, heads, tokens, channels = keys.values.shape
    bits, group, stages, zeros = table.kind
    blocks = triton.cdiv(table.longest, _BLOCK_S)
    a, b, grid, kind = turns_for_kernel(turns, keys.values)
    pointers, outputs = eight_bit_outputs(keys, values)
    with torch.cuda.device_of(keys.values):
        _transcode_code_spans[((spans[1] - spans[0]) * blocks, batch * heads, 2)](
            table.rows[:, slice(*spans)], a, b, common.float().contiguous(), *pointers,
            len(table.keys), blocks, start, tokens, grid, outputs,
            STAGES=stages, BITS=bits, GROUP=group, ZEROS=zeros, TURNS=kind, EIGHT=values.scales is not None,
            CHANNELS=channels, BLOCK_S=_BLOCK_S, num_warps=_WARPS,
        )  # fmt: skip


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    cases, wide, endings = [], strides(out="batch head token"), ("", "_rotated", "_projected", "_projected_apart")
    pointers = {"ROWS": "*i64", "COS": "*fp32", "SIN": "*fp32", "KEYS": "*bf16", "VALUES": "*bf16"}
    types = {**pointers, "grid": Grid(*("i32",) * len(Grid._fields)), **dict.fromkeys((*_CHANGING, "heads", *wide), "i32")}
    shapes = [(2, 64, 1, False, 128, 1), (2, 16, 4, False, 128, 1), (2, 64, 1, False, 128, 3), (2, 64, 1, True, 128, 1)]
    for bits, group, stages, zeros, channels, turns in (
        *shapes,
        *((bits, 16, 4, False, 128, 1) for bits in (1, 3, 4)),
        (2, 64, 1, False, 64, 1),
        (2, 64, 1, False, 256, 1),
    ):
        constants = {"STAGES": stages, "BITS": bits, "GROUP": group, "ZEROS": zeros, "TURNS": turns, "CHANNELS": channels}
        constants |= {"WIDTH": stretch_width(bits, channels), "BLOCK_S": _BLOCK_S}
        name = f"b{bits}_g{group}_n{stages}_d{channels}{'_asymmetric' * zeros}{endings[turns]}"
        default, held = (bits, group, stages, zeros, channels, turns) in shapes[:3], Tile(_BLOCK_S * channels)
        cases.append(CompileCase(name, _decode_code_spans, types, constants, wide, _WARPS, default=default, tile=held))
    return cases + _eight_bit_cases()


def _eight_bit_cases() -> list[CompileCase]:
    """Of 128 channels, to E4M3 and to float16."""
    pointers = {**dict.fromkeys(("A", "B", "COMMON", "CHANNEL_SCALES", "KEY_SCALES"), "*fp32"), "ROWS": "*i64", "KEYS": "*i8"}
    types = {**pointers, **dict.fromkeys(_CHANGING_EIGHT, "i32"), "grid": Grid(*("i32",) * len(Grid._fields))}
    types |= {"out": Outputs(*("i32",) * len(Outputs._fields))}
    cases = []
    for bits, group, stages, eight, turns in (
        (2, 64, 1, True, 1),
        (2, 64, 1, False, 1),
        (2, 64, 1, True, 3),
        (2, 16, 4, True, 1),
    ):
        constants = {"STAGES": stages, "BITS": bits, "GROUP": group, "ZEROS": False, "TURNS": turns, "EIGHT": eight}
        constants |= {"CHANNELS": 128, "BLOCK_S": _BLOCK_S}
        ending = ("", "_rotated", "_projected", "_projected_apart")[turns]
        name = f"{'e4m3' if eight else 'float16'}_b{bits}_g{group}_n{stages}{ending}"
        case = CompileCase(name, _transcode_code_spans, {**types, "VALUES": "*u8" if eight else "*fp16"}, constants, ("out",))
        case = case._replace(warps=_WARPS, default=stages == 1, without=WITHOUT_FLOAT8 if eight else ())
        cases.append(case._replace(tile=Tile(_BLOCK_S * 128)))
    return cases
