"""Numbers of the official DreamX-World code, and the weights and inputs that they were made with.

tools/make_golden_dreamx.py made tests/data/golden_dreamx.safetensors on a CPU in float32, by running AMAP-ML/DreamX-World at
a1f4c6e on what this file makes: its causal pipeline over seven blocks of 3 x 4 x 4 latents with its network, its camera
attention, its trajectories, and its timesteps in bfloat16, as its program runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

FILE = Path(__file__).resolve().parent / "data" / "golden_dreamx.safetensors"
CHANNELS, HEADS, LAYERS, WIDTH, FFN, TEXT, TEXT_TOKENS, SIDE, BLOCKS, BLOCK = 48, 2, 2, 256, 512, 64, 12, 4, 7, 3
CAMERA = WIDTH // 4  # channels of the camera's attention
FRAMES = BLOCKS * BLOCK
# Shares of the duration, as in the published examples.
ACTIONS = (("w", 4), ("wj", 3), ("dl", 3), ("i", 2))
# Largest deviation as a part of the largest value; measured 9e-7.
TOLERANCE = 1e-4


def golden() -> dict[str, Tensor]:
    """By name: "flow.BLOCK.PASS" and its input "x...", "latents", "draws", "poses", "timesteps", "levels"."""
    with safe_open(FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """From numpy's frozen generator: every layer shows in the output."""
    random, state = np.random.RandomState(seed), {}
    for name, shape in sorted(shapes.items()):
        x = random.standard_normal(shape)
        if ".norm" in name and name.endswith("weight"):
            x = 1 + 0.1 * x
        elif name.endswith("bias"):
            x = 0.1 * x
        elif "modulation" in name:
            x = 0.3 * x
        else:
            x = x * (1.5 / np.sqrt(np.prod(shape[1:])))
        state[name] = torch.from_numpy(x.astype(np.float32))
    return state


def wan_shapes(width: int, layers: int, ffn: int, text: int, channels: int, out: int) -> dict[str, tuple[int, ...]]:
    """Of a Wan, by its own names."""
    shapes: dict[str, tuple[int, ...]] = {"head.modulation": (1, 2, width), "patch_embedding.weight": (width, channels, 1, 2, 2)}
    shapes["patch_embedding.bias"] = (width,)

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    for name, rows, columns in (
        ("text_embedding.0", width, text),
        ("text_embedding.2", width, width),
        ("time_embedding.0", width, 256),
        ("time_embedding.2", width, width),
        ("time_projection.1", 6 * width, width),
        ("head.head", 4 * out, width),
    ):
        linear(name, rows, columns)
    for block in (f"blocks.{layer}" for layer in range(layers)):
        shapes |= {f"{block}.modulation": (1, 6, width), f"{block}.norm3.weight": (width,), f"{block}.norm3.bias": (width,)}
        linear(f"{block}.ffn.0", ffn, width)
        linear(f"{block}.ffn.2", width, ffn)
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for part in "qkvo":
                linear(f"{attention}.{part}", width, width)
            shapes |= {f"{attention}.norm_{part}.weight": (width,) for part in "qk"}
    return shapes


def weights(text_channels: int = TEXT, layers: int = LAYERS) -> dict[str, Tensor]:
    """The network's, by its official names."""
    shapes = wan_shapes(WIDTH, layers, FFN, text_channels, CHANNELS, CHANNELS)
    for block in (f"blocks.{layer}.cam_self_attn" for layer in range(layers)):
        shapes |= {f"{block}.{part}_proj.weight": (CAMERA, WIDTH) for part in "qkv"}
        shapes |= {f"{block}.{part}_proj.bias": (CAMERA,) for part in "qkv"}
        shapes |= {f"{block}.out_proj.weight": (WIDTH, CAMERA), f"{block}.out_proj.bias": (WIDTH,)}
        shapes |= {f"{block}.norm_{part}.weight": (CAMERA,) for part in "qk"}
    return random_weights(shapes, 11)


def inputs() -> tuple[Tensor, Tensor]:
    """Noise [1, F, C, h, w], whose first frame is the picture's latent, and text [1, tokens, channels]."""
    random = np.random.RandomState(12)
    shapes = ((1, FRAMES, CHANNELS, SIDE, SIDE), (1, TEXT_TOKENS, TEXT))
    noise, prompt = (torch.from_numpy(random.standard_normal(shape).astype(np.float32)) for shape in shapes)
    return noise, prompt


def draws() -> Tensor:
    """Noise between steps, [blocks, steps - 1, 1, F, C, h, w]."""
    random = np.random.RandomState(13)
    return torch.from_numpy(random.standard_normal((BLOCKS, 3, 1, BLOCK, CHANNELS, SIDE, SIDE)).astype(np.float32))
