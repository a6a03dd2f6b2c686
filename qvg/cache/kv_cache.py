"""The cache: one `LayerCache` per layer, and `KVCache`, the list of them that models and samplers talk to.

Life of a chunk: `attend(layer, q, k, v)` holds its keys and values as the current block and overwrites them at every denoise
step; `commit()` makes them history; when the policy says so, the oldest exact chunks become one encoded span, once and for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from ...kernels import require_backend
from ...kernels.rotary import Angles
from ...kernels.turn import turned
from ..attention.history import PositionEncodings
from ..attention.joint import JointKV, prepend_joint
from ..attention.workspace import Workspace
from ..codec.base import CodebookSize
from ..codec.span import storage_bytes
from ..config import QVGConfig
from ..errors import CacheError, ConfigError
from ..positions.frames import FramePositions, Origin, Origins
from ..positions.projective import Projector
from ..positions.rope import GridRope, Rotation
from .finite import check_finite
from .layer_cache import NOTHING_YET, Earlier, LayerCache, Observer, codebook_sizes
from .merge import Merger
from .offload import Offloader, Placement
from .policy import Layout, Step
from .reading import Reader
from .spec import CacheBytes, CacheSpec


@dataclass
class _Commit:
    """A commit under way: what it does, the block's frames, how many layers have done it, and what they tell the next one."""

    step: Step
    frames: int
    layers: int = 0
    earlier: Earlier = NOTHING_YET
    rotation: Rotation | None = None


class KVCache:
    """Keys and values of all layers. Use it in a `with`: memory is freed when a run ends, fails or is interrupted.

    `rope` rotates keys and queries on their way into attention; without it they are used as they come. `attend` and `commit` are
    all a backbone needs. `home` is the device whose memory packed spans are kept in with `offload="cpu"`.
    """

    def __init__(
        self,
        spec: CacheSpec,
        config: QVGConfig | None = None,
        rope: GridRope | None = None,
        home: torch.device | str = "cpu",
    ):
        self.spec, self.config, self.rope = spec, config or QVGConfig.preset("qvg"), rope
        self.policy = spec.check(self.config)
        require_backend(self.config.backend)
        if rope is not None and rope.tokens_per_frame != spec.tokens_per_frame:
            raise ConfigError(
                f"rope has {rope.tokens_per_frame} tokens per frame, but the cache {spec.tokens_per_frame}; "
                "make both from one model"
            )
        if rope is not None and rope.head_dim != spec.head_dim:
            raise ConfigError(
                f"rope turns heads of {rope.head_dim} channels, but the cache's have {spec.head_dim}; make both from one model"
            )
        self.offloader = Offloader(home) if self.config.offloads else None
        self.layers = [LayerCache(spec, self.config, layer, self.offloader) for layer in range(spec.layers)]
        self.reader = Reader(self.config, spec.tokens_per_frame, self.offloader)
        self.positions = FramePositions(rope, spec.tokens_per_frame, self.reader.angle_bytes)
        self.merger = _merger(spec, self.config, rope)
        self._begin()

    def _begin(self) -> None:
        self.layout = Layout()
        self.frames_committed = 0
        self.spans_due = 0
        self._commit: _Commit | None = None
        self._pins = False
        self._broken = False
        if self.merger is not None:
            self.merger.clear()

    def place(self, origins: Origins) -> None:
        """Positions of the current block: (time, row, column) of each frame's first token. Needed before `attend` with a rope."""
        self.positions.place(origins)

    def replace_origins(self, origins: Origins) -> None:
        """Other positions (time, row, column) for the frames in memory, oldest first: keys are rotated to them when they are next
        read. Raises CacheError for another number of frames, and where keys are kept rotated."""
        self.check_usable()
        if self.rope is None or self.config.keys == "after_rope":
            raise CacheError(
                "this cache keeps keys as they were rotated, so their positions are fixed; use a rope and before_rope"
            )
        if self.merger is not None:
            raise CacheError(
                "this cache merges tokens of one place, so frames cannot be moved apart from each other; use merge 0"
            )
        if self.config.skips:
            raise CacheError("this cache has tiles of tokens that are alike where they are, so frames cannot move; use sparse 0")
        self.positions.replace(origins)

    @torch.no_grad()
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, joint: JointKV | None = None) -> Tensor:
        """Attention of the current block over history, itself and `joint`. All [B, H, S, D], before RoPE; k and v replace the
        block's."""
        self._append(layer, q, k, v)
        if self.rope is None:
            return self._read(layer, q, prepend_joint(joint, k, v))
        rotation = self.positions.block_rotation(k)
        q, k = (turned(x, rotation, self.config.backend) for x in (q, k))
        if self.config.keys == "after_rope":
            self._hold(layer, k, v)
            return self._read(layer, q, prepend_joint(joint, k, v))

        def of_keys(which: int, start: int, stop: int) -> Angles | None:
            return None if which else self.positions.history_angles(start, stop, k.device)

        return self._read(layer, q, prepend_joint(joint, k, v), of_keys)

    @torch.no_grad()
    def attend_projected(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, projector: Projector, *, joint: JointKV | None = None
    ) -> Tensor:
        """`attend` in coordinates of the cameras instead of along a rope, over the same stored keys and values, so that a layer
        may do both. `projector` holds the cameras of all frames in memory, oldest first, and of the block."""
        if self.config.keys == "after_rope":
            raise CacheError(
                "this cache keeps keys as they were rotated, but cameras take them as they were; use keys before_rope"
            )
        if self.merger is not None:
            raise CacheError(
                "this cache merges tokens of one place, but cameras take a token as it was seen by its own frame's; use merge 0"
            )
        if self.config.skips:
            raise CacheError("this cache has tiles of keys as a rope turns them, but cameras turn them otherwise; use sparse 0")
        frames = self.layout.frames + k.shape[2] // self.spec.tokens_per_frame
        if projector.frames != frames:
            raise CacheError(f"{projector.frames} cameras were given for {frames} frames in memory and block; give one for each")
        self._append(layer, q, k, v)
        projector = projector.on(q.device)
        backend = self.config.backend
        q, k, v = projector.block(q, k, v, backend)
        return projector.leave(self._read(layer, q, prepend_joint(joint, k, v), projector.encoding, projected=True), backend)

    def _append(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.check_usable(layer)
        for name, given in (("queries", q), ("keys", k), ("values", v)):
            if not isinstance(given, Tensor):
                raise CacheError(f"layer {layer} got {name} of type {type(given).__name__}; give torch tensors")
        if q.ndim != 4 or (*q.shape[:2], q.shape[3]) != (self.spec.batch, self.spec.heads, self.spec.head_dim):
            raise CacheError(
                f"layer {layer} got queries {tuple(q.shape)}, but this cache serves [B, H, S, D] = "
                f"[{self.spec.batch}, {self.spec.heads}, S, {self.spec.head_dim}]; make it from the model's CacheSpec"
            )
        self._hold(layer, k, v)

    def _hold(self, layer: int, k: Tensor, v: Tensor) -> None:
        """The current block's keys and values, for `commit`."""
        self.layers[layer].append(k, v)

    def _read(
        self,
        layer: int,
        q: Tensor,
        current: tuple[Tensor, Tensor],
        encodings: PositionEncodings | None = None,
        projected: bool = False,
    ) -> Tensor:
        """Attention of q over history and block, see `Reader.attend`."""
        log_counts = None if self.merger is None else self.merger.log_counts
        return self.reader.attend(self.layers, layer, q, current, encodings, projected, self.layout.hidden, log_counts)

    def observe(self, observer: Observer) -> None:
        """From now on tell `observer` of every span as soon as it is made, and what it was made of."""
        for layer in self.layers:
            layer.observer = observer

    def explain(self) -> list[str]:
        """How this cache was read so far, and why so: a line for every kind of queries that came up."""
        return [reading.text() for reading in self.reader.readings.all()]

    @torch.no_grad()
    def commit(self) -> None:
        """The current block of every layer becomes history. NaN, infinity or values too large to be kept right raise
        NonFiniteError (TooLargeError) and commit nothing."""
        self.check_usable()
        currents = [layer.state.current for layer in self.layers]
        if any(current is None for current in currents):
            missing = currents.index(None)
            raise CacheError(f"layer {missing} has no current block to commit; call attend or append for every layer first")
        tokens = {current[0].shape[2] for current in currents if current is not None}
        if len(tokens) > 1:
            raise CacheError(f"layers hold blocks of {sorted(tokens)} tokens; every layer must see the same block before commit")
        frames = tokens.pop() // self.spec.tokens_per_frame
        self.positions.check_placed(frames)
        check_finite(self.layers, self.frames_committed, under_way=False)
        self._commit = self._begun(frames)
        for layer in range(self.spec.layers):
            self._commit_one(layer)

    @torch.no_grad()
    def commit_layer(self, layer: int) -> None:
        """`commit` for one layer as soon as it has attended to the finished block, so that one layer's block at a time is there
        before it is encoded. Call it for every layer, in order; the last one ends the commit. Raises NonFiniteError as `commit`
        does, but earlier layers have committed by then: the run is over."""
        self.check_usable(layer)
        current = self.layers[layer].state.current
        expected = 0 if self._commit is None else self._commit.layers
        if current is None or layer != expected:
            raise CacheError(
                f"layer {layer} came up for commit, but layer {expected} is next and must have attended; go in order"
            )
        frames = current[0].shape[2] // self.spec.tokens_per_frame
        self.positions.check_placed(frames)
        check_finite(self.layers[layer : layer + 1], self.frames_committed, self._commit is not None)
        if self._commit is None:
            self._commit = self._begun(frames)
        elif frames != self._commit.frames:
            raise CacheError(f"layer {layer} holds {frames} frames, but layers before it committed {self._commit.frames}")
        self._commit_one(layer)

    def pin_next(self) -> None:
        """The next block that is committed stays behind the sink until another one is pinned, as the first of a new shot. Raises
        CacheError with a study's and merged memories, which know no places."""
        if self.merger is not None or self.config.skips:
            raise CacheError(
                "this cache puts tokens together by what they are like, so no block can be pinned; use merge 0, sparse 0"
            )
        self._pins = True

    def release(self, layer: int) -> None:
        """The layer's block will be attended again before it is committed: forget it meanwhile."""
        self.layers[layer].state.current = None

    def _begun(self, frames: int) -> _Commit:
        rows = sum(sum(layer.state.spare_rows) for layer in self.layers)
        step = self.policy.pin(self.layout, frames) if self._pins else self.policy.commit(self.layout, frames)
        return _Commit(step, frames, earlier=Earlier(all_rows=rows), rotation=self._rotation_of_due(step))

    def _rotation_of_due(self, step: Step) -> Rotation | None:
        """What attention turns the keys by that are about to be encoded, where tiles are made of them as it sees them."""
        current = self.layers[0].state.current
        if not self.config.skips or not step.encode_chunks or self.config.keys == "after_rope" or current is None:
            return None
        layout = self.layout
        first = sum(layout.sink) + sum(layout.spans) - layout.hidden
        return self.positions.coming_rotation(first, step.layout.spans[-1], current[0].device)

    def _commit_one(self, layer: int) -> None:
        assert self._commit is not None
        self._broken = True
        self.reader.forget(self._commit.layers)
        self._commit.earlier = self.layers[layer].commit(self._commit.step, self._commit.earlier, self._commit.rotation)
        self._broken = False
        self._commit.layers += 1
        if self._commit.layers == self.spec.layers:
            before, step, frames, self._commit = self.layout, self._commit.step, self._commit.frames, None
            evicted = self.layout.frames + frames - step.layout.frames
            if step.pins:
                freed = sum(before.sink) + frames - sum(step.layout.sink)
                spans = sum(before.spans) - before.hidden
                self.positions.pin(sum(before.sink), freed, spans, evicted - freed * step.drops, step.drops)
            else:
                self.positions.commit(sum(step.layout.sink), evicted)
            self._pins = False
            self.layout = step.layout
            self.frames_committed += frames
            self.spans_due += step.encode_chunks > 0
            if self.merger is not None:
                self._merge(before, step)

    def _merge(self, before: Layout, step: Step) -> None:
        """What the recent frames no longer hold becomes rows, in all layers at once: until the last one has committed, each of
        them still attends to what it was."""
        assert self.merger is not None
        if step.merge_chunks:
            self._broken = True
            self.merger.absorb(self.layers, before, step.merge_chunks, self.positions.committed)
            earlier = Earlier(all_rows=sum(sum(layer.state.spare_rows) for layer in self.layers))
            for number, layer in enumerate(self.layers):
                self.reader.forget(number)
                earlier = layer.encode_rows(earlier)
            self._broken = False
        self.spans_due = self.merger.spans
        self.positions.places = self.merger.settle(step.layout, self.positions.committed)

    def check_usable(self, layer: int | None = None) -> None:
        """Raise CacheError if a commit was cut off half-way, and for a layer that is not there; while layers commit one by one,
        those that have not yet are usable."""
        if layer is not None and not 0 <= layer < self.spec.layers:
            raise CacheError(
                f"layer {layer} is asked for, but this cache has {self.spec.layers}, from 0 on; make it from the model's shape"
            )
        under_way = self._commit is not None and (layer is None or layer < self._commit.layers)
        if self._broken or under_way:
            raise CacheError(
                "an earlier commit failed half-way, so layers disagree about history; call reset() and start the run again"
            )

    def reset(self) -> None:
        """As after `__init__`; all memory is given back."""
        for layer in self.layers:
            layer.reset()
        if self.offloader is not None:
            self.offloader.clear()
        self.reader.clear()
        self.positions.clear()
        self._begin()

    def resume(
        self,
        layout: Layout,
        frames_committed: int,
        spans_due: int,
        origins: Sequence[Origin],
        rows: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Take over a history that was put into the layers from a file; see `session.cache_file`. `rows`: tokens and counts of a
        cache that merges, see `Rows`."""
        self.layout, self.frames_committed, self.spans_due = layout, frames_committed, spans_due
        self.positions.resume(origins)
        if self.merger is not None and rows is not None:
            self.merger.rows.restore(*rows, origins)
            self.positions.places = self.merger.settle(layout, origins)

    @property
    def workspace(self) -> Workspace:
        """What attention works in."""
        return self.reader.workspace

    @property
    def origins(self) -> list[Origin]:
        """Positions of the frames in memory, oldest first; empty without a rope."""
        return list(self.positions.committed)

    def nbytes(self) -> CacheBytes:
        """Bytes of the history, counted from the storages that are there; shared ones once."""
        spans = [span for layer in self.layers for pair in layer.state.history for span in pair]
        tiles = sum(one.nbytes for layer in self.layers for one in layer.state.tiles)
        return CacheBytes(**storage_bytes(spans), rows=0 if self.merger is None else self.merger.rows.nbytes, tiles=tiles)

    @property
    def merged_rows(self) -> int | None:
        """Rows of a cache that merges tokens, None of one that does not; for `CacheSpec.predict`."""
        return None if self.merger is None else len(self.merger.rows)

    def codebooks(self) -> list[tuple[list[CodebookSize], list[CodebookSize]]] | None:
        """The codebooks that every layer has begun, for `CacheSpec.predict`; None for codecs that begin one for every so many
        spans, whatever is in them."""
        if self.config.codec != "klt":
            return None
        return [(codebook_sizes(layer.state.spans, 0), codebook_sizes(layer.state.spans, 1)) for layer in self.layers]

    def placement(self) -> Placement:
        """Where the bytes of `nbytes` are."""
        total = self.nbytes().total
        if self.offloader is None or not self.offloader.away:
            return Placement(total)
        packed = sum(storage_bytes(span for layer in self.layers for pair in layer.state.spans for span in pair).values())
        return Placement(total - packed, packed, self.offloader.peak)

    def verify_encoded(self) -> None:
        """Raise CacheError unless every layer's codec was called, and exactly as often as the policy asked."""
        expected = self.spans_due
        calls = {layer.state.encode_calls for layer in self.layers}
        kinds = {span.codec for layer in self.layers for pair in layer.state.spans for span in pair}
        if calls != {2 * expected} or kinds - {self.config.codec}:
            raise CacheError(
                f"the codec was called {sorted(calls)} times per layer and left {sorted(kinds)} spans, but the policy asked for "
                f"{2 * expected} calls of {self.config.codec!r}; this is a bug, please report it with the cache's settings"
            )
        if expected == 0 and self.merger is None:
            need = self.config.sink_frames + self.policy.span_chunks * self.spec.chunk_frames + self.config.recent_frames
            raise CacheError(
                f"nothing was encoded in {self.frames_committed} frames, so this run says nothing about codec "
                f"{self.config.codec!r}; generate at least {need} frames or use shorter spans"
            )

    def __enter__(self) -> KVCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.reset()


def _merger(spec: CacheSpec, config: QVGConfig, rope: GridRope | None) -> Merger | None:
    """What merges a cache's tokens, if its settings ask for it. ConfigError where nothing says where tokens are."""
    if not config.merges:
        return None
    if rope is None:
        raise ConfigError(
            f"merge {config.merge:g} compares tokens of one place, but this cache is given no rope that says where they are; use "
            "merge 0 with models whose keys come rotated"
        )
    return Merger(config, rope, spec.span_tokens(config))
