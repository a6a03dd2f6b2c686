"""Pictures to latents and back, for the film model: 128 x 128 pixels at stride 8 and 16 channels, each frame by itself.

The encoder is linear (the 16 strongest components of 8 x 8 patches), so that a pan by 8 pixels moves the latent by one. The
decoder is its inverse and a correction by a few convolutions that look at the neighbours.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

STRIDE = 8
CHANNELS = 16
HIDDEN = 96


class PictureCodec(nn.Module):
    """The encoder and decoder that the film model's file brings along."""

    def __init__(self, hidden: int = HIDDEN, operations: Any = nn, dtype: Any = None, device: Any = None):
        super().__init__()
        like = {"dtype": dtype, "device": device}
        self.encoder = operations.Conv2d(3, CHANNELS, STRIDE, stride=STRIDE, **like)
        self.decoder = operations.ConvTranspose2d(CHANNELS, 3, STRIDE, stride=STRIDE, **like)
        widths = (CHANNELS, hidden, hidden, hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [operations.Conv2d(before, after, 3, padding=1, **like), nn.GELU("tanh")]
        layers += [operations.Conv2d(hidden, 3 * STRIDE**2, 1, **like), nn.PixelShuffle(STRIDE)]
        self.correction = nn.Sequential(*layers)

    def encode(self, pictures: Tensor) -> Tensor:
        """[F, 3, 128, 128] in -1..1 -> [F, 16, 16, 16]."""
        latents: Tensor = self.encoder(pictures)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """[F, 16, 16, 16] -> [F, 3, 128, 128] in -1..1."""
        pictures: Tensor = self.decoder(latents) + self.correction(latents)
        return pictures.clamp(-1, 1)


@torch.no_grad()
def fit_linear(codec: PictureCodec, pictures: Tensor) -> None:
    """Set encoder and decoder to the principal components of the pictures' patches.

    Each component is divided by the root of its standard deviation, and all together scaled to mean square 1: a full whitening
    would make a model spend itself on the faintest ones.
    """
    patches = torch.nn.functional.unfold(pictures.double(), STRIDE, stride=STRIDE).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    _, directions = torch.linalg.eigh((patches - mean).T.cov(correction=0))
    basis = directions.flip(1)[:, :CHANNELS]  # strongest first
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()  # a component's sign is free: fix it
    scale = ((patches - mean) @ basis).std(0, correction=0) ** -0.5
    scale = scale / ((patches - mean) @ basis * scale).square().mean().sqrt()
    shape = (CHANNELS, 3, STRIDE, STRIDE)
    codec.encoder.weight.copy_((basis * scale).T.reshape(shape))
    codec.encoder.bias.copy_(-(mean @ (basis * scale)))
    codec.decoder.weight.copy_((basis / scale).T.reshape(shape))
    codec.decoder.bias.zero_()
    last = codec.correction[-2]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    last.weight.zero_()
    last.bias.copy_(mean)
