"""Numbers of the official code, and the weights and inputs that they were made with.

tools/make_golden_worldplay.py made tests/data/golden_worldplay.safetensors on a CPU in float32, by running the code of
Tencent-Hunyuan/HY-WorldPlay at da2d0c2 on what this file makes: its pose, label and selection functions (float64, or as its
pipeline calls them), its projective attention, and its pipeline (wan/inference) with its transformer (wan/models/dits) for seven
chunks of 4 x 4 latents.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

FILE = Path(__file__).resolve().parent / "data" / "golden_worldplay.safetensors"

with safe_open(FILE, "pt") as file:
    GOLDEN: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    _METADATA = file.metadata()

CHANNELS, HEADS, LAYERS, WIDTH, FFN, TEXT, TEXT_TOKENS, SIDE, CHUNKS = 48, 2, 2, 256, 512, 64, 12, 4, 7


def text(name: str) -> str:
    """A camera path of the run: "walk", "turns" or "steps"."""
    return _METADATA[name]


def selections(rule: str) -> dict[int, list[int]]:
    """Frame that a chunk starts at -> frames selected along the path "turns", by the rule "wan" or "hunyuan"."""
    return {int(current): frames for current, frames in json.loads(_METADATA["selection"])[rule].items()}


def weights(text_channels: int = TEXT, layers: int = LAYERS) -> dict[str, Tensor]:
    """The network's weights by their official names, from numpy's frozen generator."""
    random, state = np.random.RandomState(7), {}
    for name, shape in sorted(_shapes(text_channels, layers).items()):
        x = random.standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            x = 1 + 0.1 * x
        elif name.endswith("bias"):
            x = 0.1 * x
        elif "scale_shift_table" in name:
            x = 0.3 * x
        else:
            x = x * (1.5 / np.sqrt(np.prod(shape[1:])))
        state[name] = torch.from_numpy(x.astype(np.float32))
    return state


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Noise [1, C, F, h, w], the first picture's latent [1, C, 1, h, w], and text [1, tokens, channels]."""
    random = np.random.RandomState(8)
    shapes = ((1, CHANNELS, 4 * CHUNKS, SIDE, SIDE), (1, CHANNELS, 1, SIDE, SIDE), (1, TEXT_TOKENS, TEXT))
    noise, image, prompt = (torch.from_numpy(random.standard_normal(shape).astype(np.float32)) for shape in shapes)
    return noise, image, prompt


def _shapes(text_channels: int, layers: int) -> dict[str, tuple[int, ...]]:
    condition, shapes = "condition_embedder", {"scale_shift_table": (1, 2, WIDTH)}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    shapes["patch_embedding.weight"], shapes["patch_embedding.bias"] = (WIDTH, CHANNELS, 1, 2, 2), (WIDTH,)
    linear("proj_out", CHANNELS * 4, WIDTH)
    for name in ("time_embedder", "action_embedder"):
        linear(f"{condition}.{name}.linear_1", WIDTH, 256)
        linear(f"{condition}.{name}.linear_2", WIDTH, WIDTH)
    linear(f"{condition}.time_proj", 6 * WIDTH, WIDTH)
    linear(f"{condition}.text_embedder.linear_1", WIDTH, text_channels)
    linear(f"{condition}.text_embedder.linear_2", WIDTH, WIDTH)
    for block in (f"blocks.{layer}" for layer in range(layers)):
        shapes |= {
            f"{block}.scale_shift_table": (1, 6, WIDTH),
            f"{block}.norm2.weight": (WIDTH,),
            f"{block}.norm2.bias": (WIDTH,),
        }
        linear(f"{block}.ffn.net.0.proj", FFN, WIDTH)
        linear(f"{block}.ffn.net.2", WIDTH, FFN)
        for attention in (f"{block}.attn1", f"{block}.attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                linear(f"{attention}.{part}", WIDTH, WIDTH)
            shapes |= {f"{attention}.norm_q.weight": (WIDTH,), f"{attention}.norm_k.weight": (WIDTH,)}
        linear(f"{block}.attn1.to_out_prope.0", WIDTH, WIDTH)
    return shapes
