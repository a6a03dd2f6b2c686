"""Numbers of the official code for HunyuanVideo 1.5, and the weights and inputs that they were made with.

tools/make_golden_worldplay_hunyuan.py made tests/data/golden_worldplay_hunyuan.safetensors on a CPU in float32, by running the
code of Tencent-Hunyuan/HY-WorldPlay (the commit is in the file's metadata) on what this file makes: its autoregressive rollout
with its transformer, text pass, context passes and scheduler, seven chunks of 3 x 4 latents in four steps without guidance, and
two chunks with it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

FILE = Path(__file__).resolve().parent / "data" / "golden_worldplay_hunyuan.safetensors"

CHANNELS, HEADS, LAYERS, WIDTH, TEXT = 32, 2, 3, 256, 64
BYT5, BYT5_HIDDEN, VISION = 1472, 2048, 1152  # fixed by the official code, and by what ComfyUI tells the model by
ROWS, COLS, CHUNKS = 3, 4, 7
TOKENS = ROWS * COLS
STEPS = 4
GUIDANCE, GUIDED_STEPS, GUIDED_CHUNKS = 6.0, 5, 2
# Of the memory's keys and values that are in the file: every so many tokens.
MEMORY_STRIDE = 5
PATH = "right-12,left-12,w-4"


class Words(NamedTuple):
    """What a prompt and a picture come to in the encoders: states [1, n, C] and masks [1, n], 1 for what is no padding."""

    text: Tensor
    text_mask: Tensor
    byt5: Tensor
    byt5_mask: Tensor
    vision: Tensor


@cache
def golden() -> dict[str, Tensor]:
    """The official numbers by name."""
    with safe_open(FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def weights(text: int = TEXT) -> dict[str, Tensor]:
    """The network's weights by their official names, from numpy's frozen generator."""
    random, state = np.random.RandomState(17), {}
    for name, shape in sorted(shapes(text=text).items()):
        x = random.standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            x = 1 + 0.1 * x
        elif name.endswith("bias"):
            x = 0.1 * x
        elif name.startswith("cond_type"):
            x = 0.5 * x
        else:
            x = x * (1.2 / np.sqrt(np.prod(shape[1:])))
        state[name] = torch.from_numpy(x.astype(np.float32))
    return state


def inputs() -> tuple[Tensor, Tensor, Words, Words]:
    """Noise [1, C, F, h, w], the first picture's latent [1, C, 1, h, w], and what a prompt with quotation marks and one without
    come to."""
    random = np.random.RandomState(18)

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(random.standard_normal(shape).astype(np.float32))

    noise, image = draw(1, CHANNELS, 4 * CHUNKS, ROWS, COLS), draw(1, CHANNELS, 1, ROWS, COLS)
    vision = draw(1, 5, VISION)
    prompt = Words(draw(1, 9, TEXT), _mask(9, 7), draw(1, 6, BYT5), _mask(6, 4), vision)
    negative = Words(draw(1, 9, TEXT), _mask(9, 3), torch.zeros(1, 6, BYT5), _mask(6, 0), vision)
    return noise, image, prompt, negative


def _mask(tokens: int, valid: int) -> Tensor:
    return (torch.arange(tokens) < valid).long()[None]


def shapes(layers: int = LAYERS, width: int = WIDTH, text: int = TEXT) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by their official names."""
    made: dict[str, tuple[int, ...]] = {"cond_type_embedding.weight": (3, width)}

    def linear(name: str, rows: int, columns: int) -> None:
        made[f"{name}.weight"], made[f"{name}.bias"] = (rows, columns), (rows,)

    def norm(name: str, channels: int) -> None:
        made[f"{name}.weight"], made[f"{name}.bias"] = (channels,), (channels,)

    made["img_in.proj.weight"], made["img_in.proj.bias"] = (width, 2 * CHANNELS + 1, 1, 1, 1), (width,)
    for name in ("time_in", "action_in", "txt_in.t_embedder"):
        linear(f"{name}.mlp.0", width, 256)
        linear(f"{name}.mlp.2", width, width)
    linear("txt_in.input_embedder", width, text)
    linear("txt_in.c_embedder.linear_1", width, text)
    linear("txt_in.c_embedder.linear_2", width, width)
    for block in (f"txt_in.individual_token_refiner.blocks.{index}" for index in range(2)):
        norm(f"{block}.norm1", width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.self_attn_qkv", 3 * width, width)
        linear(f"{block}.self_attn_proj", width, width)
        linear(f"{block}.mlp.fc1", 4 * width, width)
        linear(f"{block}.mlp.fc2", width, 4 * width)
        linear(f"{block}.adaLN_modulation.1", 2 * width, width)
    norm("byt5_in.layernorm", BYT5)
    linear("byt5_in.fc1", BYT5_HIDDEN, BYT5)
    linear("byt5_in.fc2", BYT5_HIDDEN, BYT5_HIDDEN)
    linear("byt5_in.fc3", width, BYT5_HIDDEN)
    norm("vision_in.proj.0", VISION)
    linear("vision_in.proj.1", VISION, VISION)
    linear("vision_in.proj.3", width, VISION)
    norm("vision_in.proj.4", width)
    for block in (f"double_blocks.{layer}" for layer in range(layers)):
        for stream in ("img", "txt"):
            linear(f"{block}.{stream}_mod.linear", 6 * width, width)
            for part in ("attn_q", "attn_k", "attn_v", "attn_proj"):
                linear(f"{block}.{stream}_{part}", width, width)
            for part in ("q", "k"):
                made[f"{block}.{stream}_attn_{part}_norm.weight"] = (128,)
            linear(f"{block}.{stream}_mlp.fc1", 4 * width, width)
            linear(f"{block}.{stream}_mlp.fc2", width, 4 * width)
        linear(f"{block}.img_attn_prope_proj", width, width)
    linear("final_layer.linear", CHANNELS, width)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    return made
