"""Tokens turned on their way into attention, by angles or through the matrices of cameras: what kernels that read a memory share,
and a kernel for a block, which reads and writes it once; torch's steps would do that four times and more."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compile_case import CompileCase, Tile, strides
from ..projective import Projection
from ..rotary import Angles, CosSin, Grid, angles_of_tokens
from ..tiles.triton_kernel import project_halves
from . import Turns

_WARPS = 4
_BLOCK_S = 32
_NO_GRID = Grid(0, 0, 1, 1, 0, 0, 0)


@triton.jit
def load_angles(COS, SIN, tokens, live, grid, HALF: tl.constexpr):
    """Cosines and sines [tokens, HALF] of `Angles`."""
    return load_some_angles(COS, SIN, tokens, live, grid, 0, HALF)


@triton.jit
def load_some_angles(COS, SIN, tokens, live, grid, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Those of WIDTH channel pairs from FIRST on."""
    place = tokens + grid.first
    per_frame = grid.rows * grid.cols
    frame, within = place // per_frame, place % per_frame
    row, col = within // grid.cols, within % grid.cols
    pair = FIRST + tl.arange(0, WIDTH)
    of_row = (pair >= grid.time) & (pair < grid.time + grid.row)
    of_col = pair >= grid.time + grid.row
    # Behind the axes before: `rows` or `cols` times as many places as there are pairs of that axis.
    column = pair + tl.where(of_col, (grid.rows - 1) * grid.row, 0)
    per_row, per_col = tl.where(of_row, grid.row, 0), tl.where(of_col, grid.col, 0)
    # Within 32 bits: angles of a million frames of 1,560 tokens.
    at = frame[:, None] * grid.frame + column[None, :] + row[:, None] * per_row[None, :] + col[:, None] * per_col[None, :]
    return tl.load(COS + at, mask=live[:, None], other=0.0), tl.load(SIN + at, mask=live[:, None], other=0.0)


@triton.jit
def turn_keys(low, high, A, B, place, live, grid, TURNS: tl.constexpr, BLOCK_S: tl.constexpr, HALF: tl.constexpr):
    """Both halves of some keys rotated by the angles A and B (TURNS 1) or through the matrices A (2; with pairs apart 3)."""
    if TURNS == 1:
        cos, sin = load_angles(A, B, place, live, grid, HALF)
        return low * cos - high * sin, high * cos + low * sin
    elif TURNS > 1:
        return project_halves(low, high, A, place, live, grid.first, grid.cols, TURNS == 3, BLOCK_S, HALF)
    else:
        return low, high


@triton.jit
def turn_values(low, high, A, place, live, grid, TURNS: tl.constexpr, BLOCK_S: tl.constexpr, HALF: tl.constexpr):
    """Both halves of some values, which only matrices turn."""
    if TURNS > 1:
        return project_halves(low, high, A, place, live, grid.first, grid.cols, False, BLOCK_S, HALF)
    else:
        return low, high


@triton.jit
def load_halves(X, batch, head, token, live, x_batch, x_head, x_token, HALF: tl.constexpr):
    """Both halves of the channels of some tokens, float32."""
    at = X + batch * x_batch + head * x_head + token[:, None] * x_token + tl.arange(0, HALF)[None, :]
    low = tl.load(at, mask=live[:, None], other=0.0).to(tl.float32)
    return low, tl.load(at + HALF, mask=live[:, None], other=0.0).to(tl.float32)


@triton.jit
def store_halves(OUT, low, high, batch, head, place, live, out_batch, out_head, out_token, HALF: tl.constexpr):
    """Both halves of the channels of some tokens into a tile."""
    column = tl.arange(0, HALF)
    at = OUT + batch * out_batch + head * out_head + place.to(tl.int64)[:, None] * out_token + column[None, :]
    tl.store(at, low.to(OUT.dtype.element_ty), mask=live[:, None])
    tl.store(at + HALF, high.to(OUT.dtype.element_ty), mask=live[:, None])


@triton.jit(do_not_specialize=["tokens"])
def _turn(
    X, A, B, OUT, x_batch, x_head, x_token, out_batch, out_head, out_token, heads, tokens, grid,
    TURNS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Grid (token blocks, B * H). A, B and TURNS: see `turn_keys`."""
    HALF: tl.constexpr = CHANNELS // 2
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    token = (tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    live, place = token < tokens, token.to(tl.int32)
    low, high = load_halves(X, batch, head, token, live, x_batch, x_head, x_token, HALF)
    low, high = turn_keys(low, high, A, B, place, live, grid, TURNS, BLOCK_S, HALF)
    store_halves(OUT, low, high, batch, head, place, live, out_batch, out_head, out_token, HALF)


def turned(x: Tensor, turns: CosSin | Projection) -> Tensor:
    """See `kernels.turn.turned`."""
    x = dense_channels(x)
    out = torch.empty_like(x)
    batch, heads, tokens, channels = x.shape
    if not x.numel():
        return out
    a, b, grid, kind = turns_for_kernel(turns, x)
    with torch.cuda.device_of(out):
        _turn[(triton.cdiv(tokens, _BLOCK_S), batch * heads)](
            x, a, b, out, *x.stride()[:3], *out.stride()[:3], heads, tokens, grid,
            TURNS=kind, CHANNELS=channels, BLOCK_S=_BLOCK_S, num_warps=_WARPS,
        )  # fmt: skip
    return out


def turns_for_kernel(turns: Turns | CosSin | None, like: Tensor) -> tuple[Tensor, Tensor, Grid, int]:
    """Two tables, where a token's part of them is, and TURNS of the kernels."""
    if turns is None:
        return like, like, _NO_GRID, 0
    if isinstance(turns, Projection):
        there = turns.on(like.device)
        grid = _NO_GRID._replace(first=there.first, cols=there.tokens_per_frame)
        return there.matrices, there.matrices, grid, 3 if there.apart else 2
    angles = turns if isinstance(turns, Angles) else angles_of_tokens(turns)
    return angles.cos, angles.sin, angles.grid, 1


def dense_channels(x: Tensor) -> Tensor:
    """x, or a copy of it whose channels lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def compile_cases() -> list[CompileCase]:
    """For `tools/compile_gate.py`."""
    wide = strides(x="batch head token", out="batch head token")
    types: dict[str, str | tuple[str, ...]] = {"X": "*bf16", "OUT": "*bf16", "A": "*fp32", "B": "*fp32"}
    types |= {"grid": Grid(*("i32",) * len(Grid._fields)), **dict.fromkeys((*wide, "heads", "tokens"), "i32")}
    cases = []
    for channels, turns in ((128, 1), (128, 2), (128, 3), (64, 1), (256, 1)):
        name = f"d{channels}{('', '_rotated', '_projected', '_projected_apart')[turns]}"
        constants, held = {"TURNS": turns, "CHANNELS": channels, "BLOCK_S": _BLOCK_S}, Tile(_BLOCK_S * channels)
        cases.append(CompileCase(name, _turn, types, constants, wide, _WARPS, default=channels == 128, tile=held))
    return cases
