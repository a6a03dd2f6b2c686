"""Codecs: one file per method behind one small protocol."""

from __future__ import annotations

import torch

from ..config import QVGConfig
from .base import Codec
from .exact import ExactCodec
from .qvg import QVGCodec

__all__ = ["Codec", "ExactCodec", "QVGCodec", "make_codec"]


def make_codec(config: QVGConfig, exact_dtype: torch.dtype = torch.bfloat16) -> Codec:
    """The codec that a config names; `exact_dtype` is what "none" keeps values in."""
    return ExactCodec(exact_dtype) if config.codec == "none" else QVGCodec(config)
