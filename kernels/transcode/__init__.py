"""Into eight bits: keys and values as the fast attention kernels want them (SageAttention 2, arXiv 2411.10958).

A key becomes int8 with one scale per token, after a vector that is the same for all keys has been subtracted: softmax does not
see it, and keys have a large common part. A value becomes E4M3 with one scale per channel, or float16 where there is none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import e4m3
from ..direct import CosSin, Stored, stored_refusal, stored_tokens
from ..dispatch import implementation


class Keys8(NamedTuple):
    """values int8 [B, H, S, D] and scales float32 [B, H, S]: key = values * scale + the common vector."""

    values: Tensor
    scales: Tensor

    def tokens(self, start: int, stop: int) -> Keys8:
        """A view of tokens start:stop."""
        return Keys8(self.values[:, :, start:stop], self.scales[:, :, start:stop])


class Values8(NamedTuple):
    """values: E4M3 bytes (uint8) [B, H, D, S], channels first as the matrix units want them, with scales float32 [B, H, D]; or
    float16 [B, H, S, D] without scales."""

    values: Tensor
    scales: Tensor | None

    def tokens(self, start: int, stop: int) -> Values8:
        """A view of tokens start:stop."""
        part = self.values[:, :, start:stop] if self.scales is None else self.values[..., start:stop]
        return Values8(part, self.scales)


def transcode_keys(keys: Stored, common: Tensor, rotation: CosSin | None, out: Keys8, backend: str = "auto") -> Keys8:
    """Fill `out` with keys, rotated by `rotation`, minus `common` [B, H, D]. scale = max|key| / 127, never zero."""
    _check(keys, out.values.shape[2])
    refusal = stored_refusal(out.values.shape[-1], keys)
    implementation("transcode", out.values, backend, refusal).transcode_keys(keys, common, rotation, out)
    return out


def transcode_values(values: Stored, out: Values8, backend: str = "auto") -> Values8:
    """Fill `out` with values. Its scales must be there (`value_scales`); beyond 448 of them values saturate."""
    _check(values, out.values.shape[2 if out.scales is None else 3])
    rows = out.values if out.scales is None else out.values.transpose(2, 3)
    implementation("transcode", rows, backend, stored_refusal(rows.shape[-1], values)).transcode_values(values, out)
    return out


def value_bounds(values: Stored) -> Tensor:
    """A bound of every channel's largest magnitude without decoding: float32 [B, H, D].

    Of codes: the largest centroid of each stage and the largest step, so a few times the true value. E4M3 keeps its relative
    precision over 17 powers of two, and a scale that is a few times too large costs nothing.
    """
    if isinstance(values, Tensor):
        if not values.shape[2]:
            return torch.zeros(*values.shape[:2], values.shape[3], device=values.device)
        return values.abs().amax(2).float()
    bound = values.centroids.float().abs().amax(3).sum(2)
    steps = e4m3.decode(values.scales.amax(-1)) * ((1 << values.bits) - 1)
    if values.zero_points is not None:
        # The low end may be far from zero on either side; a byte without its sign grows with the magnitude.
        steps = steps + e4m3.decode((values.zero_points & 0x7F).amax(-1))
    return bound + steps.repeat_interleave(values.group_size, -1)


def _check(stored: Stored, tokens: int) -> None:
    if stored_tokens(stored) != tokens:
        raise ValueError(f"{stored_tokens(stored)} tokens do not fill an output for {tokens}")
