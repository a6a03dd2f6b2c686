"""How far two pictures, or two tensors, are apart. Plain torch, because ComfyUI ships no scikit-image.

Pictures are `[..., H, W, 3]`, uint8 or floating point in 0..1; the two need not be of the same dtype. All sums are float64
where the device has it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import ConfigError

# What identical pictures get instead of infinity, so that means stay finite.
PSNR_CAP_DB = 100.0

# Wang, Bovik, Sheikh, Simoncelli: "Image quality assessment: from error visibility to structural similarity", 2004.
_SIGMA_PIXELS = 1.5
_WINDOW_PIXELS = 11
_C1 = 0.01**2
_C2 = 0.03**2


def psnr_db(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal to noise ratio of each picture. a, b [..., H, W, 3] -> [...] float32 dB, 100 at most.

    The mean squared error is taken over a picture's three dimensions. Raises `ConfigError` for shapes that differ, NaN or
    infinity, integers other than uint8, and floats outside 0..1.
    """
    x, y = _pictures(a, b)
    error = (x - y).square().mean(dim=(-3, -2, -1))
    return (-10 * error.clamp_min(10 ** (-PSNR_CAP_DB / 10)).log10()).float()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each picture, Wang et al. 2004. a, b [..., H, W, 3] -> [...] float32, 1 for identical pictures.

    Gaussian window of 11x11 pixels with sigma 1.5, only where it lies inside the picture; the mean over places and channels.
    Raises `ConfigError` as `psnr_db` does, and for pictures smaller than the window.
    """
    x, y = _pictures(a, b)
    height, width = x.shape[-3:-1]
    if min(height, width) < _WINDOW_PIXELS:
        raise ConfigError(f"a picture of {height}x{width} pixels is smaller than SSIM's window; use 11x11 or more")
    x, y = x.reshape(-1, height, width, 3), y.reshape(-1, height, width, 3)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x * mean_x
    variance_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).mean(dim=(-3, -2, -1)).reshape(a.shape[:-3]).float()


def relative_rms(reference: Tensor, estimate: Tensor, last_dims: int | None = None) -> Tensor:
    """|reference - estimate| / |reference|, root mean square over the last `last_dims` dimensions or, if None, over all.

    Two tensors of one shape -> float32 of the dimensions that are left, a scalar for None. 0 where both are zero, infinity
    where only the reference is. Raises `ConfigError` for shapes that differ, no values, NaN or infinity, or more dimensions
    than there are.
    """
    _require_same_shape(reference, estimate)
    dims = reference.ndim if last_dims is None else last_dims
    if last_dims is not None and not 1 <= dims <= reference.ndim:
        raise ConfigError(f"last_dims {last_dims} does not fit {reference.ndim} dimensions; use 1..{reference.ndim} or None")
    x, y = _finite(reference, "reference"), _finite(estimate, "estimate").to(reference.device)
    kept = reference.shape[: reference.ndim - dims]
    error = (x - y).reshape(*kept, -1).norm(dim=-1)
    size = x.reshape(*kept, -1).norm(dim=-1)
    return torch.where(error == 0, error, error / size).float()


def sqnr_db(reference: Tensor, estimate: Tensor, last_dims: int | None = None) -> Tensor:
    """Signal to quantization noise, -20 log10 of `relative_rms`, in dB; infinity where nothing was lost.

    `last_dims=2` gives one number per matrix: [B, H, S, D] -> [B, H]. Raises as `relative_rms` does.
    """
    return -20 * relative_rms(reference, estimate, last_dims).log10()


def _blur(x: Tensor) -> Tensor:
    """Gaussian window at every place where it fits. [N, H, W, 3] -> [N, H-10, W-10, 3]."""
    offsets = torch.arange(_WINDOW_PIXELS, dtype=x.dtype, device=x.device) - _WINDOW_PIXELS // 2
    window = torch.exp(-0.5 * (offsets / _SIGMA_PIXELS).square())
    window = window / window.sum()
    planes = x.movedim(-1, 1).flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return planes.reshape(-1, 3, *planes.shape[-2:]).movedim(1, -1)


def _pictures(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in 0..1, in the working precision, on the first one's device."""
    _require_same_shape(a, b)
    if a.ndim < 3 or a.shape[-1] != 3:
        raise ConfigError(f"pictures have the shape {list(a.shape)}; give [..., H, W, 3]")
    return _unit_range(a, "first"), _unit_range(b, "second").to(a.device)


def _unit_range(x: Tensor, which: str) -> Tensor:
    if x.dtype == torch.uint8:
        return _wide(x) / 255
    if not x.is_floating_point():
        raise ConfigError(f"the {which} pictures are {x.dtype}; give uint8, or floating point in 0..1")
    x = _finite(x, f"{which} pictures")
    low, high = x.min().item(), x.max().item()
    if low < 0 or high > 1:
        raise ConfigError(f"the {which} pictures range over {low:.3g}..{high:.3g}; scale or clamp floating point to 0..1")
    return x


def _require_same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ConfigError(f"the shapes {list(a.shape)} and {list(b.shape)} differ; compare tensors of one shape")
    if a.numel() == 0:
        raise ConfigError(f"a tensor of shape {list(a.shape)} holds no values; compare at least one")


def _finite(x: Tensor, what: str) -> Tensor:
    """`x` in the working precision. Raises `ConfigError` where it holds NaN or infinity."""
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise ConfigError(f"{bad} of {x.numel()} values of the {what} are NaN or infinite; mask or repair them before measuring")
    return _wide(x)


def _wide(x: Tensor) -> Tensor:
    """float64, or float32 on MPS, which has no other."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)
