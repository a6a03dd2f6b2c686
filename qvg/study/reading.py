"""Attention over frames of which some are one token that counts as many: the reference, tile by tile with one softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..positions.rope import Rotation, rotate_
from .layer import KeptFrame, StudyLayer

# Angles of the tokens of a frame, by its number.
Angles = Callable[[int], Rotation]


def attend_frames(
    q: Tensor, layer: StudyLayer, current: tuple[Tensor, Tensor], angles: Angles | None, tile_tokens: int
) -> Tensor:
    """Softmax attention of q [B, H, Sq, D] (rotated) over a layer's frames and the current block (rotated). A token that stands
    for m others adds log m to its logit, so that what attention it gets is theirs. -> [B, H, Sq, D] in q's dtype.

    At most `tile_tokens` tokens are decoded at a time (one frame at least); sums are kept in float32, relative to the largest
    logit so far.
    """
    queries = q.float() / math.sqrt(q.shape[3])
    best = torch.full((*q.shape[:3], 1), -torch.inf, device=q.device)
    mass, total = torch.zeros_like(best), torch.zeros(q.shape, device=q.device)
    for keys, values, bias in _tiles(layer, current, angles, tile_tokens):
        logits = queries @ keys.transpose(2, 3)
        logits = logits if bias is None else logits + bias
        larger = torch.maximum(best, logits.amax(-1, keepdim=True))
        shrunk, weights = torch.exp(best - larger), torch.exp(logits - larger)
        mass = mass * shrunk + weights.sum(-1, keepdim=True)
        total = total * shrunk + weights @ values
        best = larger
    return (total / mass).to(q.dtype)


def _tiles(
    layer: StudyLayer, current: tuple[Tensor, Tensor], angles: Angles | None, tile_tokens: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Keys and values of some frames, and what is added to their logits."""
    for frames in _runs(layer.frames, tile_tokens):
        keys = torch.cat([_keys(layer, frame, angles) for frame in frames], 2)
        values = torch.cat([layer.decoded(frame.pair.values) for frame in frames], 2)
        if not any(frame.pooled for frame in frames):
            yield keys, values, None
            continue
        counts = [
            layer.spec.tokens_per_frame if frame.pooled else 1 for frame in frames for _ in range(frame.pair.keys.num_tokens)
        ]
        yield keys, values, torch.tensor(counts, device=keys.device).log()
    yield current[0].float(), current[1].float(), None


def _runs(frames: Sequence[KeptFrame], tile_tokens: int) -> Iterator[list[KeptFrame]]:
    """Frames whose tokens fit together."""
    run: list[KeptFrame] = []
    tokens = 0
    for frame in frames:
        if run and tokens + frame.pair.keys.num_tokens > tile_tokens:
            yield run
            run, tokens = [], 0
        run.append(frame)
        tokens += frame.pair.keys.num_tokens
    if run:
        yield run


def _keys(layer: StudyLayer, frame: KeptFrame, angles: Angles | None) -> Tensor:
    """A frame's keys, rotated to where they are; a pooled one to the middle of its frame."""
    keys = layer.decoded(frame.pair.keys)
    if angles is None:
        return keys
    rotation = angles(frame.number)
    if frame.pooled:
        middle = layer.spec.tokens_per_frame // 2
        rotation = rotation.tokens(middle, middle + 1)
    return rotate_(keys, rotation)
