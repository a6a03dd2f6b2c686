"""LongCat-Video small and random, by the names that it is released with, and in the forms that people have it in."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from comfyui_qvg.qvg.models.longcat.names import Sizes
from safetensors.torch import save_file
from torch import Tensor

# Two heads of 16 channels; of the prompt's encoder the true width, where ComfyUI's is to fit.
TEXT_CHANNELS = 4096
BLOCKS = 2
CONFIG = {"_class_name": "LongCatVideoTransformer3DModel", "text_tokens_zero_pad": True, "patch_size": [1, 2, 2]}
HYPHEN = "___lorahyphen___"
# Layers of the two LoRAs that are released, and of how many each is joined.
DISTILLS = {
    "attn.qkv": 3,
    "attn.proj": 1,
    "cross_attn.q_linear": 1,
    "cross_attn.kv_linear": 2,
    "ffn.w1": 1,
    "ffn.w2": 1,
    "ffn.w3": 1,
}
REFINES = {**DISTILLS, "adaLN_modulation.1": 6}
AROUND = {"final_layer.adaLN_modulation.1": 2, "final_layer.linear": 1}


def sizes(blocks: int = BLOCKS, text: int = TEXT_CHANNELS, heads: int = 2, head_dim: int = 16, mlp: int = 48) -> Sizes:
    return Sizes(blocks, heads * head_dim, head_dim, mlp, text, 24, 256, 16)


def state_dict(seed: int = 0, shape: Sizes | None = None) -> dict[str, Tensor]:
    """In float32, of a size that lets signals through."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, sides in (shape or sizes()).shapes().items():
        drawn = torch.randn(sides, generator=generator)
        is_norm = "norm." in name and name.endswith("weight")
        fan_in = torch.Size(sides[1:]).numel()
        tensors[name] = 1 + 0.1 * drawn if is_norm else drawn * (0.05 if len(sides) == 1 else fan_in**-0.5)
    return tensors


def shards(folder: Path, tensors: dict[str, Tensor], count: int = 3, stem: str = "diffusion_pytorch_model") -> list[Path]:
    """As the release has them: parts, their index and config.json, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    parts = [names[at::count] for at in range(count)]
    files = [folder / f"{stem}-{at + 1:05d}-of-{count:05d}.safetensors" for at in range(count)]
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name].contiguous() for name in part}, file, {"format": "pt"})
    places = {name: file.name for file, part in zip(files, parts, strict=True) for name in part}
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return files


def lora(
    layers: dict[str, int], rank: int = 4, seed: int = 9, scale: float = 0.5, shape: Sizes | None = None
) -> dict[str, Tensor]:
    """In the authors' own format: `lora_up` for each of the layers that a matrix is joined of."""
    generator = torch.Generator().manual_seed(seed)
    shape = shape or sizes()
    sides = shape.shapes()
    everywhere = {f"blocks.{block}.{layer}": of for block in range(shape.blocks) for layer, of in layers.items()}
    tensors = {}
    for layer, of in (everywhere | (AROUND if "adaLN_modulation.1" in layers else {})).items():
        out, into = sides[f"{layer}.weight"]
        name = f"lora{HYPHEN}{layer.replace('.', HYPHEN)}"
        tensors[f"{name}.lora_down.weight"] = torch.randn((of * rank, into), generator=generator) * into**-0.5
        ups = [torch.randn((out // of, rank), generator=generator) * rank**-0.5 for _ in range(of)]
        tensors |= {f"{name}.lora_up.weight": ups[0]} if of == 1 else {}
        tensors |= {f"{name}.lora_up.blocks.{at}.weight": up for at, up in enumerate(ups)} if of > 1 else {}
        tensors[f"{name}.alpha_scale"] = torch.tensor(scale)
    return tensors


def merged(tensors: dict[str, Tensor], adding: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same by hand: what the authors' forward pass adds, output by output."""
    found = dict(tensors)
    for name, down in adding.items():
        if not name.endswith(".lora_down.weight"):
            continue
        front = name.removesuffix(".lora_down.weight")
        weight = front.removeprefix(f"lora{HYPHEN}").replace(HYPHEN, ".") + ".weight"
        ups = [adding[key] for key in sorted(adding) if key.startswith(f"{front}.lora_up.")]
        product = torch.cat([up @ rows for up, rows in zip(ups, down.chunk(len(ups)), strict=True)])
        found[weight] = tensors[weight] + adding[f"{front}.alpha_scale"] * product
    return found


_REPACK = {
    "x_embedder.proj": "patch_embedding",
    "y_embedder.y_proj": "text_embedding",
    "t_embedder.mlp": "time_embedding.mlp",
    "final_layer.adaLN_modulation": "head.modulation",
    "final_layer.linear": "head.head",
    ".adaLN_modulation.1": ".modulation.1",
    "pre_crs_attn_norm": "norm3",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
    ".proj": ".o",
    "q_linear": "q",
    ".attn.": ".self_attn.",
}


def repacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As ComfyUI-WanVideoWrapper's repack has them."""
    found = {}
    for name, tensor in tensors.items():
        new = name
        for before, after in _REPACK.items():
            new = new.replace(before, after)
        joined = next((part for part in ("qkv", "kv_linear") if f".{part}." in new), "")
        letters = joined.removesuffix("_linear")
        found |= {
            new.replace(f".{joined}.", f".{letter}."): rows.clone()
            for letter, rows in zip(letters, tensor.chunk(len(letters)) if letters else (), strict=False)
        } or {new: tensor}
    return found
