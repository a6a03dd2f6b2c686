"""Foreground and background: two codings within every frame."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..codec.parts import Part, PartsCodec
from ..codec.span import PartsSpan
from .method import Foreground

_PREFIXES = ("foreground_", "background_")


class TemporalVariance:
    """Of every position of the picture, how much the mean absolute value of its values varies from frame to frame."""

    def __init__(self, tokens: int):
        self.frames = 0
        self.sums = torch.zeros(2, tokens)

    def add(self, values: Tensor) -> None:
        """Values [B, H, S, D] of one more frame."""
        mean = values.float().abs().mean((0, 1, 3))
        self.sums = self.sums.to(mean.device) + torch.stack([mean, mean.square()])
        self.frames += 1

    def get(self) -> Tensor:
        """float32 [S]."""
        mean, square = self.sums / max(1, self.frames)
        variance: Tensor = (square - mean.square()).clamp(min=0)
        return variance


def foreground_tokens(foreground: Foreground, tokens: int) -> int:
    """Positions in the foreground, of so many."""
    return max(1, min(tokens - 1, round(foreground.share * tokens)))


def foreground_mask(variance: Tensor, foreground: Foreground, published: bool) -> Tensor:
    """bool [S]: the positions that vary most."""
    tokens = len(variance)
    wanted = foreground_tokens(foreground, tokens)
    if published and foreground.threshold is not None:
        above = int((variance > foreground.threshold).sum())
        if round(foreground.least * tokens) <= above <= round(foreground.most * tokens):
            wanted = above
    mask = torch.zeros(tokens, dtype=torch.bool, device=variance.device)
    mask[variance.topk(wanted).indices] = True
    return mask


class MixedCodec(PartsCodec):
    """Two codecs for two kinds of tokens of a frame; which is which, one bit per token says. Both spans of a frame share it."""

    def __init__(self, name: str, foreground: PartsCodec, background: PartsCodec, tokens: int):
        self.name, self.kinds, self._tokens = name, (foreground, background), tokens

    def parts_of(self, shape: tuple[int, int, int, int], foreground: int) -> dict[str, Part]:
        """With so many tokens in the foreground, but for the mask, which keys and values share."""
        batch, heads, tokens, channels = shape
        found: dict[str, Part] = {}
        for prefix, codec, count in zip(_PREFIXES, self.kinds, (foreground, tokens - foreground), strict=True):
            found |= {prefix + name: part for name, part in codec.parts((batch, heads, count, channels)).items()}
        return found

    def span(self, x: Tensor, mask: Tensor, bits: Tensor) -> PartsSpan:
        """x [B, H, S, D] whose foreground `mask` [S] says, and `bits`, which are the mask's."""
        parts = {"mask": bits}
        for prefix, codec, chosen in zip(_PREFIXES, self.kinds, (mask, ~mask), strict=True):
            parts |= {prefix + name: tensor for name, tensor in codec.packed(x[:, :, chosen].float()).items()}
        return PartsSpan(parts, x.shape[2], self)

    def unpacked(self, parts: Mapping[str, Tensor], tokens: slice, heads: slice) -> Tensor:
        """See `PartsCodec`."""
        mask = unpack_mask(parts["mask"], self._tokens)
        chosen = int(mask.sum())
        rows = []
        for prefix, codec, count in zip(_PREFIXES, self.kinds, (chosen, len(mask) - chosen), strict=True):
            own = {name.removeprefix(prefix): tensor for name, tensor in parts.items() if name.startswith(prefix)}
            rows.append(codec.unpacked(own, slice(0, count), heads))
        whole = rows[0].new_empty(*rows[0].shape[:2], len(mask), rows[0].shape[3])
        whole[:, :, mask], whole[:, :, ~mask] = rows
        return whole[:, :, tokens]


def pack_mask(mask: Tensor) -> Tensor:
    """bool [S] -> uint8 [S / 8], the first position in the lowest bit."""
    bits = torch.nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    powers = 2 ** torch.arange(8, device=mask.device)
    return (bits * powers).sum(1).to(torch.uint8)


def unpack_mask(bits: Tensor, tokens: int) -> Tensor:
    """The inverse, for so many positions."""
    powers = torch.arange(8, device=bits.device)
    return ((bits[:, None] >> powers) & 1).flatten()[:tokens].bool()
