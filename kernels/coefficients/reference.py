"""Coefficients in torch: the truth that other backends are tested against, and what runs where there is no Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import bitplanes, e4m3, lloyd_max
from ..rotary import rotate_in_place

# Tokens decoded at once: temporaries stay in a processor's cache.
_STEP_TOKENS = 1024
# With twice the gain of least squares the error is as large as the signal; E4M3 rounds by up to a sixteenth, and by more where
# gains are so faint that it has few steps left.
MOST_OF_LEAST_SQUARES = 1.8
TOO_MUCH = 2 / MOST_OF_LEAST_SQUARES


def quantize_coefficients(y: Tensor, weights: Tensor, planes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """See `kernels.quantize_coefficients`."""
    live, y = planes[0], y.float()[..., : planes[0]]
    weights = weights.float()[:, :, None, :live]
    spread = y.square().mean(-1, keepdim=True).sqrt()
    levels = _nearest(y / _divisor(spread), planes)[1]
    # <x, x^> = |x|^2 asks for this gain; a token without energy gets 0.
    energy, product = (weights * y * y).sum(-1, keepdim=True), (weights * y * levels).sum(-1, keepdim=True)
    gain = torch.where(product > 0, energy / product.clamp(min=1e-30), torch.zeros_like(energy))
    equal = (y * levels).sum(-1, keepdim=True), (levels * levels).sum(-1, keepdim=True)
    least = torch.minimum(_least_squares(product, (weights * levels * levels).sum(-1, keepdim=True)), _least_squares(*equal))
    most = MOST_OF_LEAST_SQUARES * least
    gains = e4m3.encode_scale(torch.minimum(gain, most), up=False)
    gains = gains - (e4m3.decode(gains) > TOO_MUCH * most).to(torch.uint8)  # one step less; from the smallest, nothing
    codes = _nearest(y / _divisor(e4m3.decode(gains)), planes)[0]
    return bitplanes.pack(codes, planes), gains.squeeze(-1)


def _least_squares(product: Tensor, energy: Tensor) -> Tensor:
    """The gain of least error: <y, levels> over |levels|^2, never below 0."""
    return product.clamp(min=0) / energy.clamp(min=1e-30)


def _divisor(scale: Tensor) -> Tensor:
    """Division by a scale of zero gives zero."""
    return torch.where(scale > 0, scale, torch.inf)


def _nearest(y: Tensor, planes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Codes (uint8) and values of the nearest levels, channel by channel in its width."""
    codes = torch.empty(y.shape, dtype=torch.uint8, device=y.device)
    values = torch.empty_like(y)
    for bits in range(1, len(planes) + 1):
        start, stop = planes[bits] if bits < len(planes) else 0, planes[bits - 1]
        if start == stop:
            continue
        borders = torch.tensor(lloyd_max.thresholds(bits), device=y.device)
        part = torch.bucketize(y[..., start:stop].contiguous(), borders)
        codes[..., start:stop] = part
        values[..., start:stop] = torch.tensor(lloyd_max.levels(bits), device=y.device)[part]
    return codes, values


def reconstruct_coefficients(
    codes: Tensor,
    gains: Tensor,
    ids: Tensor,
    codewords: Tensor,
    matrix: Tensor,
    planes: tuple[int, ...],
    out: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """See `kernels.reconstruct_coefficients`."""
    batch, heads, tokens, channels = out.shape
    live, count = planes[0], batch * heads
    # Written in place where the output allows it: fresh pages would cost more than the arithmetic.
    exact = out if out.dtype == torch.float32 and out.is_contiguous() else torch.empty(out.shape, device=out.device)
    base = torch.arange(count, dtype=torch.int32, device=ids.device).view(batch, heads, 1) * codewords.shape[2]
    named = (ids.to(torch.int32) + base).flatten()
    torch.index_select(codewords.reshape(-1, channels), 0, named, out=exact.view(-1, channels))
    rows = matrix[:, :, :live].reshape(count, live, channels)
    table = lloyd_max.table().to(out.device)
    offsets = ((1 << bitplanes.widths(planes, live)) - 1).to(out.device)
    values = exact.view(count, tokens, channels)
    for start in range(0, tokens, _STEP_TOKENS):
        part = slice(start, min(start + _STEP_TOKENS, tokens))
        index = bitplanes.unpack(codes[:, :, part], planes, live).to(torch.int32).add_(offsets)
        levels = table.index_select(0, index.flatten()).view(count, -1, live)
        levels *= e4m3.decode(gains[:, :, part]).view(count, -1, 1)
        values[:, part].baddbmm_(levels, rows)
    if rotation is not None:
        rotate_in_place(exact, rotation)
    return exact if exact is out else out.copy_(exact)
