"""Names and shapes of LongCat-Video's weights: as released, which are ours, and as ComfyUI-WanVideoWrapper's repack has them.

The repack has Wan's names, and keys and values (with queries, in self-attention) apart where the release has them in one matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ...errors import UnsupportedModelError
from ..common.tensor_names import count_blocks, is_quantized, some, uneven

GET_LONGCAT = "get the folder dit of meituan-longcat/LongCat-Video, all its parts and config.json"
_AVATAR = re.compile(r"(^|\.)audio_")
# By these the network is known, whatever stands in front of its names: the release's, then the repack's.
_OWN, _REPACKED = "blocks.0.adaLN_modulation.1.weight", "blocks.0.modulation.1.weight"
ANCHORS = (_OWN, _REPACKED, "t_embedder.mlp.0.weight", "time_embedding.mlp.0.weight", "x_embedder.proj.weight")
_WITH_THEM = "blocks.0.ffn.w3.weight"
# Of the repack: pattern, our name, and which part of it that is.
_REPACK = (
    (r"patch_embedding", "x_embedder.proj", None),
    (r"text_embedding\.([02])", r"y_embedder.y_proj.\1", None),
    (r"time_embedding\.mlp\.([02])", r"t_embedder.mlp.\1", None),
    (r"head\.modulation\.1", "final_layer.adaLN_modulation.1", None),
    (r"head\.head", "final_layer.linear", None),
    (r"(blocks\.\d+)\.modulation\.1", r"\1.adaLN_modulation.1", None),
    (r"(blocks\.\d+)\.norm3", r"\1.pre_crs_attn_norm", None),
    (r"(blocks\.\d+\.)self_(attn)\.norm_([qk])", r"\1\2.\3_norm", None),
    (r"(blocks\.\d+\.cross_attn)\.norm_([qk])", r"\1.\2_norm", None),
    (r"(blocks\.\d+\.)self_(attn)\.o", r"\1\2.proj", None),
    (r"(blocks\.\d+\.cross_attn)\.o", r"\1.proj", None),
    (r"(blocks\.\d+\.cross_attn)\.q", r"\1.q_linear", None),
    *((rf"(blocks\.\d+\.)self_(attn)\.{part}", r"\1\2.qkv", number) for number, part in enumerate("qkv")),
    *((rf"(blocks\.\d+\.cross_attn)\.{part}", r"\1.kv_linear", number) for number, part in enumerate("kv")),
)
_REPACKED_NAMES = tuple(
    (re.compile(rf"{pattern}\.(?P<kind>weight|bias|weight_scale|scale_weight)"), to, part) for pattern, to, part in _REPACK
)
# In 8 bits these are; the others are small, computed in float32, or what everything goes through.
_MATRICES = re.compile(r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj)|ffn\.w[123])\.weight")
_KNOWN = re.compile(
    r"^(blocks\.\d+\.((cross_)?attn\.|ffn\.w[123]|adaLN_modulation\.1|pre_crs_attn_norm)|[xyt]_embedder\.|final_layer\.)"
)


@dataclass(frozen=True)
class Sizes:
    """Of one network; `time` channels of what noise levels become, `frequencies` of what they are told as."""

    blocks: int
    width: int
    head_dim: int
    mlp: int
    text: int
    time: int
    frequencies: int
    channels: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Sizes:
        """Raises ValueError for first weights of no such network, UnsupportedModelError for blocks that are not there."""
        blocks = count_blocks(tensors, "blocks.")
        needed = {
            "x_embedder.proj.weight": 5,
            "y_embedder.y_proj.0.weight": 2,
            "t_embedder.mlp.0.weight": 2,
            "blocks.0.attn.q_norm.weight": 1,
            "blocks.0.ffn.w1.weight": 2,
        }
        for name, sides in needed.items():
            if name not in tensors:
                raise ValueError(f"it lacks {name!r}")
            if tensors[name].ndim != sides or 0 in tensors[name].shape:
                raise ValueError(f"{name} is {list(tensors[name].shape)}")
        patch, text, time, norm, mlp = (tensors[name].shape for name in needed)
        if patch[2:] != (1, 2, 2):
            raise ValueError(f"a token is {list(patch[2:])} latent pixels, but [1, 2, 2] as released")
        if patch[0] % norm[0]:
            raise ValueError(f"heads of {norm[0]} channels do not divide {patch[0]}")
        return cls(blocks, patch[0], norm[0], mlp[0], text[1], time[0], time[1], patch[1])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by its name."""
        wide, mlp = self.width, self.mlp
        block = {
            **_linear("adaLN_modulation.1", 6 * wide, self.time),
            **_linear("attn.qkv", 3 * wide, wide),
            **_linear("attn.proj", wide, wide),
            **_linear("cross_attn.q_linear", wide, wide),
            **_linear("cross_attn.kv_linear", 2 * wide, wide),
            **_linear("cross_attn.proj", wide, wide),
            **{f"{part}attn.{of}_norm.weight": (self.head_dim,) for part in ("", "cross_") for of in "qk"},
            **{f"ffn.w{number}.weight": (wide, mlp) if number == 2 else (mlp, wide) for number in (1, 2, 3)},
            **{f"pre_crs_attn_norm.{kind}": (wide,) for kind in ("weight", "bias")},
        }
        return {
            "x_embedder.proj.weight": (wide, self.channels, 1, 2, 2),
            "x_embedder.proj.bias": (wide,),
            **_linear("t_embedder.mlp.0", self.time, self.frequencies),
            **_linear("t_embedder.mlp.2", self.time, self.time),
            **_linear("y_embedder.y_proj.0", wide, self.text),
            **_linear("y_embedder.y_proj.2", wide, wide),
            **{f"blocks.{number}.{name}": shape for number in range(self.blocks) for name, shape in block.items()},
            **_linear("final_layer.adaLN_modulation.1", 2 * wide, self.time),
            **_linear("final_layer.linear", 4 * self.channels, wide),
        }


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def is_of_longcat(names: Iterable[str]) -> bool:
    """Whether these are the network's names, the repack's included."""
    there = set(names)
    return _WITH_THEM in there and bool(there & {_OWN, _REPACKED})


def is_avatar(names: Iterable[str]) -> bool:
    """Whether these are of the network that listens to audio."""
    return any(map(_AVATAR.search, names))


def in_eight_bits(name: str) -> bool:
    """Whether a tensor of this name is stored in 8 bits, where a file's weights are to be."""
    return _MATRICES.fullmatch(name) is not None


def longcat_parts(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """By the release's names, every tensor in the parts that the file has it in. Raises UnsupportedModelError for part of one."""
    if _REPACKED not in tensors:
        return {name: (tensor,) for name, tensor in tensors.items()}
    found: dict[str, dict[int | None, Tensor]] = {}
    for name, tensor in tensors.items():
        to, part = _released_name(name)
        found.setdefault(to, {})[part] = tensor
    for name, parts in found.items():
        wanted = {None} if None in parts else {*range(3 if ".qkv." in name else 2)}
        if parts.keys() != wanted:
            raise UnsupportedModelError(
                f"the checkpoint has {len(parts)} of the {len(wanted)} parts of {name}, so it is incomplete; {GET_LONGCAT}"
            )
    return {name: tuple(parts[key] for key in sorted(parts, key=lambda part: part or 0)) for name, parts in found.items()}


def _released_name(name: str) -> tuple[str, int | None]:
    for pattern, to, part in _REPACKED_NAMES:
        if match := pattern.fullmatch(name):
            kind = match["kind"].replace("scale_weight", "weight_scale")
            return f"{match.expand(to)}.{kind}", part
    return name, None


def require_shapes(parted: Mapping[str, tuple[Tensor, ...]]) -> Sizes:
    """Raise UnsupportedModelError unless these are all weights of one network, and no others."""
    try:
        sizes = Sizes.of({name: parts[0] for name, parts in parted.items()})
    except ValueError as error:
        raise UnsupportedModelError(f"its first weights are of no LongCat-Video's shape ({error}); {GET_LONGCAT}") from error
    expected = sizes.shapes()
    lacks = [name for name in expected if name not in parted]
    if lacks:
        raise UnsupportedModelError(
            f"the checkpoint lacks {len(lacks)} of LongCat-Video's {len(expected)} tensors ({some(lacks)}), so it is incomplete, "
            f"or one of several files; {GET_LONGCAT}"
        )
    for name, shape in expected.items():
        joined = _joined_shape(parted[name])
        if joined != list(shape):
            raise UnsupportedModelError(f"{name} is {joined}, but {list(shape)} in a LongCat-Video of these sizes; {GET_LONGCAT}")
    more = [name for name in parted if name not in expected and not is_quantized([name])]
    if more:
        raise UnsupportedModelError(
            f"the checkpoint holds {len(more)} tensors that LongCat-Video does not have{uneven(parted, 'blocks.', _KNOWN)}; "
            f"{GET_LONGCAT}"
        )
    return sizes


def _joined_shape(parts: tuple[Tensor, ...]) -> list[int]:
    sides = [list(part.shape) for part in parts]
    if len(sides) == 1:
        return sides[0]
    alike = all(sides) and all(each[1:] == sides[0][1:] for each in sides)
    return [sum(each[0] for each in sides), *sides[0][1:]] if alike else [len(sides), *sides[0]]
