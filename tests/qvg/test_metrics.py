"""PSNR, SSIM and signal to noise, against scikit-image and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from comfyui_qvg.qvg.errors import ConfigError
from comfyui_qvg.qvg.metrics import PSNR_CAP_DB, psnr_db, relative_rms, sqnr_db, ssim


def noisy_pair(*shape, noise=0.1, seed=0):
    """Smooth pictures and the same with noise, float32 in 0..1."""
    rng = np.random.default_rng(seed)
    height, width = shape[-3:-1]
    rows, cols = np.mgrid[:height, :width]
    smooth = 0.5 + 0.4 * np.sin(rows / 5 + cols / 7)[..., None] * np.array([1, 0.7, -0.5])
    a = np.broadcast_to(smooth, shape)
    b = np.clip(a + noise * rng.standard_normal(shape), 0, 1)
    return torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)


def skimage_ssim(a, b):
    oracle = pytest.importorskip("skimage.metrics").structural_similarity
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "channel_axis": -1}
    return oracle(a.double().numpy(), b.double().numpy(), **settings)


@pytest.mark.parametrize("size", [(11, 11), (32, 32), (37, 64)])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1, 0.5])
def test_ssim_is_that_of_scikit_image(size, noise):
    a, b = noisy_pair(*size, 3, noise=noise)
    assert ssim(a, b).item() == pytest.approx(skimage_ssim(a, b), abs=1e-6)


def test_ssim_of_flat_and_of_opposite_pictures():
    white, black = torch.ones(16, 16, 3), torch.zeros(16, 16, 3)
    assert ssim(white, black).item() == pytest.approx(skimage_ssim(white, black), abs=1e-6)
    assert ssim(white, white).item() == 1
    stripes = (torch.arange(32) % 2).float().view(1, 32, 1).expand(32, 32, 3)
    assert ssim(stripes, 1 - stripes).item() == pytest.approx(skimage_ssim(stripes, 1 - stripes), abs=1e-6)


def test_ssim_takes_batches_and_uint8():
    a, b = noisy_pair(2, 5, 20, 24, 3)
    a8, b8 = (a * 255).round().to(torch.uint8), (b * 255).round().to(torch.uint8)
    values = ssim(a8, b8)
    assert values.shape == (2, 5) and values.dtype == torch.float32
    assert values[1, 3].item() == pytest.approx(skimage_ssim(a8[1, 3] / 255, b8[1, 3] / 255), abs=1e-6)
    assert ssim(a8, a8 / 255).min().item() == pytest.approx(1, abs=1e-6)


def test_psnr_by_hand():
    a = torch.zeros(2, 8, 9, 3)
    b = a.clone()
    b[1] = 0.1
    assert psnr_db(a, b).tolist() == pytest.approx([PSNR_CAP_DB, 20.0])
    step = torch.full((4, 4, 3), 1, dtype=torch.uint8)
    assert psnr_db(torch.zeros_like(step), step).item() == pytest.approx(20 * math.log10(255), abs=1e-4)
    assert psnr_db(step, step / 255).item() == PSNR_CAP_DB


def test_psnr_takes_half_precision():
    a, b = noisy_pair(16, 16, 3)
    assert psnr_db(a.bfloat16(), b.bfloat16()).item() == pytest.approx(psnr_db(a, b).item(), abs=0.1)


def test_sqnr_by_hand():
    reference = torch.full((2, 3, 4, 5), 10.0)
    estimate = reference + torch.tensor([0.0, 0.1, 1.0]).view(1, 3, 1, 1)
    assert sqnr_db(reference, estimate, last_dims=2)[0].tolist() == pytest.approx([math.inf, 40.0, 20.0], abs=1e-4)
    assert relative_rms(reference, estimate, last_dims=2).shape == (2, 3)
    assert relative_rms(reference, estimate).item() == pytest.approx(math.sqrt((0.01**2 + 0.1**2) / 3))
    assert sqnr_db(reference, estimate).item() == pytest.approx(-10 * math.log10((0.01**2 + 0.1**2) / 3), abs=1e-4)
    assert relative_rms(torch.tensor(2.0), torch.tensor(1.0)).item() == 0.5


def test_sqnr_where_the_reference_is_zero():
    zero = torch.zeros(3, 4)
    assert relative_rms(zero, zero).item() == 0 and sqnr_db(zero, zero).item() == math.inf
    assert relative_rms(zero, zero + 1).item() == math.inf and sqnr_db(zero, zero + 1).item() == -math.inf


def test_sqnr_does_not_overflow_in_half_precision():
    reference = torch.full((64, 64), 60000.0, dtype=torch.float16)
    assert relative_rms(reference, reference / 2).item() == pytest.approx(0.5)


@pytest.mark.parametrize("metric", [psnr_db, ssim, sqnr_db, relative_rms])
def test_refusals_of_all(metric):
    a = torch.rand(16, 16, 3)
    with pytest.raises(ConfigError, match=r"\[16, 16, 3\] and \[15, 16, 3\] differ"):
        metric(a, a[1:])
    with pytest.raises(ConfigError, match="no values"):
        metric(a[:0], a[:0])
    for bad in (math.nan, math.inf):
        spoiled = a.clone()
        spoiled[3, 4, 1] = bad
        for pair in ((a, spoiled), (spoiled, a)):
            with pytest.raises(ConfigError, match="1 of 768 values .* NaN or infinite"):
                metric(*pair)


@pytest.mark.parametrize("metric", [psnr_db, ssim])
def test_refusals_of_pictures(metric):
    a = torch.rand(16, 16, 3)
    with pytest.raises(ConfigError, match=r"0..1"):
        metric(a * 255, a)
    with pytest.raises(ConfigError, match="torch.int64"):
        metric((a * 255).long(), a)
    with pytest.raises(ConfigError, match=r"\[..., H, W, 3\]"):
        metric(a.movedim(-1, 0), a.movedim(-1, 0))


def test_other_refusals():
    with pytest.raises(ConfigError, match="10x16 pixels is smaller"):
        ssim(torch.rand(10, 16, 3), torch.rand(10, 16, 3))
    for last_dims in (0, 4, -1):
        with pytest.raises(ConfigError, match=f"last_dims {last_dims} does not fit 3 dimensions"):
            sqnr_db(torch.ones(2, 2, 2), torch.ones(2, 2, 2), last_dims)
