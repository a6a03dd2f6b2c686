"""A bias per key: a key whose logit is log m higher is m equal keys. Every attention kernel and its reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from comfyui_qvg.kernels.attention import attention
from comfyui_qvg.kernels.attention import reference as attention_reference
from comfyui_qvg.kernels.attention.library import AttentionOp, choose_attention
from comfyui_qvg.kernels.attention8 import attention8
from comfyui_qvg.kernels.attention8 import reference as attention8_reference
from comfyui_qvg.kernels.direct import attend_codes
from comfyui_qvg.kernels.direct import reference as direct_reference
from comfyui_qvg.kernels.direct_coefficients import attend_coefficients, table_of_one
from comfyui_qvg.kernels.direct_coefficients import reference as coefficients_reference
from comfyui_qvg.kernels.transcode import transcode_keys, transcode_values
from torch import Tensor

from ..helpers import assert_close
from ..rounding import UNIT, allowed, attend, lse_error
from ..triton_interpreter import DEVICE
from .test_attention_kernels import CASES, _angles, _codes, _eight, _randn
from .test_direct_coefficients import MIXED, _bounds, _kept

Load = Callable[[str], ModuleType]
TOKENS = 70
# A few rows that stand for many tokens, most for one.
COUNTS = torch.tensor([65_535, 3, 1, 1, 200, 1, 7])[torch.arange(TOKENS) % 7]
BIAS = COUNTS.to(DEVICE, torch.float32).log()
FEW = torch.tensor([4, 1, 2, 1, 1, 3, 1])[torch.arange(TOKENS) % 7]


def _repeated(x: Tensor) -> Tensor:
    return x.repeat_interleave(FEW.to(x.device), 2)


def test_counted_keys_are_repeated_keys() -> None:
    q, k, v = _randn(1, 2, 5, 64), _randn(1, 2, TOKENS, 64, seed=1), _randn(1, 2, TOKENS, 64, seed=2)
    bias = FEW.to(DEVICE, torch.float32).log()
    wanted = attention(q, _repeated(k), _repeated(v), "torch")
    for op in (None, choose_attention(q.cpu(), True, biased=True), choose_attention(q.cpu(), False, biased=True)):
        got: Any = attention(q, k, v, "torch", bias) if op is None else op.run(*(x.cpu() for x in (q, k, v, bias)))
        assert_close("out", wanted.out.cpu(), got[0].cpu(), 1e-6)
        if got[1] is not None:
            assert_close("lse", wanted.lse.cpu(), got[1].cpu(), 1e-6)


def test_codes_and_eight_bits_count_alike() -> None:
    """Each reference against itself with the keys repeated by hand."""
    bias, q = FEW.to(DEVICE, torch.float32).log(), _randn(1, 2, 5, 128, seed=5)
    keys, values, rotation = _codes(TOKENS, *CASES["2 bits"]), _codes(TOKENS, *CASES["2 bits"], seed=3), _angles(TOKENS, 128)
    k, v = (direct_reference.decoded(each, slice(None), slice(None)) for each in (keys, values))
    wanted = attention(q, _repeated(direct_reference.rotated(k, rotation)), _repeated(v), "torch")
    got = attend_codes(q, keys, values, rotation, "torch", None, bias)
    assert_close("out", wanted.out, got.out, 1e-5)
    assert_close("lse", wanted.lse, got.lse, 1e-6)
    coded = [_kept(TOKENS, MIXED, seed=seed) for seed in (0, 10)]
    k, v = (coefficients_reference.decoded(kept, slice(None), slice(None)) for kept in coded)
    wanted = attention(q, _repeated(direct_reference.rotated(k, rotation)), _repeated(v), "torch")
    got = attend_coefficients(q, coded[0], coded[1], rotation, "torch", None, bias)
    assert_close("out", wanted.out, got.out, 1e-5)
    assert_close("lse", wanted.lse, got.lse, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_triton_attention(triton_kernel: Load, dtype: torch.dtype, poisoned_empty: None) -> None:
    q, k, v = (_randn(1, 2, count, 64, seed=seed, dtype=dtype) for seed, count in enumerate((20, TOKENS, TOKENS)))
    got = triton_kernel("attention").attention(q, k, v, BIAS)
    for name, wanted, part in zip(("out", "lse"), attention_reference.attention(q.float(), k, v, BIAS), got, strict=True):
        assert_close(name, wanted, part, 8e-3 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize("rotates", [False, True], ids=["as stored", "rotated"])
@pytest.mark.parametrize("case", ["2 bits", "4 bits, asymmetric"])
def test_triton_on_codes(triton_kernel: Load, case: str, rotates: bool, poisoned_empty: None) -> None:
    keys, values = _codes(TOKENS, *CASES[case]), _codes(TOKENS, *CASES[case], seed=3)
    q, rotation = _randn(1, 2, 5, 128, seed=5, dtype=torch.bfloat16), _angles(TOKENS, 128) if rotates else None
    wanted = direct_reference.attend_codes(q, keys, values, rotation, BIAS)
    got = triton_kernel("direct").attend_codes(q, keys, values, rotation, BIAS)
    once = UNIT[torch.float16]
    k, v = (direct_reference.decoded(each, slice(None), slice(None)) for each in (keys, values))
    k = direct_reference.rotated(k, rotation)
    assert_close("out", wanted[0], got[0], allowed(attend, (q, once), (k, once), (v, once * math.sqrt(2))) + once)
    assert_close("lse", wanted[1], got[1], lse_error(q, k, once, once))


@pytest.mark.parametrize("hadamard", [False, True], ids=["basis", "hadamard"])
def test_triton_on_coefficients(triton_kernel: Load, hadamard: bool, poisoned_empty: None) -> None:
    keys, values = (_kept(TOKENS, MIXED, seed=seed, hadamard=hadamard) for seed in (0, 10))
    q, rotation = _randn(1, 2, 5, 128, seed=5, dtype=torch.bfloat16), _angles(TOKENS, 128)
    wanted = coefficients_reference.attend_spans(q, *table_of_one(keys, values, rotation), BIAS)
    got = triton_kernel("direct_coefficients").attend_spans(q, *table_of_one(keys, values, rotation), BIAS)
    for name, expected, part, bound in zip(("out", "lse"), wanted, got, _bounds(q, [keys], [values], rotation), strict=True):
        assert_close(name, expected, part, bound)


@pytest.mark.parametrize("eight", [True, False], ids=["e4m3", "float16"])
def test_triton_in_eight_bits(triton_kernel: Load, eight: bool, poisoned_empty: None) -> None:
    """The same eight-bit keys and values in both: what differs is the order of sums, and weights that fall on a border."""
    k, v = _randn(1, 2, TOKENS, 64, seed=1), _randn(1, 2, TOKENS, 64, seed=2)
    keys, values = _eight(TOKENS, 64, eight)
    if eight:
        values = values._replace(scales=v.abs().amax(2) / 448)
    transcode_keys(k, torch.zeros(1, 2, 64, device=DEVICE), None, keys, "torch")
    transcode_values(v, values, "torch")
    q = _randn(1, 2, 20, 64, dtype=torch.bfloat16)
    wanted = attention8_reference.attention8(q.float(), keys, values, BIAS)
    got = triton_kernel("attention8").attention8(q, keys, values, BIAS)
    assert_close("out", wanted[0], got[0], 3e-2)
    assert_close("lse", wanted[1], got[1], 2e-3)


def test_a_bias_of_another_length_is_refused() -> None:
    q, k = _randn(1, 2, 5, 64), _randn(1, 2, 9, 64)
    for wrong in (torch.zeros(8), torch.zeros(1, 9), torch.zeros(9).double()):
        with pytest.raises(ValueError, match="does not belong to 9 keys; give float32"):
            attention(q, k, k, "torch", wrong.to(DEVICE))
    keys, values = _eight(9, 64, False)
    with pytest.raises(ValueError, match="does not belong to 9 keys"):
        attention8(q, keys, values, torch.zeros(1, 2, 64, device=DEVICE), "torch", torch.zeros(8, device=DEVICE))


def test_an_op_without_a_bias_is_passed_over() -> None:
    """What takes none is never handed one."""
    op = choose_attention(torch.zeros(1, 1, 1, 64), False, biased=True)
    assert op.biased is not None
    plain = AttentionOp("plain", lambda q, k, v: (q, None))
    with pytest.raises(AssertionError):
        plain.run(*(torch.zeros(1),) * 3, torch.zeros(1))
