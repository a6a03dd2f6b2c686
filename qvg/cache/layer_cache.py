"""What one layer remembers, and how: append, commit, encode, evict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.plan import Pair
from ..attention.tiles import SpanTiles, make_order, tile_means
from ..codec import ExactCodec, KLTCodec
from ..codec.base import CodebookSize, EncodeHint, Room
from ..codec.klt_tables import Tables
from ..codec.span import Codebook, ExactSpan, Span, TransformCodebook, TransformSpan
from ..config import QVGConfig
from ..errors import CacheError
from ..positions.rope import Rotation, rotate
from .offload import Offloader
from .policy import Step
from .spec import CacheSpec

# Told of every span as soon as it is made, and of what it was made of.
Observer = Callable[[Span, Tensor], None]


class Earlier(NamedTuple):
    """What layers that have committed tell the next one.

    spare_rows  rows that their codebooks have left, see `Room`
    all_rows    what those of all layers have left; less than `spare_rows` where later layers took from earlier ones before
    new_scene   what they saw is not more of the same
    """

    spare_rows: int = 0
    all_rows: int = 0
    new_scene: bool = False


NOTHING_YET = Earlier()


@dataclass
class LayerState:
    """Everything one layer remembers, oldest first. `waiting`: rows of a cache that merges which are not encoded yet. `tiles`: of
    each span, where a share of them is read."""

    sink: list[Pair] = field(default_factory=list)
    spans: list[Pair] = field(default_factory=list)
    tiles: list[SpanTiles] = field(default_factory=list)
    waiting: Pair | None = None
    tail: list[Pair] = field(default_factory=list)
    current: tuple[Tensor, Tensor] | None = None
    spans_encoded: int = 0
    encode_calls: int = 0
    # Of keys and of values, the number of the span with which the newest codebook's group began.
    group_starts: list[int] = field(default_factory=lambda: [0, 0])
    # Of keys and of values, what that group has left of the room for codebooks (`KLTCodec.spare_rows`).
    spare_rows: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def history(self) -> list[Pair]:
        """All committed stretches in the order of their frames."""
        return [*self.sink, *self.spans, *self.unpacked]

    @property
    def unpacked(self) -> list[Pair]:
        """What comes behind the spans."""
        return [*([] if self.waiting is None else [self.waiting]), *self.tail]


class LayerCache:
    """Memory of one layer: append, commit, evict, reset. With an `offloader` its packed spans are kept at its home; an
    `observer` is told of every span."""

    observer: Observer | None = None

    def __init__(self, spec: CacheSpec, config: QVGConfig, layer: int, offloader: Offloader | None = None):
        self.spec, self.config, self.layer, self.offloader = spec, config, layer, offloader
        self.codecs, self.exact = spec.codecs(config), ExactCodec(spec.dtype)
        self.span_tokens = spec.span_tokens(config)
        self.state = LayerState()

    def append(self, k: Tensor, v: Tensor) -> None:
        """Keys (before RoPE) and values of the current block, [B, H, S, D]; replaces what was appended since the last commit.

        They are kept by reference until `commit` copies them: do not write to them in between.
        """
        spec, shape = self.spec, tuple(k.shape)
        rows = (spec.batch, spec.heads, spec.head_dim)
        whole_frames = k.ndim == 4 and shape[2] > 0 and shape[2] % spec.tokens_per_frame == 0
        if not whole_frames or (shape[0], shape[1], shape[3]) != rows or v.shape != k.shape:
            raise CacheError(
                f"layer {self.layer} got keys {shape} and values {tuple(v.shape)}, but this cache holds [B, H, S, D] = "
                f"[{spec.batch}, {spec.heads}, whole frames of {spec.tokens_per_frame}, {spec.head_dim}]; "
                "make it from the model's CacheSpec"
            )
        frames = shape[2] // spec.tokens_per_frame
        if frames > spec.chunk_frames:
            raise CacheError(
                f"layer {self.layer} got a block of {frames} frames, but this cache is made for chunks of "
                f"{spec.chunk_frames}; give CacheSpec the chunk_frames of the model"
            )
        self.state.current = (k, v)

    def commit(self, step: Step, earlier: Earlier = NOTHING_YET, rotation: Rotation | None = None) -> Earlier:
        """The current block becomes history; then encode and evict as the policy says. `earlier`: the layers before this one.
        `rotation`: what attention turns the keys by that are encoded, where tiles are made of them. -> the same with this one."""
        state = self.state
        if state.current is None:
            raise CacheError(f"layer {self.layer} has no current block to commit; call attend or append for every layer first")
        chunk = Pair(*(self._told(self.exact.encode(x, EncodeHint()), x) for x in state.current))
        if step.unpin:
            freed = state.sink.pop()
            state.tail[:0] = [] if step.drops else [freed]
        (state.sink if step.to_sink else state.tail).append(chunk)
        state.current = None
        if step.encode_chunks:
            due = state.tail[: step.encode_chunks]
            earlier = self._encode_both(due, earlier)
            if self.config.skips:
                state.tiles.append(_tiles(due, rotation))
            del state.tail[: step.encode_chunks]
        self.evict(step.evict_spans, step.evict_chunks)
        return earlier._replace(spare_rows=earlier.spare_rows + sum(state.spare_rows))

    def encode_rows(self, earlier: Earlier) -> Earlier:
        """Rows that wait, of a cache that merges, become spans as soon as there are enough of them; as `commit`."""
        state = self.state
        while state.waiting is not None and state.waiting.keys.num_tokens >= self.span_tokens:
            due, state.waiting = _split(state.waiting, self.span_tokens)
            earlier = self._encode_both([due], earlier)
        return earlier._replace(spare_rows=earlier.spare_rows + sum(state.spare_rows))

    def _encode_both(self, due: Sequence[Pair], earlier: Earlier) -> Earlier:
        """Stretches become one span."""
        # Values first: what codebooks of both may begin lowers the video's error more where it goes to them.
        values, earlier = self._encode(due, 1, earlier)
        keys, earlier = self._encode(due, 0, earlier)
        self.state.spans.append(Pair(keys, values))
        self.state.spans_encoded += 1
        self._forget_copies()
        return earlier

    def evict(self, spans: int, chunks: int) -> None:
        """Forget the oldest spans and the oldest chunks of the tail. A shared codebook leaves with its last span."""
        del self.state.spans[:spans]
        del self.state.tiles[:spans]
        del self.state.tail[:chunks]
        if spans:
            self._forget_copies()

    def reset(self) -> None:
        """As after `__init__`."""
        self.state = LayerState()

    def _forget_copies(self) -> None:
        if self.offloader is not None:
            self.offloader.forget(self.layer)

    def _encode(self, due: Sequence[Pair], which: int, earlier: Earlier) -> tuple[Span, Earlier]:
        """The span of some chunks' keys (0) or values (1), and whether they begin a new scene."""
        chunks = [pair[which] for pair in due]
        exact = [chunk.values for chunk in chunks if isinstance(chunk, ExactSpan)]
        if len(exact) != len(chunks):
            raise CacheError(
                f"layer {self.layer}: a span that is already encoded came up for encoding again; this is a bug in the policy"
            )
        self.state.encode_calls += 1
        own, codec = sum(self.state.spare_rows), self.codecs[which]
        x = torch.cat(exact, 2) if len(exact) > 1 else exact[0]
        hint = self._hint(which, Room(*(min(rows, earlier.all_rows) for rows in (own, own + earlier.spare_rows))))
        if isinstance(codec, KLTCodec) and isinstance(hint.reuse, TransformCodebook):
            tables = Tables()
            earlier = earlier._replace(new_scene=earlier.new_scene or codec.is_new(x, hint.reuse, tables))
            hint = replace(hint, new_scene=earlier.new_scene, tables=tables)
        span = self._told(codec.encode(x, hint) if self.offloader is None else self.offloader.encode(codec, x, hint), x)
        if hint.reuse is None or not _same_group(span.codebook, hint.reuse):
            self.state.group_starts[which] = self.state.spans_encoded
        elif isinstance(span, TransformSpan):
            self._hand_on(span.codebook, which)
        if isinstance(codec, KLTCodec) and isinstance(span, TransformSpan):
            before, left = self.state.spare_rows[which], codec.spare_rows(span, hint, self.state.spare_rows[which])
            # What was worth more than the room that there was takes all of it; later spans do not pay for the rest.
            self.state.spare_rows[which] = max(left, before - max(0, own + earlier.spare_rows))
            earlier = earlier._replace(all_rows=earlier.all_rows + self.state.spare_rows[which] - before)
        return span, earlier

    def _told(self, span: Span, x: Tensor) -> Span:
        if self.observer is not None:
            self.observer(span, x)
        return span

    def _hand_on(self, codebook: TransformCodebook, which: int) -> None:
        """The group's earlier spans take over the codewords that have grown out of theirs, so that only these are in memory."""
        for number, pair in enumerate(self.state.spans):
            known = pair[which]
            if (
                isinstance(known, TransformSpan)
                and known.codebook.group is codebook.group
                and known.codebook.codewords is not codebook.codewords
            ):
                longer = known.with_codewords(codebook.codewords)
                self.state.spans[number] = pair._replace(keys=longer) if which == 0 else pair._replace(values=longer)

    def _hint(self, which: int, room: Room) -> EncodeHint:
        """Codebooks are trained by the first span of a group and start from the group before."""
        state, config = self.state, self.config
        seed = (config.seed * 1_000_003 + self.layer * 4096 + state.spans_encoded * 8 + which * 4) % (1 << 63)
        last = state.spans[-1][which] if state.spans else None
        codebook: Codebook | None = None if last is None else last.codebook
        shares = state.spans_encoded - state.group_starts[which] < config.spans_per_codebook
        group = [pair[which].codebook for pair in state.spans] if shares and isinstance(codebook, TransformCodebook) else []
        bases = {id(one.basis): one.basis for one in group if isinstance(one, TransformCodebook) and _same_group(one, codebook)}
        return EncodeHint(seed, codebook if shares else None, tuple(bases.values()), room, warm=codebook, checked=True)


def _tiles(due: Sequence[Pair], rotation: Rotation | None) -> SpanTiles:
    """Of what was encoded, from what it was before."""
    keys = _joined(due, 0).float()
    keys = keys if rotation is None else rotate(keys, rotation)
    order = make_order(keys)
    means = tile_means(keys, order)
    del keys
    return SpanTiles(order, means, tile_means(_joined(due, 1), order))


def _joined(due: Sequence[Pair], which: int) -> Tensor:
    """Keys (0) or values (1) of some stretches that are exact."""
    exact = [span.values for span in (pair[which] for pair in due) if isinstance(span, ExactSpan)]
    return exact[0] if len(exact) == 1 else torch.cat(exact, 2)


def _split(waiting: Pair, tokens: int) -> tuple[Pair, Pair | None]:
    """The first rows, and the others, if there are any, in memory of their own."""
    first, rest = [], []
    for span in waiting:
        assert isinstance(span, ExactSpan)
        first.append(ExactSpan(span.values[:, :, :tokens].contiguous()))
        rest.append(ExactSpan(span.values[:, :, tokens:].clone()))
    return Pair(*first), Pair(*rest) if rest[0].num_tokens else None


def codebook_sizes(spans: Sequence[Pair], which: int) -> list[CodebookSize]:
    """Of every group of spans of codec "klt", the oldest first, what its codebooks hold."""
    groups: dict[int, dict[int, TransformCodebook]] = {}
    for pair in spans:
        codebook = pair[which].codebook
        if isinstance(codebook, TransformCodebook):
            groups.setdefault(id(codebook.group), {})[id(codebook.basis)] = codebook
    return [
        CodebookSize(
            next(iter(codebooks.values())).codewords.values.shape[2],
            tuple(codebook.basis.directions for codebook in codebooks.values()),
        )
        for codebooks in groups.values()
    ]


def _same_group(one: Codebook | None, other: Codebook | None) -> bool:
    if isinstance(one, TransformCodebook) and isinstance(other, TransformCodebook):
        return one.group is other.group
    return one is other
