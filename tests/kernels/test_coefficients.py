"""Lloyd-Max levels of unequal width: the error of theory at every width, gains by their formula, and any view or dtype."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.kernels import Coefficients, bitplanes, e4m3, lloyd_max, quantize_coefficients, reconstruct_coefficients
from torch import Tensor

WIDTHS = range(1, lloyd_max.MAX_BITS + 1)
PLANES = (96, 64, 32, 8)
# An E4M3 gain is off by at most half a step, 1/16 of the value.
GAIN_ERROR = 1 / 16


def _normal(tokens: int, channels: int = 128, heads: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(1, heads, tokens, channels, generator=torch.Generator().manual_seed(seed))


def _plain(tokens: int, channels: int = 128, heads: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, codewords and basis that change nothing."""
    eye = torch.eye(channels).expand(1, heads, channels, channels)
    return torch.zeros(1, heads, tokens, dtype=torch.uint8), torch.zeros(1, heads, 1, channels), eye


def _round_trip(y: Tensor, planes: tuple[int, ...], weights: Tensor | None = None) -> tuple[Coefficients, Tensor]:
    weights = torch.ones(*y.shape[:2], y.shape[3]) if weights is None else weights
    parts = quantize_coefficients(y, weights, planes)
    return parts, reconstruct_coefficients(*parts, *_plain(y.shape[2], y.shape[3], y.shape[1]), planes, torch.empty_like(y))


def _levels(y: Tensor, bits: int) -> Tensor:
    """Nearest level of every value, by search."""
    levels = torch.tensor(lloyd_max.levels(bits))
    return levels[(y[..., None] - levels).abs().argmin(-1)]


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda b: f"{b}_bits")
def test_error_on_normal_values_is_that_of_theory(bits: int) -> None:
    """Rescaled by least squares, what is left is DISTORTION: within 4 %."""
    y = _normal(4000)
    restored = _round_trip(y, (128,) * bits)[1]
    product, energy = float((y * restored).sum()), float(restored.square().sum())
    left = 1 - product**2 / energy / float(y.square().sum())
    assert left == pytest.approx(lloyd_max.DISTORTION[bits], rel=0.04)


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda b: f"{b}_bits")
def test_gains_keep_inner_products(bits: int) -> None:
    """The gain is |x|^2 / <x, levels at the token's own spread>, so that gain times levels has <x, x^> = |x|^2; what is stored is
    that to half an E4M3 step. Tokens differ in size, or all gains would be rounded the same way."""
    y = _normal(1000) * torch.exp2(4 * torch.rand(1, 1, 1000, 1, generator=torch.Generator().manual_seed(1)))
    parts, _ = _round_trip(y, (128,) * bits)
    levels = _levels(y / y.square().mean(-1, keepdim=True).sqrt(), bits)
    stored = e4m3.decode(parts.gains)[..., None]
    kept = stored * (y * levels).sum(-1, keepdim=True) / y.square().sum(-1, keepdim=True)
    assert float((kept - 1).abs().max()) <= GAIN_ERROR + 1e-5
    assert float(kept.mean()) == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda b: f"{b}_bits")
def test_what_comes_back_shrinks_less_than_by_least_squares(bits: int) -> None:
    """Levels alone shrink inner products by DISTORTION (centroid condition). One bit has no choice of code, so its gain undoes
    all of it; with more, codes are made anew with the gain, and what is kept is what the docstring says."""
    y = _normal(4000)
    restored = _round_trip(y, (128,) * bits)[1]
    kept = float((y * restored).sum() / y.square().sum())
    assert kept == pytest.approx({1: 1.0, 2: 0.93, 3: 0.97}.get(bits, 1.0), abs=0.01 if bits > 3 else 0.005)
    assert kept >= 1 - lloyd_max.DISTORTION[bits] - 0.0005


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda b: f"{b}_bits")
def test_codes_are_the_nearest_for_the_stored_gain(bits: int) -> None:
    y = _normal(200)
    parts, restored = _round_trip(y, (128,) * bits)
    gains = e4m3.decode(parts.gains)[..., None]
    assert torch.allclose(restored, gains * _levels(y / gains, bits), atol=1e-5)


def test_every_channel_has_its_own_width() -> None:
    """Channels with 4, 3, 2, 1 and 0 bits: more bits, less error; without bits nothing at all."""
    y = _normal(4000)
    parts, restored = _round_trip(y, PLANES)
    assert parts.codes.shape == (1, 1, 4000, sum(PLANES) // 8)
    errors = (restored - y).square().mean((0, 1, 2))
    widths = bitplanes.widths(PLANES, 128)
    by_width = [float(errors[widths == width].mean()) for width in range(5)]
    assert by_width == sorted(by_width, reverse=True) and by_width[4] < 0.02
    assert not restored[..., widths == 0].any()


def test_weights_say_whose_product_is_kept() -> None:
    """A channel that was divided by 3 counts ninefold: the token's gain is the one that keeps the original's product."""
    y = _normal(300)
    weights = torch.ones(1, 1, 128)
    weights[..., :8] = 9.0
    parts = quantize_coefficients(y, weights, (128, 128))
    levels = _levels(y / y.square().mean(-1, keepdim=True).sqrt(), 2)
    gains = (weights[:, :, None] * y * y).sum(-1) / (weights[:, :, None] * y * levels).sum(-1)
    assert ((e4m3.decode(parts.gains) / gains - 1).abs() <= GAIN_ERROR + 1e-5).all()
    assert not torch.equal(parts.gains, quantize_coefficients(y, torch.ones(1, 1, 128), (128, 128)).gains)


@pytest.mark.parametrize("planes", [(128,), (128, 128), PLANES], ids=["1_bit", "2_bits", "mixed"])
def test_no_gain_makes_the_error_larger_than_the_signal(planes: tuple[int, ...]) -> None:
    """One channel counts a million times as much as the others together: in every token their error stays below their energy."""
    y, live = _normal(300), planes[0]
    weights = torch.ones(1, 1, 128)
    weights[..., 0] = 1e8
    parts = quantize_coefficients(y, weights, planes)
    restored = reconstruct_coefficients(*parts, *_plain(300), planes, torch.empty_like(y))
    errors, energy = ((part[..., :live].double().square().sum(-1)) for part in (restored - y, y))
    assert (errors <= energy).all(), (errors / energy).max()


@pytest.mark.parametrize("planes", [(128,), (128, 128), PLANES], ids=["1_bit", "2_bits", "mixed"])
def test_faint_tokens_are_not_louder_than_they_were(planes: tuple[int, ...]) -> None:
    """Where gains have few steps left (2^-9 is the smallest) or none, rounding must not multiply a token: sizes from 1/16 down to
    float32's smallest."""
    y = _normal(300) * torch.logspace(-1.2, -38, 300)[:, None]
    y[:, :, 1::2] = y[:, :, 1::2].abs().clamp(max=1e-4)  # an uneven token, whose gain is cut to that of least squares
    _, restored = _round_trip(y, planes)
    errors, energy = ((part[..., : planes[0]].double().square().sum(-1)) for part in (restored - y, y))
    assert (errors <= energy).all(), (errors / energy).max()


@pytest.mark.parametrize("planes", [(128,), (128, 128), PLANES], ids=["1_bit", "2_bits", "mixed"])
def test_zero_tokens_come_back_as_their_word(planes: tuple[int, ...], poisoned_empty: None) -> None:
    y = _normal(5)
    y[0, 0, 2] = 0
    weights, (_, _, eye) = torch.ones(1, 1, 128), _plain(5)
    parts = quantize_coefficients(y, weights, planes)
    assert int(parts.gains[0, 0, 2]) == 0
    codewords, ids = _normal(3, seed=1), torch.tensor([[[0, 1, 2, 1, 0]]], dtype=torch.uint8)
    restored = reconstruct_coefficients(*parts, ids, codewords, eye, planes, torch.empty_like(y))
    assert torch.equal(restored[0, 0, 2], codewords[0, 0, 2]) and restored.isfinite().all()


def test_a_token_with_energy_only_where_there_are_no_bits() -> None:
    y = torch.zeros(1, 1, 1, 128)
    y[..., 100:] = 3.0
    parts, restored = _round_trip(y, PLANES)
    assert int(parts.gains) == 0 and not restored.any()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=["nan", "infinity", "minus_infinity"])
def test_poison_stays_in_its_token(poison: float) -> None:
    """It comes back as something finite (a cache refuses it before it gets here), and other tokens do not notice."""
    y = _normal(4)
    clean = _round_trip(y, (128, 128))[1]
    y[0, 0, 1, 7] = poison
    restored = _round_trip(y, (128, 128))[1]
    assert restored.isfinite().all()
    others = [0, 2, 3]
    assert torch.equal(restored[:, :, others], clean[:, :, others])


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 400.0, 1e6], ids=lambda s: f"size_{s:g}")
def test_any_amplitude_stays_finite(size: float) -> None:
    """Gains end at 2^-9 and 448; in between the error is that of two bits."""
    y = _normal(200) * size
    restored = _round_trip(y, (128, 128))[1]
    assert restored.isfinite().all()
    error = float((restored - y).square().mean()) / size**2
    assert error < 0.14 if 0.1 <= size <= 300 else error >= 0


@pytest.mark.parametrize("tokens", [1, 7, 1024, 1025], ids=lambda s: f"{s}_tokens")
def test_views_strides_and_dtypes(tokens: int, poisoned_empty: None) -> None:
    """Tokens and heads cut out of a span, written into a slice of a larger bf16 tensor. Decoding goes 1,024 tokens at a time."""
    y = _normal(tokens + 4, heads=3, channels=64)
    planes = (64, 40, 8)
    codewords, matrix = _normal(9, heads=3, channels=64, seed=1), _normal(64, heads=3, channels=64, seed=2) / 8
    ids = torch.randint(0, 9, (1, 3, tokens + 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    parts = quantize_coefficients(y, torch.ones(1, 3, 64), planes)
    whole = reconstruct_coefficients(*parts, ids, codewords, matrix, planes, torch.empty_like(y))
    levels = e4m3.decode(parts.gains)[..., None] * lloyd_max.table()[_table_rows(parts.codes, planes)]
    expected = torch.gather(codewords, 2, ids.long()[..., None].expand_as(y)) + levels @ matrix
    assert torch.allclose(whole, expected, atol=1e-4)

    cut, heads = slice(3, 3 + tokens), slice(1, 3)
    views = parts.codes[:, heads, cut], parts.gains[:, heads, cut], ids[:, heads, cut], codewords[:, heads], matrix[:, heads]
    for dtype, accuracy in ((torch.float32, 1e-4), (torch.bfloat16, 0.04), (torch.float16, 0.01)):
        target = torch.full((1, 2, tokens + 6, 128), torch.nan, dtype=dtype)
        reconstruct_coefficients(*views, planes, target[:, :, 2 : 2 + tokens, 32:96])
        assert torch.allclose(target[:, :, 2 : 2 + tokens, 32:96].float(), whole[:, heads, cut], atol=accuracy, rtol=1e-2)
        assert target[:, :, :2].isnan().all() and target[..., :32].isnan().all() and target[..., 96:].isnan().all()


def _table_rows(codes: Tensor, planes: tuple[int, ...]) -> Tensor:
    widths = bitplanes.widths(planes, planes[0])
    return bitplanes.unpack(codes, planes, planes[0]).long() + (1 << widths) - 1


def test_bf16_in_is_its_float32_in() -> None:
    y = _normal(50).bfloat16()
    parts, same = (quantize_coefficients(x, torch.ones(1, 1, 128), PLANES) for x in (y, y.float()))
    assert torch.equal(parts.codes, same.codes) and torch.equal(parts.gains, same.gains)


def test_refuses_what_does_not_fit() -> None:
    y = _normal(6)
    with pytest.raises(ValueError, match=r"planes \(128, 136\) must be 1 to 6 multiples of 8 that fall from at most 128"):
        quantize_coefficients(y, torch.ones(1, 1, 128), (128, 136))
    with pytest.raises(ValueError, match="must be 1 to 6 multiples"):
        quantize_coefficients(y, torch.ones(1, 1, 128), (128,) * 7)
    parts, _ = _round_trip(y, PLANES)
    with pytest.raises(ValueError, match=r"must hold the tokens of out \(1, 1, 5, 128\)"):
        reconstruct_coefficients(*parts, *_plain(6), PLANES, torch.empty(1, 1, 5, 128))
    with pytest.raises(ValueError, match=r"in planes \(96, 64\)"):
        reconstruct_coefficients(*parts, *_plain(6), (96, 64), torch.empty_like(y))
