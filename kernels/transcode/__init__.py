"""Into eight bits: keys and values as the fast attention kernels want them (SageAttention 2, arXiv 2411.10958).

A key becomes int8 with one scale per token, after a vector that is the same for all keys has been subtracted: softmax does not
see it, and keys have a large common part. A value becomes E4M3 with one scale per channel, or float16 where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import e4m3, lloyd_max
from ..direct import CosSin, Stored, stored_refusal, stored_tokens
from ..dispatch import implementation, shape_refusal
from ..projective import Projection
from ..rows8 import Rows8, synthesis
from ..spans import SpanTable, StretchTable
from ..transform_codes import TransformCodes
from ..turn import Turns


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


def transcode_spans(
    table: SpanTable,
    spans: tuple[int, int],
    start: int,
    common: Tensor,
    turns: Turns | None,
    keys: Keys8,
    values: Values8,
    backend: str = "auto",
) -> None:
    """Keys and values of spans first:stop of a table in one launch, as far as their tokens are among the outputs', which begin at
    visible token `start`. `turns` (of the outputs' tokens) rotate keys, or project keys and values. Other tokens are left alone.
    """
    check_pair(keys, values)
    module = implementation("transcode", keys.values, backend, shape_refusal(keys.values.shape[3]))
    module.transcode_spans(table, spans, start, common, turns, keys, values)


def transcode_stretches(
    table: StretchTable,
    stretches: tuple[int, int],
    start: int,
    common: Tensor,
    turns: Turns | None,
    keys: Keys8,
    values: Values8,
    backend: str = "auto",
    current: tuple[Tensor, Tensor, int] | None = None,
) -> None:
    """`transcode_spans` for stretches that are kept as they are. `current`: keys, values and the visible number of the first
    token of one more, which is not turned."""
    check_pair(keys, values)
    module = implementation("transcode", keys.values, backend, shape_refusal(keys.values.shape[3]))
    module.transcode_stretches(table, stretches, start, common, turns, keys, values, current)


def span_value_bounds(spans: Sequence[TransformCodes]) -> Tensor:
    """`value_bounds` of spans of transform coefficients: float32 [B, H, D].

    Their largest codeword, and their largest gain times the lesser of two bounds of levels times basis: the sum of magnitudes,
    and by Cauchy and Schwarz the product of lengths.
    """
    bounds, left = [], list(spans)
    while left:
        own = [span for span in left if span.shares_codebook(left[0])]
        left = [span for span in left if not span.shares_codebook(own[0])]
        gains = own[0].gains if len(own) == 1 else torch.cat([span.gains for span in own], 2)
        bounds.append(_bound_of_codebook(own[0], e4m3.decode(gains.amax(2))))
    return bounds[0] if len(bounds) == 1 else torch.stack(bounds).amax(0)


def _bound_of_codebook(span: TransformCodes, gains: Tensor) -> Tensor:
    matrix = synthesis(span.directions, span.scales).abs()
    codewords = Rows8(*span.codewords).dequantize().abs().amax(2)
    largest = [_largest_levels(planes, matrix.shape[2]) for planes in span.planes]
    levels = torch.tensor(largest, device=matrix.device)[:, None, :, None]
    lengths = levels.square().sum(2).sqrt() * matrix.square().sum(2).sqrt()
    return codewords + gains[..., None] * torch.minimum((levels * matrix).sum(2), lengths)


def _largest_levels(planes: tuple[int, ...], directions: int) -> list[float]:
    """The largest level of every direction's width."""
    widths = [sum(size > direction for size in planes) for direction in range(directions)]
    return [max(lloyd_max.levels(width)) if width else 0.0 for width in widths]


def projected_bounds(bounds: Tensor, projection: Projection) -> Tensor:
    """Bounds [B, H, D] of what goes through any of a projection's matrices."""
    most = projection.matrices.to(bounds).abs().amax(0)
    return Projection(most[None], 1, apart=projection.apart).apply_(bounds.clone()[:, :, None])[:, :, 0]


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


def check_pair(keys: Keys8, values: Values8) -> None:
    """ValueError unless there is a value for every key."""
    tokens = values.values.shape[2 if values.scales is None else 3]
    if keys.values.shape[2] != tokens:
        raise ValueError(f"outputs for {keys.values.shape[2]} keys and {tokens} values do not belong together")


def _check(stored: Stored, tokens: int) -> None:
    if stored_tokens(stored) != tokens:
        raise ValueError(f"{stored_tokens(stored)} tokens do not fill an output for {tokens}")
