"""Rotary position embedding on a grid of (time, row, column), applied on the way into attention.

Keys are cached before rotation (docs/architecture.md, "Keys are stored before RoPE"), so the cache needs positions, not angles. A
latent frame is a grid of tokens with one origin; token (i, j) of a frame at origin (t, r, c) sits at (t, r + i, c + j). Origins
may be fractional: the demo world's camera moves by half tokens.

Channel order is [first halves | second halves]: channel p rotates with channel p + D/2 (kernels rotate without a shuffle).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.rotary import Angles, angles_of_tokens
from ...kernels.rotary import rotate as rotate  # to be had from here, too
from ..errors import ConfigError, quoted

# Far more than any model turns; without an end angles would overflow.
MOST_RADIANS = 1000


class Rotation(NamedTuple):
    """Cosines and sines of consecutive tokens: each [S, D/2], float32."""

    cos: Tensor
    sin: Tensor

    def tokens(self, start: int, stop: int) -> Rotation:
        """The rotation of tokens start:stop."""
        return Rotation(self.cos[start:stop], self.sin[start:stop])


@dataclass(frozen=True)
class GridRope:
    """Angles of a token grid. `axis_frequencies`: radians per token for the time, row and column axis, D/2 in all.

    ConfigError: a grid without tokens, other than three axes, a frequency beyond MOST_RADIANS.
    """

    grid_rows: int
    grid_cols: int
    axis_frequencies: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]

    def __post_init__(self) -> None:
        for name, value in (("grid_rows", self.grid_rows), ("grid_cols", self.grid_cols)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {quoted(value)}, but a frame has at least one; count the tokens of a latent frame")
        axes: Sequence[Sequence[object]] = self.axis_frequencies
        if len(axes) != 3:
            raise ConfigError(f"the rope has {len(axes)} axes, but time, row and column are three; an axis may be empty")
        for frequency in (each for axis in axes for each in axis):
            if not isinstance(frequency, int | float) or not abs(frequency) <= MOST_RADIANS:
                raise ConfigError(
                    f"a frequency of the rope is {quoted(frequency)}; give radians per token, {MOST_RADIANS} at most"
                )

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.grid_rows * self.grid_cols

    @property
    def head_dim(self) -> int:
        """Channels that it turns: all of a head."""
        return 2 * sum(len(axis) for axis in self.axis_frequencies)

    @property
    def bytes_per_frame(self) -> int:
        """Of `angles`."""
        return 8 * sum(n * len(axis) for n, axis in zip((1, self.grid_rows, self.grid_cols), self.axis_frequencies, strict=True))

    def rotation(self, origins: Tensor) -> Rotation:
        """Origins [F, 3]: time, row, column of each frame's first token -> Rotation of F * tokens_per_frame tokens."""
        return Rotation(*self.angles(origins).spread())

    def angles(self, origins: Tensor) -> Angles:
        """The same before it is spread over the grid: sines are taken per axis, of rows + cols positions and not rows * cols."""
        steps = torch.arange(max(self.grid_rows, self.grid_cols), dtype=torch.float32, device=origins.device)
        by_axis = []
        for axis, (frequencies, count) in enumerate(zip(self.axis_frequencies, (1, self.grid_rows, self.grid_cols), strict=True)):
            positions = origins[:, axis, None].float() + steps[:count]
            by_axis.append((positions[..., None] * torch.tensor(frequencies, device=origins.device)).flatten(1))
        whole = torch.cat(by_axis, 1)
        pairs = [len(axis) for axis in self.axis_frequencies]
        tokens = len(origins) * self.tokens_per_frame
        return Angles(whole.cos(), whole.sin(), self.grid_rows, self.grid_cols, (pairs[0], pairs[1], pairs[2]), 0, tokens)

    def angles_at(self, positions: Tensor) -> Angles:
        """Positions [S, 3]: time, row and column of each token -> Angles of S tokens that lie in no grid, each its own frame."""
        by_axis = [
            positions[:, axis, None].float() * torch.tensor(frequencies, device=positions.device)
            for axis, frequencies in enumerate(self.axis_frequencies)
        ]
        whole = torch.cat(by_axis, 1)
        return angles_of_tokens((whole.cos(), whole.sin()))


# Temporaries of `rotate_` for tensors that are not float32.
_ROTATED_TOKENS = 4096


def rotate_(x: Tensor, rotation: Rotation) -> Tensor:
    """`rotate` in place, in float32 arithmetic; takes half of x's memory for a moment (of a part of x in 16 bits)."""
    if x.dtype != torch.float32:
        for start in range(0, x.shape[2], _ROTATED_TOKENS):
            part = x[:, :, start : start + _ROTATED_TOKENS]
            part.copy_(rotate(part.float(), rotation.tokens(start, start + _ROTATED_TOKENS)))
        return x
    low, high = x.chunk(2, -1)
    before = low.clone()
    low.mul_(rotation.cos).addcmul_(high, rotation.sin, value=-1)
    high.mul_(rotation.cos).addcmul_(before, rotation.sin)
    return x


def geometric_frequencies(count: int, shortest_wavelength: float, longest_wavelength: float) -> tuple[float, ...]:
    """`count` frequencies in radians per token, their wavelengths (in tokens) spaced geometrically between the two ends."""
    if count == 0:
        return ()
    ratio = longest_wavelength / shortest_wavelength
    return tuple(2 * torch.pi / (shortest_wavelength * ratio ** (i / max(1, count - 1))) for i in range(count))


def wan_rope(grid_rows: int, grid_cols: int, head_dim: int = 128, theta: float = 10000.0) -> GridRope:
    """Positions of Wan 2.1: of a head's channels a third each (rounded down to pairs) turn with row and column, what is left (44
    of 128) with time; the i-th pair of n turns by theta ** (-i / n) radians per token. For keys put through `pairs_apart`."""
    space = head_dim // 6
    counts = (head_dim // 2 - 2 * space, space, space)
    time, rows, cols = (tuple(theta ** (-i / count) for i in range(count)) for count in counts)
    return GridRope(grid_rows, grid_cols, (time, rows, cols))


def hunyuan_rope(grid_rows: int, grid_cols: int) -> GridRope:
    """Positions of HunyuanVideo: of a head's 128 channels 16 turn with time, 56 with row and 56 with column; the i-th pair of n
    turns by 256 ** (-i / n) radians per token. For keys put through `pairs_apart`."""
    time, rows, cols = (tuple(256.0 ** (-i / count) for i in range(count)) for count in (8, 28, 28))
    return GridRope(grid_rows, grid_cols, (time, rows, cols))


def pairs_apart(x: Tensor) -> Tensor:
    """Channels of a model that rotates neighbours, (2i, 2i + 1), in the order that `rotate` takes, (i, i + D/2).

    [..., D] -> [..., D]

    Scores do not change where queries and keys both go through it, so nothing has to be put back.
    """
    pairs: Tensor = x.unflatten(-1, (-1, 2))
    return pairs.transpose(-1, -2).flatten(-2)
