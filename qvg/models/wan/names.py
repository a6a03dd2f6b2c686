"""Names of tensors in Wan 2.1's text-to-video network, which the causal family shares; what a file is that has others.

Names as in Wan's own code, which are ComfyUI's too. A checkpoint of Self-Forcing's trainers puts `model.` in front, those of
FSDP and torch.compile put wrappers in between, repackaged ones `model.diffusion_model.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import mode

import torch
from torch import Tensor

from ...errors import UnsupportedModelError
from ..common.modulation import SINES
from ..common.packing import foreign_packing, needs_loader, unknown_packing
from ..common.strangers import LORA, UNMERGED, what_else
from ..common.tensor_names import is_quantized, some
from .layouts import TELLING, WanLayout

LATENT_CHANNELS = 16
TEXT_CHANNELS = 4096
HEAD_DIM = 128
# By these the network is known, whatever stands in front of its names; without those it is of another kind, or cut into parts.
ANCHORS = (
    *("head.modulation", "blocks.0.self_attn.q.weight", "blocks.0.self_attn.norm_q.weight"),
    *("condition_embedder.time_proj.weight", "blocks.0.attn1.norm_q.weight"),
)
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_WANS_BLOCK = re.compile(r"blocks\.(\d+)\.(self_attn\.(q|k|norm_q)|ffn\.0)\.weight$")
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
_WIDER = ("time_projection.1.bias", "head.head.bias")

# A name, as a pattern, that only files of another kind have, and what to do with such a file.
_OTHERS = (
    (r"^picture_codec\.", "is the demo film, which comes with this pack; load it with 'Load Demo Film'"),
    (
        r"^condition_embedder\.action_embedder\.|^action_embedding\.|to_out_prope|\.o_prope\.",
        "is HY-WorldPlay, which walks through worlds; load it with 'Load WorldPlay'",
    ),
    (
        r"^condition_embedder\.time_embedder\.mlp\.|^patch_embedding\.proj\.|^patch_embedding_proj\.",
        "has the names of FastVideo's or an MLX conversion; take the file as its authors released it, or one repackaged for "
        "ComfyUI",
    ),
    (
        r"^condition_embedder\.(?!image)",
        "has Diffusers' names; take the original .pt of this model, or a file repackaged for ComfyUI",
    ),
    (
        r"^patch_embedding_wancamctrl\.|^c2ws_hidden_states",
        "is LingBot-World, which walks through worlds; QVG does not load it",
    ),
    (r"\.cam_self_attn\.", "is DreamX-World, which walks through worlds; load it with 'Load Camera World'"),
    (
        r"^fps_(embedding|projection)\.",
        "is SkyReels-V2, which is told a frame rate; ComfyUI's causal Wan has no place for that",
    ),
    (r"^vace_", "is Wan VACE, which denoises all frames at once and has no KV cache; load it with 'Load Diffusion Model'"),
    (
        r"^img_emb\.|\.cross_attn\.k_img\.|^condition_embedder\.image_embedder\.",
        "is an image-to-video Wan, which denoises all frames at once and has no KV cache; causal members of the family are "
        "text-to-video networks, which take a first image through 'ARVideoI2V'",
    ),
)
_UNKNOWN = "is of another architecture (it has {names}); causal Wan has patch_embedding, blocks.0.self_attn.q and head.modulation"
_CONTROLS = re.compile(r"cam|plucker|action|control|pose|mouse|keyboard|audio|face|motion|adapter", re.I)


def is_text_to_video(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are named as Wan's text-to-video network, and its latent has as many channels."""
    embedding = tensors.get("patch_embedding.weight")
    if embedding is None or not all(name in tensors for name in TELLING):
        return False
    return embedding.ndim == 5 and embedding.shape[1] == LATENT_CHANNELS


def require_layout(tensors: Mapping[str, Tensor], file_name: str, layout: WanLayout) -> None:
    """Raise UnsupportedModelError for what is no Wan of these channels, or a part of one."""
    lacks = [name for name in TELLING if name not in tensors]
    layers = tuple(name.removesuffix("weight") for name in lacks if name.endswith(".weight"))
    instead = [name for name in tensors if layers and name.startswith(layers) and not name.endswith(".bias")]
    if instead:
        raise UnsupportedModelError(f"{file_name} {unknown_packing(instead)}")
    if lacks:
        raise UnsupportedModelError(
            f"{file_name} is no whole {layout.title}: it lacks {some(lacks)}; if it is one of several files, put all of them "
            "into "
            f"one folder, otherwise {layout.get}"
        )
    shape = list(tensors[TELLING[0]].shape)
    if len(shape) != 5 or shape[1] != layout.channels:
        raise UnsupportedModelError(
            f"{file_name} has a patch_embedding of {shape}, and {layout.title} one of {layout.channels} channels; {layout.get}"
        )


def require_text_to_video(tensors: Mapping[str, Tensor], file_name: str) -> None:
    """Raise UnsupportedModelError for another model than Wan 2.1's text-to-video network, and for one packed by others."""
    packer = foreign_packing(tensors)
    if packer:
        raise UnsupportedModelError(f"{file_name} {needs_loader(packer)}")
    if is_text_to_video(tensors) and any(map(LORA.search, tensors)):
        raise UnsupportedModelError(f"{file_name} {UNMERGED}")
    found = next((what for pattern, what in _OTHERS if any(re.search(pattern, name) for name in tensors)), what_else(tensors))
    if found:
        raise UnsupportedModelError(f"{file_name} {found}")
    lacks = [name for name in TELLING if name not in tensors]
    blocks = {match[1] for match in map(_WANS_BLOCK.match, tensors) if match}
    layers = tuple(name.removesuffix("weight") for name in lacks if name.endswith(".weight"))
    instead = [name for name in tensors if name.startswith(layers) and not name.endswith(".bias")]
    if instead:
        raise UnsupportedModelError(f"{file_name} {unknown_packing(instead)}")
    if lacks and blocks:
        raise UnsupportedModelError(
            f"{file_name} holds a part of a Wan ({len(blocks)} blocks, but not {some(lacks)}): if it is one of several files, "
            "put all of them into one folder by the names that they were published with; if not, it is incomplete"
        )
    if lacks:
        raise UnsupportedModelError(f"{file_name} {_UNKNOWN.format(names=some(tensors))}")
    empty = [name for name, tensor in tensors.items() if not tensor.numel()]
    if 2 * len(empty) > len(tensors):
        raise UnsupportedModelError(
            f"{file_name} has no values in {len(empty)} of its {len(tensors)} tensors ({some(empty)}), as DeepSpeed leaves them "
            "where several GPUs keep a part each; join the parts first, with the zero_to_fp32.py that DeepSpeed has put there"
        )
    _check_channels(tensors, file_name)


def require_whole(tensors: Mapping[str, Tensor], file_name: str, layout: WanLayout | None = None) -> list[str]:
    """Names that the network has no use for, outside its blocks. UnsupportedModelError: it lacks some, or has others' layers, or
    tensors of another shape."""
    # Counted, not read off the largest number, which a damaged name may have.
    layers = len({match[1] for match in map(_BLOCK.match, tensors) if match})
    in_block = (*_IN_BLOCK, *(layout.in_block if layout else ()))
    around = (*_OUTSIDE, *(layout.outside if layout else ()))
    expected = {*around, *(f"blocks.{layer}.{name}" for layer in range(layers) for name in in_block)}
    missing = sorted(expected - tensors.keys())
    if missing:
        raise UnsupportedModelError(
            f"{file_name} lacks {len(missing)} of the {len(expected)} tensors of {_a_wan(layout)} with {layers} layers "
            f"({some(missing)}); the network would be noise there: if it is one of several files, put all of them into one "
            "folder; if not, it is "
            "incomplete"
        )
    _check_shapes({name: tensors[name] for name in expected}, tensors, file_name, layout)
    unknown = [name for name in tensors if name not in expected and not is_quantized([name])]
    inside = [name for name in unknown if name.startswith("blocks.")]
    weights = [tensors.get(f"{name.rpartition('.')[0]}.weight") for name in inside]
    if inside and all(weight is not None and weight.dtype.itemsize == 1 for weight in weights):
        raise UnsupportedModelError(f"{file_name} {unknown_packing(inside)}")
    if inside:
        is_controlled = any(map(_CONTROLS.search, inside))
        what = "such as camera controls" if is_controlled else "which Wan's text-to-video network does not have"
        if layout is not None:
            raise UnsupportedModelError(
                f"{file_name} has {len(inside)} tensors more in its blocks ({some(inside)}) than {layout.title}; {layout.get}"
            )
        raise UnsupportedModelError(
            f"{file_name} is a Wan with {len(inside)} more tensors in its blocks ({some(inside)}), {what}; ComfyUI's causal Wan "
            "has no place for them"
        )
    return unknown


def _check_channels(tensors: Mapping[str, Tensor], file_name: str) -> None:
    shape = tuple(tensors["patch_embedding.weight"].shape)
    if len(shape) != 5:
        kind = "it is Causal-rCM's, or another" if len(shape) == 2 and shape[1] == 4 * LATENT_CHANNELS else "it is another"
        raise UnsupportedModelError(
            f"{file_name} has a patch_embedding of {list(shape)}, and Wan's has five sides; {kind} model, or damaged"
        )
    width, channels = shape[:2]
    if channels == 48:
        raise UnsupportedModelError(
            f"{file_name} is a Wan 2.2 of 48 latent channels (5B, as LongLive 2); ComfyUI's causal Wan has {LATENT_CHANNELS}"
        )
    if channels > LATENT_CHANNELS:
        raise UnsupportedModelError(
            f"{file_name} takes {channels} channels, as an image-to-video or control network does; causal members of the family "
            f"take {LATENT_CHANNELS}"
        )
    if width % HEAD_DIM:
        raise UnsupportedModelError(f"{file_name} is {width} channels wide, which heads of {HEAD_DIM} do not divide; not a Wan")


def _a_wan(layout: WanLayout | None) -> str:
    return "a Wan" if layout is None else f"a {layout.title}"


def _check_shapes(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], file_name: str, layout: WanLayout | None
) -> None:
    """Layers that all have the network's width, or the MLP's: what most of them have."""
    own = {name for name in expected if layout is not None and layout.is_own(name)}
    wide = (name for name in expected if name.endswith((".bias", "modulation")) and name not in _WIDER and name not in own)
    width = _most(expected[name].shape[-1:] for name in wide if ".ffn.0." not in name)
    up = (tensor.shape[:1] for name, tensor in expected.items() if ".ffn.0." in name)
    mlp = _most([*up, *(tensor.shape[-1:] for name, tensor in expected.items() if name.endswith(".ffn.2.weight"))])
    for name, tensor in expected.items():
        shape = _own_shape(name, width, layout) if layout is not None and name in own else _shape(name, width, mlp, layout)
        if tuple(tensor.shape) != shape and not _is_packed(name, tensor, shape, tensors):
            raise UnsupportedModelError(
                f"{file_name} has {name} in {list(tensor.shape)}, which is {list(shape)} in {_a_wan(layout)} {width} channels "
                "wide; it is damaged, or was changed"
            )


def _most(sides: Iterable[Sequence[int]]) -> int:
    """What most of them are."""
    return mode([side[0] for side in sides if side] or [0])


def _own_shape(name: str, width: int, layout: WanLayout) -> tuple[int, ...]:
    known = layout.outside.get(name) or layout.in_block[name.split(".", 2)[2]]
    return known(width)


def _shape(name: str, width: int, mlp: int, layout: WanLayout | None) -> tuple[int, ...]:
    channels, out_channels = (layout.channels, layout.out_channels) if layout else (LATENT_CHANNELS, LATENT_CHANNELS)
    layer, _, part = name.rpartition(".")
    inside = layer.startswith("blocks.")
    layer = layer.split(".", 2)[2] if inside and layer.count(".") > 1 else "" if inside else layer
    if part == "modulation":
        return (1, 6 if inside else 2, width)
    out, *into = {
        "patch_embedding": (width, channels, 1, 2, 2),
        "text_embedding.0": (width, TEXT_CHANNELS),
        "time_embedding.0": (width, SINES),
        "time_projection.1": (6 * width, width),
        "head.head": (4 * out_channels, width),
        "ffn.0": (mlp, width),
        "ffn.2": (width, mlp),
    }.get(layer, (width, width))
    return (out,) if part == "bias" or layer.startswith(_NORMS) else (out, *into)


def _is_packed(name: str, tensor: Tensor, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> bool:
    """Whether it is a matrix with several values in a byte, as ComfyUI packs some in 4 bits: rows as they are, padded or not."""
    layer = name.removesuffix(".weight")
    if layer == name or not any(f"{layer}.{scale}" in tensors for scale in ("weight_scale", "weight_s_rel")):
        return False
    few_bits = tensor.dtype in (torch.uint8, torch.int8)
    return few_bits and tensor.ndim == len(shape) == 2 and shape[0] <= tensor.shape[0] < shape[0] + 128
