"""The interpreter's repair: what it got silently wrong agrees with torch, and what it cannot do it refuses."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from comfyui_qvg.kernels.projective import Projection

from ..helpers import assert_close
from ..triton_interpreter import DEVICE


@pytest.fixture
def probes(triton_kernel: Callable[[str], ModuleType]) -> Any:
    triton_kernel("tiles")  # repairs
    from . import triton_probes

    return triton_probes


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dot(probes: Any, dtype: torch.dtype) -> None:
    """Exact products, float32 sums: whole numbers come out exactly in every type."""
    a, b = (torch.randint(-8, 9, (32, 32), generator=torch.Generator().manual_seed(seed)).to(DEVICE) for seed in (0, 1))
    out = torch.empty(32, 32, device=DEVICE)
    probes.dot[(1,)](a.to(dtype), b.to(dtype), out, 32)
    assert torch.equal(out.cpu(), (a.cpu() @ b.cpu()).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_arithmetic_and_comparison(probes: Any, dtype: torch.dtype) -> None:
    a, b = _randn(64).to(dtype), _randn(64, seed=1).to(dtype)
    out = torch.empty_like(a)
    probes.arithmetic[(1,)](a, b, out, 64)
    # A compiler may keep the product unrounded (fused multiply-add): one rounding step of the type.
    assert torch.allclose(out.float(), torch.maximum(a * b + a, b * 0.5).float(), rtol=2 * torch.finfo(dtype).eps)


def test_every_cast_to_bfloat16_rounds_to_nearest_even(probes: Any) -> None:
    floats = torch.cat([_randn(61), torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -0.0], device=DEVICE)])
    integers = torch.arange(-32, 32, dtype=torch.int32, device=DEVICE) * 77
    for source in (floats, integers, floats.half()):
        out = torch.empty(64, dtype=torch.bfloat16, device=DEVICE)
        probes.cast[(1,)](source, out, 64)
        assert torch.equal(out, source.to(torch.bfloat16))
    back = torch.empty(64, dtype=torch.float16, device=DEVICE)
    probes.cast[(1,)](floats.bfloat16(), back, 64)
    assert torch.equal(back, floats.bfloat16().half())


@pytest.mark.skipif(DEVICE == "cuda", reason="older cards have no 8-bit floats; what is tested is the interpreter")
def test_cast_to_e4m3_is_nearest_even_and_saturates(probes: Any) -> None:
    x = torch.cat([_randn(1000) * 30, _randn(1000) * 2.0**-8, torch.tensor([447.0, 449.0, 1e6, -1e6, 17.0, 19.0])])
    x = torch.cat([x, torch.zeros(2048 - len(x))])
    out = torch.empty(2048, dtype=torch.float8_e4m3fn)
    probes.cast[(1,)](x, out, 2048)
    assert torch.equal(out.float(), x.clamp(-448, 448).to(torch.float8_e4m3fn).float())


def test_fence_changes_nothing(probes: Any) -> None:
    x = _randn(64).half()
    out = torch.empty_like(x)
    probes.fence[(1,)](x, out, "mov.b32 $0, $1;", 64)
    assert torch.equal(out, x)


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's own refusals")
@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("apart", [False, True], ids=["neighbours", "pairs_apart"])
def test_projection(probes: Any, apart: bool, channels: int) -> None:
    """Tokens of three frames, the first of them cut, against torch: sums of four products in another order."""
    projection = Projection(_randn(3, 4, 4).to(DEVICE), 12, 7, apart)
    x = _randn(29, channels, seed=1).to(DEVICE)
    out = torch.full_like(x, torch.nan)
    probes.project[(1,)](x, projection.matrices, out, 7, 12, 29, APART=apart, TOKENS=32, CHANNELS=channels)
    assert_close("projected", projection.apply_(x.clone()[None, None])[0, 0], out, 4 * 2.0**-24 * 8**0.5)


def test_what_is_not_repaired_is_refused(probes: Any) -> None:
    x, out = _randn(64), torch.empty(1)
    with pytest.raises(Exception, match="inline assembly is not interpreted"):
        probes.fence[(1,)](x.half(), x.half(), "not.b32 $0, $1;", 64)
    with pytest.raises(Exception, match="a reduction over bfloat16 or 8-bit floats"):
        probes.largest[(1,)](x.to(torch.float8_e4m3fn), out, 64)
