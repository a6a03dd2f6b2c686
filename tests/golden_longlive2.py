"""Numbers of the official LongLive 2.0 code, and the weights and inputs that they were made with.

tools/make_golden_longlive2.py made tests/data/golden_longlive2.safetensors on a CPU in float32, by running NVlabs/LongLive at
7860ad9 on what this file makes: its causal pipeline with its network and solver over ten blocks of 8 x 4 x 4 latents, with scene
cuts at blocks 2 and 5, and over two blocks that begin with a picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from .golden_dreamx import random_weights, wan_shapes

FILE = Path(__file__).resolve().parent / "data" / "golden_longlive2.safetensors"
CHANNELS, HEADS, LAYERS, WIDTH, FFN, TEXT, TEXT_TOKENS, SIDE, BLOCKS, BLOCK = 48, 2, 2, 256, 512, 64, 12, 4, 10, 8
CUTS, PICTURE_BLOCKS = (2, 5), 2
# Prompt of every block: a new one at each cut, and at block 7 without one.
PROMPTS = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
# Largest deviation as a part of the largest value.
TOLERANCE = 1e-4


def golden() -> dict[str, Tensor]:
    """ "latents" of the cut video, "picture.latents", and the solver's "timesteps", "sigmas" and "scalar" results."""
    with safe_open(FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def weights(text_channels: int = TEXT, layers: int = LAYERS) -> dict[str, Tensor]:
    """The network's, by its official names: those of Wan 2.2 5B."""
    return random_weights(wan_shapes(WIDTH, layers, FFN, text_channels, CHANNELS, CHANNELS), 21)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Noise [1, F, C, h, w], the picture's latent [1, 1, C, h, w], and texts [prompts, 1, tokens, channels]."""
    random = np.random.RandomState(22)
    shapes = (
        (1, BLOCKS * BLOCK, CHANNELS, SIDE, SIDE),
        (1, 1, CHANNELS, SIDE, SIDE),
        (1 + max(PROMPTS), 1, TEXT_TOKENS, TEXT),
    )
    noise, picture, texts = (torch.from_numpy(random.standard_normal(shape).astype(np.float32)) for shape in shapes)
    return noise, picture, texts
