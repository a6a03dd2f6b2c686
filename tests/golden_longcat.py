"""Numbers of the official LongCat-Video, and the weights and inputs that they were made with.

tools/make_golden_longcat.py made tests/data/golden_longcat.safetensors on a CPU in float32, by running the network, the scheduler
and the pipelines of meituan-longcat/LongCat-Video (the commit is in the file's metadata) on what this file makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

FILE = Path(__file__).resolve().parent / "data" / "golden_longcat.safetensors"

CHANNELS, HEADS, LAYERS, WIDTH, MLP, TEXT, TIME, SINES = 16, 2, 2, 256, 768, 64, 64, 256
ROWS, COLS, TEXT_TOKENS = 4, 6, 512
# Words of the prompt and of the negative prompt.
WORDS = (7, 5)
PICTURE, CONDITION = 1, 4  # latent frames of image to video's condition, and of continuation's
FRAMES = {"text": 3, "picture": 3, "continue": 6}
# Largest deviation as a part of the largest value: of a pass, and of latents after all steps.
PASS_TOLERANCE, LOOP_TOLERANCE = 1e-5, 1e-4


@dataclass(frozen=True)
class Loop:
    """One run of a pipeline."""

    name: str
    kind: str  # of FRAMES
    steps: int
    guidance: float = 4.0
    distilled: bool = False
    enhance_hf: bool = False
    cached: bool = False


LOOPS = (
    Loop("text", "text", 6),
    Loop("text.distilled", "text", 16, 1.0, distilled=True),
    Loop("picture", "picture", 6),
    Loop("continue", "continue", 50, enhance_hf=True, cached=True),
    Loop("continue.whole", "continue", 50, enhance_hf=True),
    Loop("continue.plain", "continue", 6, cached=True),
    Loop("continue.plain.whole", "continue", 6),
    Loop("continue.distilled", "continue", 16, 1.0, distilled=True, cached=True),
    Loop("continue.distilled.whole", "continue", 16, 1.0, distilled=True),
)


def golden() -> dict[str, Tensor]:
    """By name: passes and loops [B, C, F, h, w], keys and values of the condition, schedules."""
    with safe_open(FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def weights(text_channels: int = TEXT, layers: int = LAYERS) -> dict[str, Tensor]:
    """The network's weights by their released names, from numpy's frozen generator."""
    random, state = np.random.RandomState(21), {}
    for name, shape in sorted(shapes(text_channels, layers).items()):
        x = random.standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            x = 1 + 0.1 * x
        elif name.endswith("bias"):
            x = 0.1 * x
        else:
            x = x * (1.2 / np.sqrt(np.prod(shape[1:])))
        state[name] = torch.from_numpy(x.astype(np.float32))
    return state


def texts() -> Tensor:
    """Text encoder's output for prompt and negative prompt, [2, 512, TEXT]; behind the words there is what an encoder leaves."""
    return _normal(22, 2, TEXT_TOKENS, TEXT)


def words() -> Tensor:
    """Which of them are words, [2, 512]."""
    return (torch.arange(TEXT_TOKENS) < torch.tensor(WORDS)[:, None]).long()


def noise(kind: str, batch: int = 1) -> Tensor:
    """Of a segment, [B, C, F, h, w]."""
    return _normal(23 + len(kind), batch, CHANNELS, FRAMES[kind], ROWS, COLS)


def condition(kind: str) -> Tensor:
    """Clean latents [1, C, F, h, w] of its first frames."""
    return 0.8 * _normal(33 + len(kind), 1, CHANNELS, PICTURE if kind == "picture" else CONDITION, ROWS, COLS)


def deviation(out: Tensor, reference: Tensor) -> float:
    """Largest difference as a part of the reference's largest value."""
    assert out.shape == reference.shape
    return float((out - reference).abs().max() / reference.abs().max())


def shapes(text_channels: int = TEXT, layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Of all weights."""
    found: dict[str, tuple[int, ...]] = {"x_embedder.proj.weight": (WIDTH, CHANNELS, 1, 2, 2), "x_embedder.proj.bias": (WIDTH,)}

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = (rows, columns)
        if bias:
            found[f"{name}.bias"] = (rows,)

    linear("t_embedder.mlp.0", TIME, SINES)
    linear("t_embedder.mlp.2", TIME, TIME)
    linear("y_embedder.y_proj.0", WIDTH, text_channels)
    linear("y_embedder.y_proj.2", WIDTH, WIDTH)
    linear("final_layer.adaLN_modulation.1", 2 * WIDTH, TIME)
    linear("final_layer.linear", 4 * CHANNELS, WIDTH)
    for block in (f"blocks.{layer}" for layer in range(layers)):
        linear(f"{block}.adaLN_modulation.1", 6 * WIDTH, TIME)
        found |= {f"{block}.pre_crs_attn_norm.weight": (WIDTH,), f"{block}.pre_crs_attn_norm.bias": (WIDTH,)}
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.cross_attn.q_linear", WIDTH, WIDTH)
        linear(f"{block}.cross_attn.kv_linear", 2 * WIDTH, WIDTH)
        linear(f"{block}.cross_attn.proj", WIDTH, WIDTH)
        for norm in ("q_norm", "k_norm"):
            found |= {f"{block}.{attn}.{norm}.weight": (WIDTH // HEADS,) for attn in ("attn", "cross_attn")}
        linear(f"{block}.ffn.w1", MLP, WIDTH, bias=False)
        linear(f"{block}.ffn.w2", WIDTH, MLP, bias=False)
        linear(f"{block}.ffn.w3", MLP, WIDTH, bias=False)
    return found


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
