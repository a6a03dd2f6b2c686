"""Run as a program: one tiny kernel with what all of ours need (bytes, bit patterns, a bfloat16 product), checked.

python triton_kernel.py GPU_INDEX       prints "works", or ends with an error
"""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl


@triton.jit
def tiny(CODES, OUT, SIZE: tl.constexpr):
    """OUT [SIZE, SIZE] float32 = c @ c^T of uint8 codes below 128, each read as 2^23 + c and made bfloat16."""
    place = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    codes = tl.load(CODES + place).to(tl.int32)
    values = ((codes | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0).to(tl.bfloat16)
    tl.store(OUT + place, tl.dot(values, tl.trans(values)))


def check(device: torch.device) -> None:
    """Raise unless the kernel's result is exact."""
    codes = (torch.arange(32 * 32, device=device) % 11).to(torch.uint8).view(32, 32)
    out = torch.full((32, 32), float("nan"), device=device)
    tiny[(1,)](codes, out, SIZE=32)
    expected = codes.cpu().double() @ codes.cpu().double().T
    if not torch.equal(out.cpu().double(), expected):
        raise RuntimeError("a tiny kernel computed wrong numbers")


if __name__ == "__main__":
    torch.cuda.set_device(int(sys.argv[1]))
    check(torch.device("cuda", int(sys.argv[1])))
    sys.stdout.write("works\n")
