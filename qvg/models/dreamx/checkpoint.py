"""DreamX-World's autoregressive 5B out of the files that people have it in."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..common.checkpoint import CausalCheckpoint
from ..common.weight_files import WeightFile
from ..family import ReadOptions
from ..wan.layout import chosen_variant, has_layout, read_layout
from ..wan.layouts import WanLayout, linear
from .network import CHANNELS, COMPRESSION
from .variants import DREAMX

_GET = "get model.safetensors of GD-ML/DreamX-World-5B"


def _inner(width: int) -> int:
    return width // COMPRESSION


def _width(width: int) -> int:
    return width


def _camera(name: str) -> str:
    return f"cam_self_attn.{name}"


LAYOUT = WanLayout(
    "DreamX-World 5B",
    _GET,
    CHANNELS,
    CHANNELS,
    in_block={
        **linear(_camera("q_proj"), _inner, _width),
        **linear(_camera("k_proj"), _inner, _width),
        **linear(_camera("v_proj"), _inner, _width),
        **linear(_camera("out_proj"), _width, _inner),
        _camera("norm_q.weight"): lambda width: (_inner(width),),
        _camera("norm_k.weight"): lambda width: (_inner(width),),
    },
    packed=False,
)


def is_dreamx(file: WeightFile) -> bool:
    """Whether these are a Wan 2.2 5B with an attention for cameras, full or small."""
    return has_layout(file, LAYOUT)


def read_dreamx(file: WeightFile, options: ReadOptions) -> CausalCheckpoint:
    """See `FileFormat.read`. UnsupportedModelError: 5B-Cam, too, whose attention has the same names and the full width."""
    return read_layout(file, options, LAYOUT, chosen_variant(file, options, DREAMX), refuse=_bidirectional)


def _bidirectional(tensors: Mapping[str, Tensor]) -> str | None:
    projection = tensors.get("blocks.0.cam_self_attn.q_proj.weight")
    is_full = projection is not None and projection.ndim == 2 and projection.shape[0] == projection.shape[1]
    if is_full or any(name.startswith("control_adapter.") for name in tensors):
        return f"is the bidirectional DreamX-World 5B-Cam, which denoises all frames at once and has no KV cache; {_GET}"
    return None
