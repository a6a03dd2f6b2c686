"""Which frames are sink, due for encoding, or due for eviction. Integers only: no tensor comes near this file.

A layer's memory is a row of stretches, oldest first: sink chunks (exact, never leave), encoded spans, tail chunks (exact).
`CachePolicy.commit` takes the row and a new chunk and answers with the new row and what has to happen to get there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import AUTO_SPAN_TOKENS, QVGConfig
from ..errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Frames of each stretch, oldest first. Every layer of a cache has the same layout. The first `hidden` frames of the oldest
    span have left the window; the span itself leaves with its last frame."""

    sink: tuple[int, ...] = ()
    spans: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()
    hidden: int = 0
    # Frames between sink and tail of a cache that merges: kept as rows, which spans are made of, and not one by one.
    merged: int = 0

    @property
    def frames(self) -> int:
        """All frames that attention sees."""
        return sum(self.sink) + sum(self.spans) + self.merged + sum(self.tail) - self.hidden


@dataclass(frozen=True)
class Step:
    """What one commit does, in this order: the chunk joins sink or tail; the oldest `encode_chunks` of the tail become one span;
    the oldest `evict_spans` spans and then the oldest `evict_chunks` of the tail leave; `layout.hidden` is hidden. Where tokens
    are merged, the oldest `merge_chunks` of the tail become rows before anything else."""

    to_sink: bool
    encode_chunks: int
    evict_spans: int
    evict_chunks: int
    layout: Layout
    merge_chunks: int = 0
    # The chunk joins the sink; `unpin`: the sink's newest chunk, pinned before, goes to the front of the tail first, or `drops`.
    pins: bool = False
    unpin: bool = False
    drops: bool = False


@dataclass(frozen=True)
class CachePolicy:
    """The rules. `chunk_frames` is what the model commits at a time."""

    sink_frames: int
    recent_frames: int
    span_frames: int
    window_frames: int | None
    chunk_frames: int
    merges: bool = False

    def __post_init__(self) -> None:
        if self.window_frames is None:
            return
        need = self.exact_frames + self.chunk_frames
        if self.window_frames < need:
            raise ConfigError(
                f"window_frames is {self.window_frames}, but sink ({self.sink_frames}), recent ({self.recent_frames}) and one "
                f"block ({self.chunk_frames}) need at least {need} frames; use {need} or more, or a smaller sink or recent"
            )

    @staticmethod
    def of(config: QVGConfig, chunk_frames: int, tokens_per_frame: int) -> CachePolicy:
        """The policy that a config asks for; spans are cut to what its window leaves room for."""
        span = -(-AUTO_SPAN_TOKENS // tokens_per_frame) if config.span_frames == "auto" else config.span_frames
        if config.codec == "none" and not config.merges and not config.skips:
            span = chunk_frames  # nothing is encoded, so chunks need not leave together
        policy = CachePolicy(config.sink_frames, config.recent_frames, span, config.window_frames, chunk_frames, config.merges)
        if config.window_frames is None:
            return policy
        exact = policy.exact_frames
        room = (config.window_frames - chunk_frames - exact) // chunk_frames * chunk_frames
        if room < chunk_frames and config.codec != "none":
            raise ConfigError(
                f"window_frames is {config.window_frames}, but sink, recent and the block in work take {exact + chunk_frames} of "
                f"them, so nothing would ever be encoded; use {exact + 2 * chunk_frames} or more, a smaller sink or recent, or "
                "codec 'none'"
            )
        # Frames wait for a whole span before they are encoded: in a window that holds only one, most of them would.
        most = room // 2 // chunk_frames * chunk_frames if config.span_frames == "auto" else room
        return replace(policy, span_frames=max(chunk_frames, min(policy.span_frames, most)))

    @property
    def exact_frames(self) -> int:
        """What sink and recent really hold: whole chunks."""
        return sum(-(-frames // self.chunk_frames) * self.chunk_frames for frames in (self.sink_frames, self.recent_frames))

    @property
    def span_chunks(self) -> int:
        """Chunks that are encoded together."""
        return -(-self.span_frames // self.chunk_frames)

    def pin(self, layout: Layout, chunk_frames: int) -> Step:
        """As `commit`, of a chunk that stays behind the sink until another one is pinned: a new shot's first. The one before is
        the oldest of the others then. Raises ConfigError where there is no place for it."""
        own = next((at for at in range(len(layout.sink) + 1) if sum(layout.sink[:at]) >= self.sink_frames), None)
        if own is None or self.merges:
            raise ConfigError(
                "a block is to be pinned behind the sink, but the sink is not full, or tokens are merged; let a scene cut come "
                "after the sink's blocks, and set merge to 0"
            )
        sink, freed = layout.sink[:own], layout.sink[own:]
        room = None if self.window_frames is None else self.window_frames - self.chunk_frames
        if room is not None and sum(sink) + chunk_frames > room:
            raise ConfigError(
                f"window_frames is {self.window_frames}, but the sink, a pinned block and the block in work take "
                f"{sum(sink) + chunk_frames + self.chunk_frames}; use that or more"
            )
        # It is older than all behind it, so it is the first to leave.
        drops = bool(freed) and room is not None and layout.frames + chunk_frames > room
        layout = replace(layout, sink=(*sink, chunk_frames), tail=layout.tail if drops else (*freed, *layout.tail))
        evict_spans, evict_chunks, layout = self._evict(layout)
        return Step(True, 0, evict_spans, evict_chunks, layout, pins=True, unpin=bool(freed), drops=drops)

    def commit(self, layout: Layout, chunk_frames: int) -> Step:
        """A chunk of `chunk_frames` (the last of a video may be short) becomes history."""
        to_sink = not layout.spans and not layout.tail and sum(layout.sink) < self.sink_frames
        if to_sink:
            layout = replace(layout, sink=(*layout.sink, chunk_frames))
        else:
            layout = replace(layout, tail=(*layout.tail, chunk_frames))
        if self.merges:
            return self._merge(to_sink, layout)
        encode = self._due_for_encoding(layout.tail)
        if encode:
            layout = replace(layout, spans=(*layout.spans, sum(layout.tail[:encode])), tail=layout.tail[encode:])
        evict_spans, evict_chunks, layout = self._evict(layout)
        return Step(to_sink, encode, evict_spans, evict_chunks, layout)

    def _merge(self, to_sink: bool, layout: Layout) -> Step:
        """Every chunk that the recent frames do not need joins the rows."""
        chunks = 0
        while chunks < len(layout.tail) and sum(layout.tail[chunks + 1 :]) >= self.recent_frames:
            chunks += 1
        merged = layout.merged + sum(layout.tail[:chunks])
        return Step(to_sink, 0, 0, 0, replace(layout, merged=merged, tail=layout.tail[chunks:]), chunks)

    def _due_for_encoding(self, tail: tuple[int, ...]) -> int:
        """Chunks of a new span, or 0: a span is due when the tail behind it still holds the recent frames."""
        count = self.span_chunks
        return count if len(tail) >= count and sum(tail[count:]) >= self.recent_frames else 0

    def _evict(self, layout: Layout) -> tuple[int, int, Layout]:
        """The oldest frames leave, those of spans before those of the tail, until the window has room for the next chunk."""
        spans = chunks = 0
        if self.window_frames is None:
            return spans, chunks, layout
        room = self.window_frames - self.chunk_frames
        while layout.frames > room and layout.spans:
            over, left = layout.frames - room, layout.spans[0] - layout.hidden
            if over < left:
                layout = replace(layout, hidden=layout.hidden + over)
            else:
                layout, spans = replace(layout, spans=layout.spans[1:], hidden=0), spans + 1
        while layout.frames > room and layout.tail:
            layout, chunks = replace(layout, tail=layout.tail[1:]), chunks + 1
        return spans, chunks, layout
