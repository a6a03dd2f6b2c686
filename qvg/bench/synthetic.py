"""Keys and values with the statistics of real video models, for probes that need no model.

Smooth fields that drift over the frames, a dozen objects, heavy-tailed noise; keys with unequal channels and four that stand far
off zero, values with a wide spread of token norms; on request tokens of several times the usual norm. Real tensors (Self-Forcing,
HY-WorldPlay, LongCat): channel contrast of keys 5 to 13, of values 1.4 to 3.2; spread of token norms 1.03 to 1.4 and 3.5 to 5.6;
directions that hold 80 % of the energy 24 to 35 and 42 to 54; the first four hold about half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ROWS, COLS = 30, 52
_FIELDS, _OBJECTS, _WALLS = 64, 12, 4


class KeysValues(NamedTuple):
    """Both [1, H, S, D] float32."""

    keys: Tensor
    values: Tensor


class Noise(NamedTuple):
    """How much of keys and of values is heavy-tailed noise, beside smooth fields of size 1."""

    keys: float
    values: float


# With the first, tensors have the statistics above, and the published codec gains 3.0x to 3.6x on keys and 2.7x to 2.9x on values
# (seeds 0 to 4). With the second it gains what its paper says of real ones: 5.8x to 6.9x and 2.2x to 2.6x (seeds 0 to 2).
MEASURED_NOISE = Noise(0.75, 0.55)
PAPER_NOISE = Noise(0.43, 0.68)


@dataclass(frozen=True)
class Statistics:
    """What makes a tensor easy or hard to quantize. All per head, then averaged."""

    channel_contrast: float  # RMS of the loudest channel / of the middle one, after the mean is gone
    norm_spread: float  # 95th / 5th percentile of token norms
    rank_80: float  # directions that hold 80 % of the energy
    top_4: float  # share of energy in the first four


def make_keys_values(
    seed: int = 0,
    frames: int = 8,
    heads: int = 1,
    channels: int = 128,
    outliers: float = 0.0,
    noise: Noise = MEASURED_NOISE,
    rows: int = ROWS,
    cols: int = COLS,
) -> KeysValues:
    """Tensors of `frames` latent frames of rows x cols tokens; a share `outliers` of the tokens has 3 to 8 times its norm."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    t, r, c = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(cols), indexing="ij")
    phases = torch.stack([t * 0.08, r * 0.2, c * 0.15], -1).float().flatten(0, 2)
    fields = torch.sin(phases @ randn(3, _FIELDS) + randn(_FIELDS) * 3) * 2**0.5
    objects = torch.randint(0, _OBJECTS, (rows // 5 + 1, cols // 5 + 1), generator=generator)[r // 5, c // 5].flatten()

    def tensor(few: float, noisy: float) -> Tensor:
        # Four fields hold a share `few` of the energy, the others share the rest.
        strength = torch.full((_FIELDS,), ((1 - few) / (_FIELDS - 4)) ** 0.5)
        strength[:4] = (few / 4) ** 0.5
        heavy = (
            randn(heads, len(phases), channels)
            / torch.stack([randn(heads, len(phases), 1).square() for _ in range(6)]).mean(0).sqrt()
        )
        smooth = fields @ (strength[:, None] * randn(heads, _FIELDS, channels))
        return smooth + 0.15 * randn(heads, _OBJECTS, channels)[:, objects] + noisy * heavy

    walls = torch.zeros(channels)
    walls[:: channels // _WALLS] = 6.0
    loudness = torch.exp(randn(heads, 1, channels) * 0.3)
    loudness[..., :: channels // 3] *= 4.5
    keys = tensor(0.4, noise.keys) * loudness
    keys = keys / keys.square().mean((1, 2), keepdim=True).sqrt() + walls
    values = tensor(0.65, noise.values) * torch.exp(torch.sin(phases @ randn(3, heads)).T[..., None] * 0.65)
    result = [_with_outliers(x, outliers, generator) for x in (keys, values)]
    return KeysValues(result[0][None], result[1][None])


def _with_outliers(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    count = round(share * x.shape[1])
    if not count:
        return x
    chosen = torch.randperm(x.shape[1], generator=generator)[:count]
    result = x.clone()
    result[:, chosen] *= 3 + 5 * torch.rand(1, count, 1, generator=generator)
    return result


def measure_statistics(x: Tensor) -> Statistics:
    """x [1, H, S, D]."""
    centred = x[0] - x[0].mean(1, keepdim=True)
    loudness = centred.square().mean(1).sqrt()
    norms = x[0].norm(dim=-1)
    energy = torch.linalg.eigvalsh(centred.transpose(1, 2) @ centred).flip(-1)
    shares = energy.cumsum(-1) / energy.sum(-1, keepdim=True)
    spread = norms.quantile(0.95, 1) / norms.quantile(0.05, 1)
    return Statistics(
        float((loudness.amax(1) / loudness.median(1).values).mean()),
        float(spread.mean()),
        float((shares < 0.8).sum(-1).float().mean()) + 1,
        float(shares[:, 3].mean()),
    )
