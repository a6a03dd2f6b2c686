"""Names of tensors in Wan 2.1's text-to-video network, which the causal family shares; what a file is that has others.

Names as in Wan's own code, which are ComfyUI's too. A checkpoint of Self-Forcing's trainers puts `model.` in front, those of
FSDP and torch.compile put wrappers in between, repackaged ones `model.diffusion_model.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ...errors import UnsupportedModelError
from ..common.tensor_names import is_quantized

LATENT_CHANNELS = 16
HEAD_DIM = 128
_OUTSIDE = (
    *(f"{layer}.{part}" for layer in ("patch_embedding", "text_embedding.0", "text_embedding.2") for part in ("weight", "bias")),
    *(f"{layer}.{part}" for layer in ("time_embedding.0", "time_embedding.2") for part in ("weight", "bias")),
    *(f"{layer}.{part}" for layer in ("time_projection.1", "head.head") for part in ("weight", "bias")),
    "head.modulation",
)
_IN_BLOCK = (
    *(f"{attn}.{name}.{part}" for attn in ("self_attn", "cross_attn") for name in "qkvo" for part in ("weight", "bias")),
    *(f"{attn}.{name}.weight" for attn in ("self_attn", "cross_attn") for name in ("norm_q", "norm_k")),
    *(f"{layer}.{part}" for layer in ("norm3", "ffn.0", "ffn.2") for part in ("weight", "bias")),
    "modulation",
)
_NORMS = ("norm3", "self_attn.norm", "cross_attn.norm")

# A name, as a pattern, that only files of another kind have, and what to do with such a file.
_OTHERS = (
    (
        r"lora_(A|B|up|down)\b",
        "holds a LoRA and no model; give the model's file (for LongLive longlive_base.pt), and this as its LoRA",
    ),
    (
        r"^condition_embedder\.action_embedder\.|^action_embedding\.|to_out_prope|\.o_prope\.",
        "is HY-WorldPlay, which walks through worlds; load it with 'Load WorldPlay'",
    ),
    (r"^condition_embedder\.", "has Diffusers' names; take the original .pt of this model, or a file repackaged for ComfyUI"),
    (
        r"^(decoder\.(conv1|conv_in|middle|mid)|encoder\.(conv1|conv_in|down))",
        "is a VAE; put it into models/vae and load it with 'Load VAE'",
    ),
    (
        r"^(shared|token_embedding|encoder\.embed_tokens)\.|^text_model\.|^encoder\.block\.0\.",
        "is a text encoder; put it into models/text_encoders and load it with 'Load CLIP'",
    ),
    (r"^vace_", "is Wan VACE, which denoises all frames at once and has no KV cache; load it with 'Load Diffusion Model'"),
    (
        r"^img_emb\.|\.cross_attn\.k_img\.",
        "is an image-to-video Wan, which denoises all frames at once and has no KV cache; causal members of the family are "
        "text-to-video networks, which take a first image through 'ARVideoI2V'",
    ),
)
_UNKNOWN = "is of another architecture (it has {names}); causal Wan has patch_embedding, blocks.0.self_attn.q and head.modulation"


def require_text_to_video(tensors: Mapping[str, Tensor], file_name: str) -> list[str]:
    """Names that the network has no use for, outside its blocks. UnsupportedModelError: this is no Wan 2.1 text-to-video."""
    for pattern, what in _OTHERS:
        if any(re.search(pattern, name) for name in tensors):
            raise UnsupportedModelError(f"{file_name} {what}")
    if not {"patch_embedding.weight", "head.modulation", "blocks.0.self_attn.q.weight"} <= tensors.keys():
        raise UnsupportedModelError(f"{file_name} {_UNKNOWN.format(names=_some(tensors))}")
    _check_channels(tensors, file_name)
    # Counted, not read off the largest number, which a damaged name may have.
    layers = len({name.split(".")[1] for name in tensors if re.match(r"blocks\.\d+\.", name)})
    expected = {*_OUTSIDE, *(f"blocks.{layer}.{name}" for layer in range(layers) for name in _IN_BLOCK)}
    missing = sorted(expected - tensors.keys())
    if missing:
        raise UnsupportedModelError(
            f"{file_name} lacks {len(missing)} of the {len(expected)} tensors of a Wan with {layers} layers ({_some(missing)}); "
            "the network would be noise there: take another copy of this file"
        )
    if not is_quantized(tensors):  # packed weights have shapes of their own
        _check_shapes({name: tensors[name] for name in expected}, file_name)
    unknown = [name for name in tensors if name not in expected and not is_quantized([name])]
    inside = [name for name in unknown if name.startswith("blocks.")]
    if inside:
        raise UnsupportedModelError(
            f"{file_name} is a Wan with {len(inside)} more tensors in its blocks ({_some(inside)}), such as camera controls; "
            "ComfyUI's causal Wan has no place for them"
        )
    return unknown


def _check_channels(tensors: Mapping[str, Tensor], file_name: str) -> None:
    absent = [name for name, tensor in tensors.items() if tensor.is_meta or tensor.layout != torch.strided]
    if absent:
        raise UnsupportedModelError(
            f"{file_name} has no plain values in {len(absent)} of its tensors ({_some(absent)}); take another copy of this file"
        )
    shape = tuple(tensors["patch_embedding.weight"].shape)
    if len(shape) != 5:
        raise UnsupportedModelError(
            f"{file_name} has a patch_embedding of {list(shape)}, and Wan's has five sides; it is another model, or damaged"
        )
    width, channels = shape[:2]
    if channels == 48:
        raise UnsupportedModelError(
            f"{file_name} is a Wan 2.2 of 48 latent channels (5B, as LongLive 2); ComfyUI's causal Wan has {LATENT_CHANNELS}"
        )
    if channels != LATENT_CHANNELS:
        raise UnsupportedModelError(
            f"{file_name} takes {channels} channels, as an image-to-video or control network does; causal members of the family "
            f"take {LATENT_CHANNELS}"
        )
    if width % HEAD_DIM:
        raise UnsupportedModelError(f"{file_name} is {width} channels wide, which heads of {HEAD_DIM} do not divide; not a Wan")


def _check_shapes(tensors: Mapping[str, Tensor], file_name: str) -> None:
    """Layers that all have the network's width, or the MLP's."""
    width, mlp = (tensors[f"blocks.0.{name}.bias"].numel() for name in ("self_attn.q", "ffn.0"))
    sides = {"ffn.0": (mlp, width), "ffn.2": (width, mlp)}
    for name, tensor in tensors.items():
        if not name.startswith("blocks."):
            continue
        layer, _, part = name.split(".", 2)[2].rpartition(".")
        out, into = sides.get(layer, (width, width))
        shape = (1, 6, width) if not layer else (out, into) if part == "weight" and not layer.startswith(_NORMS) else (out,)
        if tuple(tensor.shape) != shape:
            raise UnsupportedModelError(
                f"{file_name} has {name} in {list(tensor.shape)}, which is {list(shape)} in a Wan {width} channels wide; take "
                "another copy of this file"
            )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
