"""The film model's file: causal Wan's weights under their own names, and beside them the pictures' encoder and decoder.

ComfyUI's own loader takes the file for a causal Wan (metadata `config`); what starts with `picture_codec.` is no concern of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ...files import written_whole
from ...safetensors_writer import in_memory, write_safetensors
from ..common.shipped_weights import REMEDY, check_shipped, read_shipped
from ..wan.network import CausalWan, WanConfig
from .directions import TEXT_CHANNELS, TEXT_TOKENS
from .pictures import PictureCodec

WEIGHTS = Path(__file__).resolve().parents[3] / "assets" / "demo_film.safetensors"
VERSION = "1"  # of the film's rules: scenes, directions, text rows. A file of another version would obey other prompts
MODEL = "qvg-demo-film"
CODEC_PREFIX = "picture_codec."
CONFIG = WanConfig(layers=4, heads=2, mlp=768, text_channels=TEXT_CHANNELS, text_tokens=TEXT_TOKENS)
# By this ComfyUI's loader knows what no tensor says: that it is causal, and how wide its prompts' rows are.
CORE_METADATA = {"config": json.dumps({"transformer": {"causal_ar": True, "text_dim": TEXT_CHANNELS}})}
_TITLE = "demo film"


@dataclass(frozen=True)
class DemoFilmWeights:
    """The file's two parts, names without prefix."""

    network: dict[str, Tensor]
    codec: dict[str, Tensor]


def read_demo_film(path: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> DemoFilmWeights:
    """Weights of the shipped model. UnsupportedModelError: the file is missing, damaged or not this model's."""
    metadata, state = read_shipped(path, _TITLE, MODEL, dtype)
    if metadata.get("version") != VERSION:
        raise UnsupportedModelError(
            f"{path} is a demo film of version {metadata.get('version')!r}, but this pack's films and prompts are of version "
            f"{VERSION!r}; {REMEDY}"
        )
    codec = {name.removeprefix(CODEC_PREFIX): state.pop(name) for name in list(state) if name.startswith(CODEC_PREFIX)}
    check_shipped(path, _TITLE, CausalWan(CONFIG, device="meta"), state)
    check_shipped(path, _TITLE, PictureCodec(device="meta"), codec, CODEC_PREFIX)
    return DemoFilmWeights(state, codec)


def load_demo_film(
    path: Path = WEIGHTS, operations: Any = nn, dtype: torch.dtype = torch.float32, device: Any = None
) -> tuple[CausalWan, PictureCodec]:
    """Network and codec, ready to run. Raises as `read_demo_film` does."""
    weights = read_demo_film(path, dtype)
    model = CausalWan(CONFIG, operations, dtype=dtype, device=device)
    codec = PictureCodec(operations=operations, dtype=dtype, device=device)
    model.load_state_dict(weights.network)
    codec.load_state_dict(weights.codec)
    return model.eval().requires_grad_(False), codec.eval().requires_grad_(False)


def write_demo_film(
    path: Path, network: Mapping[str, Tensor], codec: Mapping[str, Tensor], training: Mapping[str, object]
) -> None:
    """Both parts in 16 bits, and in the metadata what made them."""
    state = {**network, **{CODEC_PREFIX + name: weight for name, weight in codec.items()}}
    metadata = {
        "format": "pt",
        "model": MODEL,
        "version": VERSION,
        **CORE_METADATA,
        "training": json.dumps(dict(training)),
    }
    with written_whole(path) as unfinished:
        write_safetensors(unfinished, in_memory({name: weight.half() for name, weight in state.items()}), metadata)
