"""A causal Wan checkpoint that is small and random, with the key names of the real ones, so that ComfyUI's loaders know it.

What is fixed by how ComfyUI reads Wan is as in the 1.3B model: heads of 128 channels, 16 latent channels, patches of (1, 2, 2),
4096 text channels, 256 channels of sines for the noise level.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HEAD_DIM = 128
LAYERS, HEADS = 2, 2
# By this alone ComfyUI tells a causal Wan from the ordinary one.
CAUSAL = {"config": json.dumps({"transformer": {"causal_ar": True}})}


def state_dict(seed: int = 0, layers: int = LAYERS, heads: int = HEADS, mlp: int = 256) -> dict[str, Tensor]:
    """Weights in float32. Gates are large enough for every layer's attention to show in the output."""
    generator = torch.Generator().manual_seed(seed)
    width = heads * HEAD_DIM
    tensors: dict[str, Tensor] = {}

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def linear(name: str, to: int, *inputs: int) -> None:
        fan_in = torch.Size(inputs).numel()
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = normal(to, *inputs, scale=fan_in**-0.5), normal(to, scale=0.02)

    linear("patch_embedding", width, 16, 1, 2, 2)
    linear("text_embedding.0", width, 4096)
    linear("text_embedding.2", width, width)
    linear("time_embedding.0", width, 256)
    linear("time_embedding.2", width, width)
    linear("time_projection.1", 6 * width, width)
    for layer in range(layers):
        block = f"blocks.{layer}"
        for attention in ("self_attn", "cross_attn"):
            for part in ("q", "k", "v", "o"):
                linear(f"{block}.{attention}.{part}", width, width)
            for part in ("norm_q", "norm_k"):
                tensors[f"{block}.{attention}.{part}.weight"] = 1.5 + normal(width, scale=0.3)
        tensors[f"{block}.norm3.weight"], tensors[f"{block}.norm3.bias"] = 1 + normal(width, scale=0.1), normal(width, scale=0.1)
        linear(f"{block}.ffn.0", mlp, width)
        linear(f"{block}.ffn.2", width, mlp)
        tensors[f"{block}.modulation"] = normal(1, 6, width, scale=0.5)
    linear("head.head", 64, width)
    tensors["head.modulation"] = normal(1, 2, width, scale=0.1)
    return tensors


def write(path: Path, seed: int = 0, metadata: dict[str, str] | None = None, dtype: torch.dtype = torch.float32) -> None:
    """A file for models/diffusion_models; by default one that ComfyUI knows to be causal."""
    tensors = {name: tensor.to(dtype) for name, tensor in state_dict(seed).items()}
    save_file(tensors, path, CAUSAL if metadata is None else metadata)


def scaled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices of the blocks in 8 bits with a scale each, by the names that Comfy-Org's fp8_scaled files have."""
    packed: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if name.startswith("blocks.") and tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            packed[name] = (tensor / scale).to(torch.float8_e4m3fn)
            packed[name.removesuffix("weight") + "scale_weight"] = scale
        else:
            packed[name] = tensor
    return packed


def lora(seed: int = 3, rank: int = 4) -> dict[str, Tensor]:
    """As LongLive's: PEFT's names, every linear layer of the blocks, alpha equal to the rank and not in the file."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in state_dict().items():
        if name.startswith("blocks.") and weight.ndim == 2:
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, weight.shape[1], generator=generator) * 0.1
            tensors[f"{layer}.lora_B.weight"] = torch.randn(weight.shape[0], rank, generator=generator) * 0.1
    return tensors
