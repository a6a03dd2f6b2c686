"""Codecs: one file per method behind one small protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..config import COMPARED, QVGConfig
from .base import Codec
from .compared import compared_codecs
from .exact import ExactCodec
from .kivi import KIVICodec
from .klt import KLTCodec
from .quarot import QuaRotCodec
from .qvg import QVGCodec
from .rtn import RTNCodec

__all__ = ["Codec", "ExactCodec", "KIVICodec", "KLTCodec", "KeyValueCodecs", "QVGCodec", "QuaRotCodec", "RTNCodec", "make_codecs"]


class KeyValueCodecs(NamedTuple):
    """The codec of keys and that of values; either decodes the spans of both."""

    keys: Codec
    values: Codec


def make_codecs(config: QVGConfig, exact_dtype: torch.dtype = torch.bfloat16) -> KeyValueCodecs:
    """The codecs that a config names; `exact_dtype` is what "none" keeps values in."""
    if config.codec == "none":
        return KeyValueCodecs(ExactCodec(exact_dtype), ExactCodec(exact_dtype))
    values = config if config.bits_v is None else config.with_changes(bits=config.bits_v)
    if config.codec in COMPARED:
        return KeyValueCodecs(*compared_codecs(config, values))
    if config.codec == "kivi":
        return KeyValueCodecs(KIVICodec(config, per_channel=True), KIVICodec(values, per_channel=False))
    kinds: dict[str, Callable[[QVGConfig], Codec]] = {"qvg": QVGCodec, "klt": KLTCodec, "rtn": RTNCodec, "quarot": QuaRotCodec}
    kind = kinds[config.codec]
    return KeyValueCodecs(kind(config), kind(values))
