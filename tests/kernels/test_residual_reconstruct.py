"""Quantize and reconstruct: the published formula, its bounds, and every width, group size and odd length."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.kernels import QuantizedGroups, e4m3, packing, quantize_groups, reconstruct
from torch import Tensor

STAGES = {0: "no_kmeans", 1: "one_stage", 3: "three_stages"}


def _inputs(tokens: int = 37, stages: int = 1, channels: int = 128, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 2, tokens, channels, generator=generator)
    ids = torch.randint(0, 5, (1, 2, stages, tokens), dtype=torch.uint8, generator=generator)
    return x, ids, torch.randn(1, 2, stages, 5, channels, generator=generator).half()


def _decode(groups: QuantizedGroups, ids: Tensor, centroids: Tensor, bits: int, group_size: int, like: Tensor) -> Tensor:
    return reconstruct(*groups, ids, centroids, bits, group_size, torch.empty_like(like))


@pytest.mark.parametrize("stages", STAGES, ids=STAGES.get)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [16, 32, 64, 128], ids=lambda g: f"group_{g}")
@pytest.mark.parametrize("bits", packing.BITS, ids=lambda b: f"{b}_bits")
def test_every_value_is_within_half_a_step(bits: int, group_size: int, symmetric: bool, stages: int) -> None:
    """|x - x'| <= step / 2 wherever the rounded scale and zero point did not clip the ends of the range."""
    x, ids, centroids = _inputs(stages=stages)
    groups = quantize_groups(x, ids, centroids, bits, group_size, symmetric)
    restored = _decode(groups, ids, centroids, bits, group_size, x)
    step = e4m3.decode(groups.scales).transpose(2, 3).repeat_interleave(group_size, -1)
    # An E4M3 scale is off by up to 1/16, over up to half the range (or the whole range plus the zero point's own rounding).
    clipped = step * (1 << bits) / 16 * (1 if symmetric else 2) + (0 if symmetric else 0.35)
    assert ((x - restored).abs() <= step / 2 + clipped).all()


@pytest.mark.parametrize("tokens", [1, 2, 63, 65], ids=lambda s: f"{s}_tokens")
def test_stored_formula_by_hand(tokens: int) -> None:
    """Symmetric two bits: scale = E4M3(max|r|), code = round(r / scale) + 1, value = centroid + (code - 1) * scale."""
    x, ids, centroids = _inputs(tokens)
    groups = quantize_groups(x, ids, centroids, 2, 64, True)
    residual = x - torch.gather(centroids[:, :, 0].float(), 2, ids[:, :, 0].long()[..., None].expand(-1, -1, -1, 128))
    scale = residual.unflatten(-1, (2, 64)).abs().amax(-1).to(torch.float8_e4m3fn).float()
    codes = (residual.unflatten(-1, (2, 64)) / scale[..., None]).round().clamp(-1, 1)
    assert torch.equal(packing.unpack(groups.codes, 2), (codes + 1).flatten(-2).to(torch.uint8))
    assert torch.equal(e4m3.decode(groups.scales), scale.transpose(2, 3))
    expected = x - residual + (codes * scale[..., None]).flatten(-2)
    assert torch.allclose(_decode(groups, ids, centroids, 2, 64, x), expected, atol=1e-6)


@pytest.mark.parametrize(("channels", "group_size"), [(48, 16), (80, 16), (96, 32), (112, 16), (160, 32), (192, 64), (384, 128)])
@pytest.mark.parametrize("bits", packing.BITS, ids=lambda b: f"{b}_bits")
def test_groups_that_do_not_nest_with_planes(bits: int, channels: int, group_size: int) -> None:
    """Head dims where neither a plane is whole groups nor a group whole planes, against codes times scales."""
    x = torch.randn(1, 2, 9, channels, generator=torch.Generator().manual_seed(0))
    none = (torch.zeros(1, 2, 0, 9, dtype=torch.uint8), torch.zeros(1, 2, 0, 1, channels))
    groups = quantize_groups(x, *none, bits, group_size)
    scale = e4m3.decode(groups.scales).transpose(2, 3).repeat_interleave(group_size, -1)
    expected = (packing.unpack(groups.codes, bits).float() - ((1 << (bits - 1)) - 1)) * scale
    assert torch.allclose(_decode(groups, *none, bits, group_size, x), expected, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.3, 1.0, 10.0, 60.0])
def test_more_bits_are_never_worse_at_any_amplitude(sigma: float, symmetric: bool) -> None:
    """E4M3 has a smallest scale and a largest; between them a finer grid must not lose."""
    x = torch.randn(1, 1, 400, 128, generator=torch.Generator().manual_seed(0)) * sigma
    none = (torch.zeros(1, 1, 0, 400, dtype=torch.uint8), torch.zeros(1, 1, 0, 1, 128))
    errors = []
    for bits in packing.BITS:
        restored = _decode(quantize_groups(x, *none, bits, 64, symmetric), *none, bits, 64, x)
        errors.append(float((restored - x).square().mean().sqrt()) / sigma)
    assert errors[1] < errors[0] and errors[2] < errors[1], errors
    assert errors[3] < errors[2] * 1.02, errors


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_groups_of_zeros_and_of_one_value(symmetric: bool) -> None:
    x = torch.zeros(1, 1, 3, 128)
    x[0, 0, 1] = 0.5
    x[0, 0, 2, :64] = 1e-5  # its scale rounds to zero
    none = (torch.zeros(1, 1, 0, 3, dtype=torch.uint8), torch.zeros(1, 1, 0, 1, 128))
    restored = _decode(quantize_groups(x, *none, 2, 64, symmetric), *none, 2, 64, x)
    assert torch.equal(restored[0, 0, 0], x[0, 0, 0]) and torch.equal(restored[0, 0, 1], x[0, 0, 1])
    assert restored.isfinite().all() and restored[0, 0, 2].abs().max() <= 2**-9


def test_scales_saturate_instead_of_becoming_nan() -> None:
    x = torch.full((1, 1, 1, 128), 1000.0)
    none = (torch.zeros(1, 1, 0, 1, dtype=torch.uint8), torch.zeros(1, 1, 0, 1, 128))
    restored = _decode(quantize_groups(x, *none, 2, 64), *none, 2, 64, x)
    assert (restored == 448).all()


def test_reconstructs_views_into_any_strides_and_dtype() -> None:
    """Tokens and heads cut out of a span, written into a slice of a larger bf16 tensor."""
    x, ids, centroids = _inputs(tokens=50, stages=2)
    groups = quantize_groups(x, ids, centroids, 3, 32, False)
    whole = _decode(groups, ids, centroids, 3, 32, x)
    zero_points = groups.zero_points
    assert zero_points is not None
    target = torch.full((1, 1, 40, 256), torch.nan, dtype=torch.bfloat16)
    tokens = slice(7, 29)
    parts = (groups.codes[:, 1:, tokens], groups.scales[:, 1:, :, tokens], zero_points[:, 1:, :, tokens])
    reconstruct(*parts, ids[:, 1:, :, tokens], centroids[:, 1:], 3, 32, target[:, :, 3:25, 64:192])
    assert torch.equal(target[:, :, 3:25, 64:192], whole[:, 1:, tokens].bfloat16())
    assert target[:, :, :3].isnan().all() and target[..., :64].isnan().all()


def test_gaussian_error_of_three_levels() -> None:
    """Error of the published 2-bit grid on independent Gaussian values at group 64: 0.515 (200,000 groups, 2026-11)."""
    x = torch.randn(1, 1, 20_000, 128, generator=torch.Generator().manual_seed(0))
    none = (torch.zeros(1, 1, 0, 20_000, dtype=torch.uint8), torch.zeros(1, 1, 0, 1, 128))
    restored = _decode(quantize_groups(x, *none, 2, 64), *none, 2, 64, x)
    assert float((restored - x).square().mean()) == pytest.approx(0.515, abs=0.005)


def test_refuses_what_does_not_fit() -> None:
    x, ids, centroids = _inputs()
    with pytest.raises(ValueError, match="bits 5"):
        quantize_groups(x, ids, centroids, 5, 64)
    with pytest.raises(ValueError, match="multiple of group_size 48"):
        quantize_groups(x, ids, centroids, 2, 48)
    groups = quantize_groups(x, ids, centroids, 2, 64)
    with pytest.raises(ValueError, match="must hold the tokens"):
        reconstruct(*groups, ids, centroids, 2, 64, torch.empty(1, 2, 36, 128))
