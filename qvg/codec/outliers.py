"""Values that stand far out of a tensor, kept exactly beside its codes: places (int32) and values (float16), six bytes each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .parts import Part

_FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Outliers:
    """One value in `one_in` of every head: those that are farthest from their channel's mean. As many as that whatever the
    tensor holds, so that bytes are known before.

    `published` (arXiv 2603.27469): all values beyond `deviations` standard deviations of the whole tensor, from zero; at most one
    in `one_in` of the tensor's, 0: any number. Bytes depend on the content. `clips`: what the codes see of them is cut off where
    they begin.
    """

    one_in: int
    published: bool = False
    deviations: float = 6.0
    clips: bool = True

    def parts(self, shape: tuple[int, int, int, int]) -> dict[str, Part]:
        """What they take of a tensor [B, H, S, D]; as published: at most, 0 of any number."""
        batch, heads, tokens, channels = shape
        count = tokens * channels // self.one_in if self.one_in else 0
        rows = (batch * heads * count,) if self.published else (batch, heads, count)
        return {"outlier_places": Part(rows, torch.int32), "outlier_values": Part(rows, torch.float16)}

    def split(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, H, S, D] float32 -> what is left for the codes, and the parts."""
        if self.published:
            return self._split_published(x)
        far = x - x.mean(2, keepdim=True)
        count = x.shape[2] * x.shape[3] // self.one_in
        if not count:
            return x, _parts(x.new_zeros(*x.shape[:2], 0, dtype=torch.int64), x.new_zeros(*x.shape[:2], 0))
        sizes, places = far.abs().flatten(2).topk(count, -1)
        values = x.flatten(2).gather(2, places)
        bound = sizes[..., -1:, None]
        return (x - far + far.clamp(-bound, bound) if self.clips else x), _parts(places, values)

    def put_back(self, x: Tensor, parts: Mapping[str, Tensor], tokens: slice, heads: slice) -> Tensor:
        """The values to their places in decoded tokens and heads x [B, h, s, D]."""
        places, values = parts["outlier_places"].long(), parts["outlier_values"].to(x.dtype)
        assert not self.published, "a published cache puts them back into the whole tensor"
        places, values = places[:, heads] - tokens.start * x.shape[3], values[:, heads]
        size = x.shape[2] * x.shape[3]
        # What is not among these tokens goes to a place behind them.
        places = torch.where((places >= 0) & (places < size), places, size)
        room = torch.cat([x.flatten(2), x.new_zeros(*x.shape[:2], 1)], 2)
        return room.scatter_(2, places, values)[..., :size].view(x.shape)

    def put_back_published(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """`put_back` into a whole tensor [B, H, S, D]."""
        flat = x.flatten()
        flat[parts["outlier_places"].long()] = parts["outlier_values"].to(x.dtype)
        return flat.view(x.shape)

    def _split_published(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        bound = self.deviations * float(x.std(unbiased=False).clamp(min=1e-8))
        flat = x.flatten()
        places = (flat.abs() > bound).nonzero()[:, 0]
        most = flat.numel() // self.one_in if self.one_in else len(places)
        if len(places) > most:
            places = places[flat[places].abs().topk(most).indices]
        parts = _parts(places, flat[places])
        return (x.clamp(-bound, bound) if self.clips else x), parts


def _parts(places: Tensor, values: Tensor) -> dict[str, Tensor]:
    stored = values.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).half()
    return {"outlier_places": places.to(torch.int32), "outlier_values": stored}
