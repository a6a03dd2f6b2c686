"""How a cache grows with chunks of one size: what `Growth` comes to after any number of them, without a walk there.

A video of an hour is tens of thousands of commits, and a plan asks about many videos. With even chunks everything is said by
counting: how many chunks the sink takes, how many wait before a span is due, how many frames are over the window's. `Growth` is
the truth, and a test walks both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .growth import Book, Commit, Memory
from .policy import CachePolicy


@dataclass(frozen=True)
class Stand:
    """After some commits. Of `spans` spans ever encoded the first `gone` have left; the last one lacks `short_frames`."""

    sink_frames: int
    tail_frames: int
    spans: int = 0
    gone: int = 0
    short_frames: int = 0


class EvenGrowth:
    """A first chunk of `first_frames` (0: as the others), then chunks of the policy's size. The last chunk of a video may be
    short: `last_frames`, by default a whole one's."""

    def __init__(self, policy: CachePolicy, spans_per_codebook: int, first_frames: int = 0):
        self._chunk, self._first = policy.chunk_frames, first_frames or policy.chunk_frames
        self._per_span, self._per_book = policy.span_chunks, spans_per_codebook
        self._recent_frames = policy.recent_frames
        self._sink_commits = 1 + _steps(policy.sink_frames - self._first, self._chunk) if policy.sink_frames else 0
        self._sink_frames = self.frames(self._sink_commits)
        self._recent_chunks = _steps(policy.recent_frames, self._chunk)
        self._due = self._per_span + self._recent_chunks
        self._room = None if policy.window_frames is None else policy.window_frames - self._chunk
        # A sink longer than asked for, as a first chunk of its own size makes it, may leave the recent frames of a window at its
        # least no room: then they are forgotten before a span is due. Only where nothing is encoded anyway.
        recent = self._recent_chunks * self._chunk
        self._encodes = self._room is None or not recent or self._sink_frames + recent <= self._room
        self._span = self._per_span * self._chunk
        self._first_span = self._span if self._sink_commits else self._span - self._chunk + self._first

    def frames(self, commits: int, last_frames: int | None = None) -> int:
        """Of so many chunks."""
        if not commits:
            return 0
        whole = self._first + (commits - 1) * self._chunk
        return whole if last_frames is None else whole - self._size(commits - 1) + last_frames

    def commits(self, frames: int) -> tuple[int, int | None]:
        """Of so many frames: how many, and the frames of the last one if that is short."""
        commits = 1 + _steps(frames - self._first, self._chunk) if frames else 0
        last = frames - self.frames(commits - 1) if commits else 0
        return commits, last if commits and last < self._size(commits - 1) else None

    def frames_before_encoding(self) -> int:
        """Of the chunks before the first at whose end a span is encoded."""
        return self.frames(self._encodes_at(0))

    def memory(self, commits: int, last_frames: int | None = None) -> Memory:
        """What there is after so many chunks."""
        stand = self._stand(commits, last_frames)
        spans = self._spans(stand, stand.gone, stand.spans)
        return Memory(stand.sink_frames + stand.tail_frames, spans, self._books(stand))

    def commit(self, index: int, last_frames: int | None = None) -> Commit:
        """What the chunk of this number does, from 0 on."""
        before, after = self._stand(index), self._stand(index + 1, last_frames)
        chunk = self._size(index) if last_frames is None else last_frames
        encodes = after.spans > before.spans
        span = self._span_frames(after, before.spans) if encodes else 0
        held = before.sink_frames + before.tail_frames + chunk
        return Commit(
            chunk,
            span,
            self._per_span if encodes else 0,
            self._book(before, before.spans) if encodes and before.spans % self._per_book else (),
            self._book(after, after.spans) if encodes else (),
            self._book(before, before.spans) if before.spans else (),
            gone_spans=tuple(self._spans(after, before.gone, after.gone).elements()),
            gone_exact_frames=held - span - after.sink_frames - after.tail_frames,
            gone_codebooks=tuple(self._gone_books(before, after)),
        )

    def turning_points(self, commits: int) -> list[int]:
        """Numbers of chunks below `commits` such that whatever is the sum or the larger of bytes of the cache is at its largest
        at one of them.

        Between the commits that encode a span and those at which one leaves bytes grow evenly; from codebook to codebook, too,
        once the first one, whose first span may have a size of its own, is done with: so long as nothing leaves, and again when
        it has left. What grows evenly is largest at one of its ends, and so is a larger of such.
        """
        stand, cycle = self._stand(commits), 2 * self._per_book + 4
        points = {0, self._sink_commits, commits - 1}
        turning = [range(cycle), range(stand.spans - cycle, stand.spans)]
        if self._room is not None:
            points.add(_steps(self._room - self._first, self._chunk))
            points.update(map(self._leaves_at, (*range(cycle), *range(stand.gone - cycle, stand.gone + 1))))
            full = self._stand(self._leaves_at(0)).spans
            turning.append(range(full - cycle, full + cycle))
        points.update(self._encodes_at(span) for spans in turning for span in spans if span >= 0)
        near = {point + beside for point in points for beside in (-2, -1, 0, 1, 2)}
        return sorted(point for point in near if 0 <= point < commits)

    def _size(self, index: int) -> int:
        return self._chunk if index else self._first

    def _encodes_at(self, span: int) -> int:
        return self._sink_commits + self._due + span * self._per_span - 1

    def _leaves_at(self, span: int) -> int:
        assert self._room is not None
        return _steps(self._room + self._first_span + span * self._span - self._first, self._chunk)

    def _stand(self, commits: int, last_frames: int | None = None) -> Stand:
        frames = self.frames(commits, last_frames)
        if commits <= self._sink_commits:
            return Stand(frames, 0)
        chunks = commits - self._sink_commits
        spans = self._spans_of(chunks, last_frames)
        # Without recent frames the last chunk is part of the span.
        encoded_now = spans > self._spans_of(chunks - 1, None)
        short = (
            self._size(commits - 1) - last_frames if last_frames is not None and encoded_now and not self._recent_chunks else 0
        )
        packed = self._first_span + (spans - 1) * self._span - short if spans else 0
        tail, gone = frames - self._sink_frames - packed, 0
        over = -1 if self._room is None else frames - self._room
        if over >= packed:
            gone, leave = spans, _steps(over - packed, self._chunk)
            tail = tail - leave * self._chunk if leave < chunks - spans * self._per_span else 0
        elif over >= self._first_span:
            gone = 1 + (over - self._first_span) // self._span
        return Stand(self._sink_frames, tail, spans, gone, short)

    def _spans_of(self, chunks: int, last_frames: int | None) -> int:
        """Spans ever encoded, of so many chunks behind the sink."""
        if not self._encodes or chunks < self._due:
            return 0
        spans, waiting = divmod(chunks - self._due, self._per_span)
        if last_frames is None or waiting or not self._recent_chunks:
            return spans + 1
        return spans + ((self._recent_chunks - 1) * self._chunk + last_frames >= self._recent_frames)

    def _span_frames(self, stand: Stand, span: int) -> int:
        whole = self._span if span else self._first_span
        return whole - (stand.short_frames if span == stand.spans - 1 else 0)

    def _spans(self, stand: Stand, first: int, end: int) -> Counter[int]:
        """Of the spans of these numbers: how many have how many frames. Only those at the ends may be of another size."""
        if first >= end:
            return Counter()
        ends = {first, end - 1}
        sizes = Counter(self._span_frames(stand, span) for span in ends)
        if end - first > len(ends):
            sizes[self._span] += end - first - len(ends)
        return sizes

    def _book(self, stand: Stand, spans: int) -> Book:
        """The codebook of the last of the first `spans` spans, as it was then."""
        first = (spans - 1) // self._per_book * self._per_book
        sizes = [self._first_span if first == 0 else self._span, *[self._span] * (spans - first - 1)]
        sizes[-1] -= stand.short_frames if spans == stand.spans else 0
        return tuple(sizes)

    def _books(self, stand: Stand) -> Counter[Book]:
        """In memory."""
        books = Counter[Book]()
        if stand.gone < stand.spans:
            first, last = stand.gone // self._per_book, (stand.spans - 1) // self._per_book
            books[self._book(stand, stand.spans)] += 1
            if first == 0 < last:
                books[self._book(stand, self._per_book)] += 1
            if last > max(first, 1):
                books[self._book(stand, 2 * self._per_book)] += last - max(first, 1)
        return books

    def _gone_books(self, before: Stand, after: Stand) -> Iterator[Book]:
        """That left with the last of their spans."""
        if after.gone == before.gone:
            return
        last = (after.spans - 1) // self._per_book if after.gone == after.spans else after.gone // self._per_book - 1
        for book in range(before.gone // self._per_book, last + 1):
            yield self._book(after, min((book + 1) * self._per_book, after.spans))


def _steps(frames: int, each: int) -> int:
    """So many of `each` frames hold them all; 0 for none."""
    return max(0, -(-frames // each))
