"""Kernels of one operation each that Triton's interpreter gets wrong without the repair. Imported with the interpreter on."""

from __future__ import annotations

import triton
import triton.language as tl
from comfyui_qvg.kernels.tiles.triton_kernel import project_halves


@triton.jit
def dot(A, B, OUT, SIZE: tl.constexpr):
    """OUT float32 = A @ B, all [SIZE, SIZE]."""
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    place = rows * SIZE + columns
    tl.store(OUT + place, tl.dot(tl.load(A + place), tl.load(B + place)))


@triton.jit
def arithmetic(A, B, OUT, SIZE: tl.constexpr):
    """OUT = max(a * b + a, b / 2) in the type of A, B and OUT, a fence in between."""
    place = tl.arange(0, SIZE)
    a, b = tl.load(A + place), tl.load(B + place)
    value = a * b + a
    value = tl.where(value > b * 0.5, value, b * 0.5)
    tl.store(OUT + place, value)


@triton.jit
def cast(A, OUT, SIZE: tl.constexpr):
    """OUT = A in OUT's type."""
    place = tl.arange(0, SIZE)
    tl.store(OUT + place, tl.load(A + place).to(OUT.dtype.element_ty))


@triton.jit
def fence(A, OUT, CODE: tl.constexpr, SIZE: tl.constexpr):
    """OUT = A through inline assembly, two halves to a register."""
    place = tl.arange(0, SIZE)
    value = tl.load(A + place)
    tl.store(OUT + place, tl.inline_asm_elementwise(CODE, "=r,r", [value], dtype=tl.float16, is_pure=False, pack=2))


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def largest(A, OUT, SIZE: tl.constexpr):
    """OUT[0] = max(A) by a reduction of our own, which Triton does not promote to float32 as it does `tl.max`."""
    tl.store(OUT, tl.reduce(tl.load(A + tl.arange(0, SIZE)), 0, _larger).to(tl.float32))


@triton.jit
def project(X, MATRICES, OUT, first, per_frame, count, APART: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    """OUT = X [count, CHANNELS] through the matrices of its tokens' frames."""
    half: tl.constexpr = CHANNELS // 2
    token = tl.arange(0, TOKENS)
    live = token < count
    at = token[:, None] * CHANNELS + tl.arange(0, half)[None, :]
    low, high = tl.load(X + at, mask=live[:, None], other=0.0), tl.load(X + at + half, mask=live[:, None], other=0.0)
    low, high = project_halves(low, high, MATRICES, token, live, first, per_frame, APART, TOKENS, half)
    tl.store(OUT + at, low, mask=live[:, None])
    tl.store(OUT + at + half, high, mask=live[:, None])
