"""A Wan 2.1 VAE that is small and random, with the key names of the real one, so that ComfyUI's VAE loader takes the file.

ComfyUI reads one size off the file, the decoder's width, 96 in the real one; everything else is fixed: 16 latent channels, widths
times 1, 2, 4, 4, two residual blocks (three going up) per level.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

LATENT_CHANNELS = 16
WIDTH = 8
_MULTIPLES = (1, 2, 4, 4)
# By how much a level changes time and picture, in the order of the encoder; the decoder's is the reverse.
_IN_TIME = (False, True, True)

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _residual(name: str, width_in: int, width_out: int) -> Shapes:
    yield f"{name}.residual.0.gamma", (width_in, 1, 1, 1)
    yield f"{name}.residual.2.weight", (width_out, width_in, 3, 3, 3)
    yield f"{name}.residual.3.gamma", (width_out, 1, 1, 1)
    yield f"{name}.residual.6.weight", (width_out, width_out, 3, 3, 3)
    if width_in != width_out:
        yield f"{name}.shortcut.weight", (width_out, width_in, 1, 1, 1)


def _middle(name: str, width: int) -> Shapes:
    yield from _residual(f"{name}.0", width, width)
    yield f"{name}.1.norm.gamma", (width, 1, 1)
    yield f"{name}.1.to_qkv.weight", (3 * width, width, 1, 1)
    yield f"{name}.1.proj.weight", (width, width, 1, 1)
    yield from _residual(f"{name}.2", width, width)


def _head(name: str, width: int, channels: int) -> Shapes:
    yield f"{name}.0.gamma", (width, 1, 1, 1)
    yield f"{name}.2.weight", (channels, width, 3, 3, 3)


def _encoder(width: int) -> Shapes:
    widths = [width * multiple for multiple in (1, *_MULTIPLES)]
    yield "encoder.conv1.weight", (widths[0], 3, 3, 3, 3)
    at = 0
    for level, (before, after) in enumerate(pairwise(widths)):
        for block in range(2):
            yield from _residual(f"encoder.downsamples.{at}", after if block else before, after)
            at += 1
        if level < len(_IN_TIME):
            yield f"encoder.downsamples.{at}.resample.1.weight", (after, after, 3, 3)
            if _IN_TIME[level]:
                yield f"encoder.downsamples.{at}.time_conv.weight", (after, after, 3, 1, 1)
            at += 1
    yield from _middle("encoder.middle", widths[-1])
    yield from _head("encoder.head", widths[-1], 2 * LATENT_CHANNELS)


def _decoder(width: int) -> Shapes:
    widths = [width * multiple for multiple in (_MULTIPLES[-1], *_MULTIPLES[::-1])]
    yield "decoder.conv1.weight", (widths[0], LATENT_CHANNELS, 3, 3, 3)
    yield from _middle("decoder.middle", widths[0])
    at = 0
    for level, (before, after) in enumerate(pairwise(widths)):
        for block in range(3):
            # Growing a picture halves its channels.
            yield from _residual(f"decoder.upsamples.{at}", after if block else before // (2 if level else 1), after)
            at += 1
        if level < len(_IN_TIME):
            yield f"decoder.upsamples.{at}.resample.1.weight", (after // 2, after, 3, 3)
            if _IN_TIME[::-1][level]:
                yield f"decoder.upsamples.{at}.time_conv.weight", (2 * after, after, 3, 1, 1)
            at += 1
    yield from _head("decoder.head", widths[-1], 3)


def state_dict(seed: int = 0, width: int = WIDTH) -> dict[str, Tensor]:
    """Weights in float32, of a size that keeps pictures within their range."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    joints = (("conv1.weight", 2 * LATENT_CHANNELS), ("conv2.weight", LATENT_CHANNELS))
    shapes = [*_encoder(width), *_decoder(width), *((name, (size, size, 1, 1, 1)) for name, size in joints)]
    for name, shape in shapes:
        if name.endswith("gamma"):
            tensors[name] = 1 + 0.2 * torch.randn(shape, generator=generator)
            continue
        tensors[name] = torch.randn(shape, generator=generator) * torch.Size(shape[1:]).numel() ** -0.5
        tensors[name.removesuffix("weight") + "bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    tensors["decoder.head.2.weight"] *= 0.4
    return tensors


def write(path: Path, seed: int = 0, width: int = WIDTH) -> None:
    """A file for models/vae."""
    save_file(state_dict(seed, width), path)
