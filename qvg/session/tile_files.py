"""Tiles of a cache of which a share is read, as named tensors and back, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.rows8 import Rows8
from ..attention.tiles import SpanTiles, order_dtype, tile_count
from ..cache.spec import CacheSpec
from .checked import MisfitError


class Entry(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Entries = dict[str, Entry]


def tile_names(layer: int, number: int) -> str:
    """How the names of a span's tiles begin; `number`: of the span among its layer's stretches."""
    return f"layer.{layer}.tiles.{number}"


def tile_entries(spec: CacheSpec, tokens: int, layer: int, number: int) -> Entries:
    """Tensors of the tiles of a span of so many tokens."""
    prefix, rows, tiles = tile_names(layer, number), (spec.batch, spec.heads), tile_count(tokens)
    means = Entry((*rows, tiles, spec.head_dim), torch.int8), Entry((*rows, tiles), torch.float16)
    return {
        f"{prefix}.order": Entry((*rows, tokens), order_dtype(tokens)),
        f"{prefix}.keys": means[0],
        f"{prefix}.key_scales": means[1],
        f"{prefix}.values": means[0],
        f"{prefix}.value_scales": means[1],
    }


def restored_tiles(read: Callable[[str], Tensor], layer: int, number: int) -> SpanTiles:
    """Out of a file whose shapes are known to fit. MisfitError: values that cannot be."""
    prefix = tile_names(layer, number)
    order = read(f"{prefix}.order")
    wanted = torch.arange(order.shape[2]).expand(order.shape)
    if not torch.equal(order.long().sort(-1).values, wanted):
        raise MisfitError(f"{prefix}.order names a token twice, or one that its span does not have")
    rows = {name: read(f"{prefix}.{name}") for name in ("keys", "key_scales", "values", "value_scales")}
    if not all(bool(rows[name].isfinite().all()) for name in ("key_scales", "value_scales")):
        raise MisfitError(f"scales of {prefix} hold NaN or infinity")
    return SpanTiles(order, Rows8(rows["keys"], rows["key_scales"]), Rows8(rows["values"], rows["value_scales"]))
