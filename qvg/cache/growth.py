"""How a cache grows: what every commit of a run adds, encodes and forgets, in frames, for every layer the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .policy import CachePolicy, Layout

# Frames of the spans that a codebook has grown with, the ones that have left included.
Book = tuple[int, ...]


@dataclass(frozen=True)
class Commit:
    """What one commit did. `span_frames`, 0 for none, of `span_chunks` chunks were encoded together; their codebook was
    `codebook_before`, () where a new one began, and is `codebook_after`; `codebook_newest` is that of the span encoded before
    them, in memory or not. `gone_spans` are the frames of each span that left, `gone_exact_frames` of what left without being
    encoded, `gone_codebooks` the codebooks that left with the last of their spans."""

    chunk_frames: int
    span_frames: int
    span_chunks: int
    codebook_before: Book
    codebook_after: Book
    codebook_newest: Book
    gone_spans: tuple[int, ...]
    gone_exact_frames: int
    gone_codebooks: tuple[Book, ...]


@dataclass(frozen=True)
class Memory:
    """What is in memory: `exact_frames` of sink and tail, how many spans of how many frames, and how many codebooks of which
    spans."""

    exact_frames: int
    spans: Counter[int]
    codebooks: Counter[Book]


class Growth:
    """A run so far, of chunks of any sizes. `layout`: frames in memory."""

    def __init__(self, policy: CachePolicy, spans_per_codebook: int):
        self._policy, self._spans_per_codebook = policy, spans_per_codebook
        self.layout = Layout()
        self._encoded = 0
        self._numbers: list[int] = []  # of each span in memory: the number of its codebook
        self._codebooks: dict[int, Book] = {}
        self._newest: Book = ()

    def memory(self) -> Memory:
        """What there is now."""
        exact = sum(self.layout.sink) + sum(self.layout.tail)
        return Memory(exact, Counter(self.layout.spans), Counter(self._codebooks.values()))

    def commit(self, chunk_frames: int) -> Commit:
        """A chunk becomes history."""
        before, step = self.layout, self._policy.commit(self.layout, chunk_frames)
        tail = before.tail if step.to_sink else (*before.tail, chunk_frames)
        span_frames, newest = sum(tail[: step.encode_chunks]), self._newest
        codebook_before, self._newest = self._encode(span_frames) if step.encode_chunks else ((), newest)
        spans = (*before.spans, *([span_frames] if step.encode_chunks else []))
        tail = tail[step.encode_chunks :]
        self.layout = step.layout
        return Commit(
            chunk_frames,
            span_frames,
            step.encode_chunks,
            codebook_before,
            self._newest if step.encode_chunks else (),
            newest,
            gone_spans=spans[: step.evict_spans],
            gone_exact_frames=sum(tail[: step.evict_chunks]),
            gone_codebooks=self._forget(step.evict_spans),
        )

    def _encode(self, span_frames: int) -> tuple[Book, Book]:
        """A codebook goes on from the newest span in memory; where there is none, a new one begins."""
        shares = bool(self._numbers) and self._encoded - self._numbers[-1] < self._spans_per_codebook
        number = self._numbers[-1] if shares else self._encoded
        before = self._codebooks.get(number, ())
        self._codebooks[number] = (*before, span_frames)
        self._numbers.append(number)
        self._encoded += 1
        return before, self._codebooks[number]

    def _forget(self, spans: int) -> tuple[Book, ...]:
        """A codebook leaves with the last of its spans."""
        left, self._numbers = set(self._numbers[:spans]), self._numbers[spans:]
        return tuple(self._codebooks.pop(number) for number in sorted(left.difference(self._numbers[:1])))


def even_chunks(frames: int, chunk_frames: int, first_frames: int = 0) -> list[int]:
    """Sizes of a video's chunks: a first one of its own size (0: none), then `chunk_frames` each; the last one may be short."""
    first = [min(first_frames, frames)] if first_frames else []
    whole, rest = divmod(frames - sum(first), chunk_frames)
    return [*first, *[chunk_frames] * whole, *([rest] if rest else [])]
