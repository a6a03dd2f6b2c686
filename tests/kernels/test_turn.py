"""A block's turn: torch is what rope and cameras' matrices do step by step, Triton rounds once."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from comfyui_qvg.kernels.projective import Projection
from comfyui_qvg.kernels.rotary import CosSin, rotate
from comfyui_qvg.kernels.turn import turned
from torch import Tensor

from ..helpers import assert_close
from ..rounding import UNIT
from ..triton_interpreter import DEVICE

Load = Callable[[str], ModuleType]
BATCH, HEADS, TOKENS, CHANNELS = 2, 3, 70, 64


def _block(dtype: torch.dtype) -> Tensor:
    """As networks hand it over: heads lie beside one another in a token."""
    x = torch.randn(BATCH, TOKENS, HEADS, CHANNELS, generator=torch.Generator().manual_seed(0))
    return x.to(DEVICE, dtype).transpose(1, 2)


def _turns(kind: str) -> CosSin | Projection:
    generator = torch.Generator().manual_seed(1)
    if kind == "rotated":
        angles = torch.randn(TOKENS, CHANNELS // 2, generator=generator).to(DEVICE) * 3
        return angles.cos(), angles.sin()
    return Projection(torch.randn(7, 4, 4, generator=generator).to(DEVICE), 10, apart=kind == "apart")


def _exactly(x: Tensor, turns: CosSin | Projection) -> Tensor:
    if isinstance(turns, Projection):
        return turns.apply_(x.double().float())
    return rotate(x.double(), (turns[0].double(), turns[1].double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["rotated", "projected", "apart"])
def test_triton_turns_as_torch_does(triton_kernel: Load, kind: str, dtype: torch.dtype) -> None:
    x, turns = _block(dtype), _turns(kind)
    before = x.clone()
    got = triton_kernel("turn").turned(x, turns)
    assert got.dtype == dtype and got.stride() == turned(x, turns, "torch").stride() and torch.equal(x, before)
    # Float32 arithmetic, at most four products and their sums, and what is written is rounded once.
    assert_close(kind, _exactly(x, turns), got, 4 * UNIT[torch.float32] + UNIT[dtype])


def test_a_few_tokens_and_none(triton_kernel: Load) -> None:
    turns = _turns("rotated")
    assert triton_kernel("turn").turned(_block(torch.float32)[:, :, :0], (turns[0][:0], turns[1][:0])).numel() == 0
    for tokens in (1, 33):
        some = (turns[0][:tokens], turns[1][:tokens])  # type: ignore[index]
        x = _block(torch.float32)[:, :, :tokens]
        assert_close("turned", rotate(x, some), triton_kernel("turn").turned(x, some), 4 * UNIT[torch.float32])


def test_torch_takes_the_steps_that_it_always_took() -> None:
    """To the bit: what a cache on a CPU gives does not change."""
    x, rotation, projection = _block(torch.bfloat16), _turns("rotated"), _turns("apart")
    assert isinstance(projection, Projection) and not isinstance(rotation, Projection)
    assert torch.equal(turned(x, rotation), rotate(x, rotation))
    assert torch.equal(turned(x, projection), projection.apply_(x.clone()))
