"""Which keys and values a cache takes: finite ones that are small enough for its codec."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import NonFiniteError, TooLargeError
from .layer_cache import LayerCache

# Keys beyond it times queries as large overflow float32; eight-bit rows end at 127 * 65504, and need room for sums.
LARGEST_VALUE = 1e18
LARGEST_VALUES = {"klt": 2.0**20}


def check_finite(layers: Sequence[LayerCache], frames_committed: int, under_way: bool) -> None:
    """Raise NonFiniteError or TooLargeError, naming layer and frame, for a layer's current block. `under_way`: other layers have
    committed theirs. Two numbers per layer and tensor, one synchronisation for all of them."""
    codec = layers[0].config.codec
    limit = LARGEST_VALUES.get(codec, LARGEST_VALUE)
    ends = torch.stack([end for layer in layers for x in layer.state.current or () for end in x.aminmax()]).cpu().float()
    if bool((ends.abs() <= limit).all()):  # false for NaN
        return
    for layer in layers:
        for name, x in zip(("keys", "values"), layer.state.current or (), strict=True):
            sizes = x.float().abs().unflatten(2, (-1, layer.spec.tokens_per_frame)).amax(-1).amax(-1).amax(0).amax(0)
            if bool((sizes <= limit).all()):
                continue
            at = int((~(sizes <= limit)).nonzero()[0])
            place = (layer.layer, frames_committed + at, name, under_way)
            if not bool(sizes[at].isfinite()):
                raise NonFiniteError(*place)
            raise TooLargeError(*place, float(sizes[at]), limit, codec)
