"""Positions of the frames in memory and of the current block, and the angles that come from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.rotary import Angles
from ..errors import CacheError, quoted
from .rope import GridRope, Rotation

# Time, row and column of a frame's first token.
Origin = tuple[float, float, float]
Origins = Sequence[Sequence[float]] | Tensor
# Of a position: float32 tells no tokens apart so far out.
MOST_TOKENS = 10**9


class FramePositions:
    """Where frames are, oldest first: those in memory (`committed`) and those of the current block.

    Without a rope blocks may be placed all the same; their positions are then forgotten at the next commit. `most_bytes`: what
    angles of the frames in memory may take from block to block.
    """

    def __init__(self, rope: GridRope | None, tokens_per_frame: int, most_bytes: int = 1 << 20):
        self.rope, self._tokens_per_frame, self._most_bytes = rope, tokens_per_frame, most_bytes
        self.clear()

    def clear(self) -> None:
        """As after `__init__`."""
        self.committed: list[Origin] = []
        self._current: list[Origin] = []
        self._rotation: Rotation | None = None
        self._history: Angles | None = None
        # Of a cache that merges: time, row and column of every token in memory, float32 [S, 3]; None: frames are whole.
        self.places: Tensor | None = None
        # Whether frames stand where they were placed, and were not moved since.
        self.as_placed = True

    def place(self, origins: Origins) -> None:
        """Positions of the current block, one per frame."""
        self._current, self._rotation = _rows(origins), None

    def replace(self, origins: Origins) -> None:
        """Other positions for the frames in memory. Raises CacheError for another number of them."""
        rows = _rows(origins)
        if len(rows) != len(self.committed):
            raise CacheError(f"{len(rows)} positions were given for {len(self.committed)} frames in memory; give one for each")
        self.resume(rows)
        self.as_placed = False

    def resume(self, origins: Sequence[Origin]) -> None:
        """Positions of frames in memory that came from elsewhere."""
        self.committed, self._history = list(origins), None

    def check_placed(self, frames: int) -> None:
        """Raise CacheError unless the current block has so many positions."""
        if self.rope is not None and len(self._current) != frames:
            raise CacheError(f"{len(self._current)} frames were placed, but the block has {frames}; call place() for every block")

    def commit(self, sink_frames: int, evicted_frames: int) -> None:
        """The current block joins the frames in memory; behind the sink so many of the oldest leave."""
        if self.rope is not None:
            self.committed.extend(self._current)
            del self.committed[sink_frames : sink_frames + evicted_frames]
        self._current, self._rotation, self._history = [], None, None

    def pin(self, sink_frames: int, freed: int, span_frames: int, evicted_frames: int, drops: bool) -> None:
        """The current block joins the frames in memory right behind the sink, which gives up the `freed` last of its
        `sink_frames`: they come right behind the spans, or are gone (`drops`). So many of the oldest behind the sink leave."""
        if self.rope is not None:
            sink, given = self.committed[: sink_frames - freed], self.committed[sink_frames - freed : sink_frames]
            spans, tail = self.committed[sink_frames : sink_frames + span_frames], self.committed[sink_frames + span_frames :]
            self.committed = [*sink, *self._current, *[*spans, *([] if drops else given), *tail][evicted_frames:]]
        self._current, self._rotation, self._history = [], None, None

    def block_rotation(self, k: Tensor) -> Rotation:
        """Angles of the current block's keys [B, H, S, D], computed once for all layers."""
        assert self.rope is not None
        if len(self._current) * self._tokens_per_frame != k.shape[2]:
            raise CacheError(
                f"{len(self._current)} frames were placed, but the block has {k.shape[2]} tokens of "
                f"{self._tokens_per_frame} per frame; call place() with one origin per frame before attend()"
            )
        if self._rotation is None:
            self._rotation = self.rope.rotation(torch.tensor(self._current, device=k.device))
        return self._rotation

    def coming_rotation(self, first: int, frames: int, device: torch.device) -> Rotation | None:
        """Angles of some frames, counted from the oldest in memory to the last of the current block; None without a rope."""
        if self.rope is None:
            return None
        origins = [*self.committed, *self._current][first : first + frames]
        return self.rope.rotation(torch.tensor(origins, dtype=torch.float32, device=device))

    def history_angles(self, start: int, stop: int, device: torch.device) -> Angles:
        """Angles of the committed tokens start:stop."""
        assert self.rope is not None
        if self._history is None or self._history.cos.device != device:
            whole = self._angle_bytes() <= self._most_bytes
            self._history = self._made(0, None, device) if whole else None
        if self._history is not None:
            return self._history.tokens(start, stop)
        return self._made(start, stop, device)

    def _angle_bytes(self) -> int:
        assert self.rope is not None
        if self.places is None:
            return len(self.committed) * self.rope.bytes_per_frame
        return len(self.places) * self.rope.head_dim * 4

    def _made(self, start: int, stop: int | None, device: torch.device) -> Angles:
        """Angles of tokens start:stop, or of all behind start."""
        assert self.rope is not None
        if self.places is not None:
            return self.rope.angles_at(self.places[start:stop].to(device))
        per_frame = self._tokens_per_frame
        stop = len(self.committed) * per_frame if stop is None else stop
        first = start // per_frame
        some = self._angles(self.committed[first : -(-stop // per_frame)], device)
        return some.tokens(start - first * per_frame, stop - first * per_frame)

    def _angles(self, origins: Sequence[Origin], device: torch.device) -> Angles:
        assert self.rope is not None
        return self.rope.angles(torch.tensor(origins, dtype=torch.float32).reshape(-1, 3).to(device))


def _rows(origins: Origins) -> list[Origin]:
    """CacheError for what is no time, row and column."""
    rows = origins.tolist() if isinstance(origins, Tensor) else origins
    placed = []
    for frame, row in enumerate(rows):
        try:
            time, line, column = (float(part) for part in row)
        except (TypeError, ValueError, OverflowError):
            time = line = column = math.nan
        if not max(abs(time), abs(line), abs(column)) <= MOST_TOKENS or math.isnan(time + line + column):
            raise CacheError(
                f"frame {frame} is placed at {quoted(row)}; give time, row and column, three numbers up to {MOST_TOKENS}"
            )
        placed.append((time, line, column))
    return placed
