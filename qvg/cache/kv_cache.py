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
from ..attention.choice import Readings
from ..attention.exact import History, Pair, attend
from ..attention.history import Turn, Turns
from ..attention.joint import Beside, with_beside
from ..attention.workspace import Workspace
from ..codec.base import BookSize, TurningCodec
from ..codec.span import ExactSpan, Span, storage_bytes
from ..config import QVGConfig
from ..errors import CacheError, ConfigError, NonFiniteError, TooLargeError
from ..positions.projective import Projector
from ..positions.rope import GridRope, Rotation, rotate, turn_
from .layer_cache import LayerCache, Observer, book_sizes
from .offload import Depot, Places
from .policy import Layout, Step
from .spec import CacheBytes, CacheSpec

Origin = tuple[float, float, float]

# Keys beyond it times queries as large overflow float32; eight-bit rows end at 127 * 65504, and need room for sums.
LARGEST_VALUE = 1e18
LARGEST_VALUES = {"klt": 2.0**20}


def _as_origins(origins: Sequence[Sequence[float]] | Tensor) -> list[Origin]:
    rows = origins.tolist() if isinstance(origins, Tensor) else origins
    return [(float(t), float(r), float(c)) for t, r, c in rows]


@dataclass
class _Commit:
    """A commit under way: what it does, the block's frames, and how many layers have done it."""

    step: Step
    frames: int
    layers: int = 0


class KVCache:
    """Keys and values of all layers. Use it in a `with`: memory is freed when a run ends, fails or is interrupted.

    `rope` turns keys and queries on their way into attention; without it they are used as they come. `attend` and `commit` are
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
        self.depot = Depot(home) if self.config.offloads else None
        self.layers = [LayerCache(spec, self.config, layer, self.depot) for layer in range(spec.layers)]
        self.workspace = Workspace(self.config.workspace_mb << 20)
        self.readings = Readings(self.config)
        self._begin()

    def _begin(self) -> None:
        self.layout = Layout()
        self.frames_committed = 0
        self.spans_due = 0
        self._origins: list[Origin] = []
        self._current_origins: list[Origin] = []
        self._current_rotation: Rotation | None = None
        self._device = torch.device("cpu")
        self._commit: _Commit | None = None
        self._broken = False

    def place(self, origins: Sequence[Sequence[float]] | Tensor) -> None:
        """Positions of the current block: (time, row, column) of each frame's first token. Needed before `attend` with a rope."""
        self._current_origins = _as_origins(origins)
        self._current_rotation = None

    def replace_origins(self, origins: Sequence[Sequence[float]] | Tensor) -> None:
        """Other positions (time, row, column) for the frames in memory, oldest first: keys are turned to them when they are next
        read. Raises CacheError for another number of frames, and where keys are kept turned."""
        self.check_usable()
        if self.rope is None or self.config.keys == "after_rope":
            raise CacheError(
                "this cache keeps keys as they were turned, so their positions are fixed; use a rope and before_rope"
            )
        rows = _as_origins(origins)
        if len(rows) != self.layout.frames:
            raise CacheError(f"{len(rows)} positions were given for {self.layout.frames} frames in memory; give one for each")
        self._origins = rows

    @torch.no_grad()
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, beside: Beside | None = None) -> Tensor:
        """Attention of the current block over history, itself and `beside`. All [B, H, S, D], before RoPE; k and v replace the
        block's."""
        self._append(layer, q, k, v)
        if self.rope is None:
            return self._read(layer, q, with_beside(beside, k, v))
        turn = self._block_rotation(k)
        self._device = k.device
        q, k = rotate(q, turn), rotate(k, turn)
        if self.config.keys == "after_rope":
            self.layers[layer].append(k, v)
            return self._read(layer, q, with_beside(beside, k, v))
        return self._read(
            layer, q, with_beside(beside, k, v), lambda which, start, stop: None if which else self._rotation(start, stop)
        )

    @torch.no_grad()
    def attend_projected(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, projector: Projector, *, beside: Beside | None = None
    ) -> Tensor:
        """`attend` in coordinates of the cameras instead of along a rope, over the same stored keys and values, so that a layer
        may do both. `projector` holds the cameras of all frames in memory, oldest first, and of the block."""
        if self.config.keys == "after_rope":
            raise CacheError(
                "this cache keeps keys as they were turned, but cameras take them as they were; use keys before_rope"
            )
        frames = self.layout.frames + k.shape[2] // self.spec.tokens_per_frame
        if projector.frames != frames:
            raise CacheError(f"{projector.frames} cameras were given for {frames} frames in memory and block; give one for each")
        self._append(layer, q, k, v)
        q, k, v = projector.block(q, k, v)
        return projector.leave(self._read(layer, q, with_beside(beside, k, v), projector.turn, projected=True))

    def _append(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.check_usable(layer)
        if q.ndim != 4 or (*q.shape[:2], q.shape[3]) != (self.spec.batch, self.spec.heads, self.spec.head_dim):
            raise CacheError(
                f"layer {layer} got queries {tuple(q.shape)}, but this cache serves [B, H, S, D] = "
                f"[{self.spec.batch}, {self.spec.heads}, S, {self.spec.head_dim}]; make it from the model's CacheSpec"
            )
        self.layers[layer].append(k, v)

    def _read(
        self, layer: int, q: Tensor, current: tuple[Tensor, Tensor], turns: Turns | None = None, projected: bool = False
    ) -> Tensor:
        """Attention of turned queries over history, turned by `turns`, and the block, which has been turned."""
        exact, codec = self.layers[layer].exact, self.layers[layer].codecs.keys

        def decode(span: Span, tokens: slice, heads: slice, out: Tensor, turn: Turn | None) -> None:
            method = exact if isinstance(span, ExactSpan) else codec
            if isinstance(turn, Rotation) and out.device.type == "cuda" and isinstance(method, TurningCodec):
                method.decode(span, tokens, heads, out, turn)
                return
            method.decode(span, tokens, heads, out)
            if isinstance(turn, Rotation):
                turn_(out, turn)
            elif turn is not None:
                turn.apply_(out)

        pairs, per_frame = self._history(layer, q.device), self.spec.tokens_per_frame
        hidden = (len(self.layers[layer].state.sink), self.layout.hidden * per_frame)
        history = History(pairs, current, decode, turns, projected, per_frame, hidden)
        return attend(q, history, self.workspace, self.readings.choose(q, projected), self.config.backend)

    def _history(self, layer: int, device: torch.device) -> list[Pair]:
        """What a layer remembers, on the device where it attends."""
        state = self.layers[layer].state
        if self.depot is None:
            return state.history
        following = (layer + 1) % len(self.layers)
        spans = self.depot.visit(device, (layer, state.spans), (following, self.layers[following].state.spans))
        return [*state.sink, *spans, *state.tail]

    def observe(self, observer: Observer) -> None:
        """From now on tell `observer` of every span as soon as it is made, and what it was made of."""
        for layer in self.layers:
            layer.observer = observer

    def explain(self) -> list[str]:
        """How this cache was read so far, and why so: a line for every kind of queries that came up."""
        return [reading.text() for reading in self.readings.all()]

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
        self._check_placed(frames)
        self._check_finite(self.layers)
        self._commit = _Commit(self.policy.commit(self.layout, frames), frames)
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
        self._check_placed(frames)
        self._check_finite(self.layers[layer : layer + 1])
        if self._commit is None:
            self._commit = _Commit(self.policy.commit(self.layout, frames), frames)
        elif frames != self._commit.frames:
            raise CacheError(f"layer {layer} holds {frames} frames, but layers before it committed {self._commit.frames}")
        self._commit_one(layer)

    def release(self, layer: int) -> None:
        """The layer's block will be attended again before it is committed: forget it meanwhile."""
        self.layers[layer].state.current = None

    def _commit_one(self, layer: int) -> None:
        assert self._commit is not None
        self._broken = True
        others = sum(sum(one.state.spare_rows) for one in self.layers if one.layer != layer)
        self.layers[layer].commit(self._commit.step, others)
        self._broken = False
        self._commit.layers += 1
        if self._commit.layers == self.spec.layers:
            step, frames, self._commit = self._commit.step, self._commit.frames, None
            self._forget_origins(step, frames)
            self.layout = step.layout
            self.frames_committed += frames
            self.spans_due += step.encode_chunks > 0

    def check_usable(self, layer: int | None = None) -> None:
        """Raise CacheError if a commit was cut off half-way; while layers commit one by one, those that have not yet are
        usable."""
        under_way = self._commit is not None and (layer is None or layer < self._commit.layers)
        if self._broken or under_way:
            raise CacheError(
                "an earlier commit failed half-way, so layers disagree about history; call reset() and start the run again"
            )

    def reset(self) -> None:
        """As after `__init__`; all memory is given back."""
        for layer in self.layers:
            layer.reset()
        if self.depot is not None:
            self.depot.clear()
        self.workspace.clear()
        self._begin()

    def resume(self, layout: Layout, frames_committed: int, spans_due: int, origins: Sequence[Origin]) -> None:
        """Take over a history that was put into the layers from a file; see `session.cache_file`."""
        self.layout, self.frames_committed, self.spans_due, self._origins = layout, frames_committed, spans_due, list(origins)

    @property
    def origins(self) -> list[Origin]:
        """Positions of the frames in memory, oldest first; empty without a rope."""
        return list(self._origins)

    def nbytes(self) -> CacheBytes:
        """Bytes of the history, counted from the storages that are there; shared ones once."""
        spans = [span for layer in self.layers for pair in layer.state.history for span in pair]
        return CacheBytes(**storage_bytes(spans))

    def codebooks(self) -> list[tuple[list[BookSize], list[BookSize]]] | None:
        """The codebooks that every layer has begun, for `CacheSpec.predict`; None for codecs that begin one for every so many
        spans, whatever is in them."""
        if self.config.codec != "klt":
            return None
        return [(book_sizes(layer.state.spans, 0), book_sizes(layer.state.spans, 1)) for layer in self.layers]

    def places(self) -> Places:
        """Where the bytes of `nbytes` are."""
        total = self.nbytes().total
        if self.depot is None or not self.depot.away:
            return Places(total)
        packed = sum(storage_bytes(span for layer in self.layers for pair in layer.state.spans for span in pair).values())
        return Places(total - packed, packed, self.depot.peak)

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
        if expected == 0:
            need = self.config.sink_frames + self.policy.span_chunks * self.spec.chunk_frames + self.config.recent_frames
            raise CacheError(
                f"nothing was encoded in {self.frames_committed} frames, so this run says nothing about codec "
                f"{self.config.codec!r}; generate at least {need} frames or use shorter spans"
            )

    def __enter__(self) -> KVCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.reset()

    def _check_placed(self, frames: int) -> None:
        if self.rope is not None and len(self._current_origins) != frames:
            raise CacheError(
                f"{len(self._current_origins)} frames were placed, but the block has {frames}; call place() for every block"
            )

    def _check_finite(self, layers: Sequence[LayerCache]) -> None:
        """Two numbers per layer and tensor, one synchronisation for all of them."""
        limit = LARGEST_VALUES.get(self.config.codec, LARGEST_VALUE)
        ends = torch.stack([end.float() for layer in layers for x in layer.state.current or () for end in x.aminmax()])
        if bool((ends.abs() <= limit).all()):  # false for NaN
            return
        for layer in layers:
            for name, x in zip(("keys", "values"), layer.state.current or (), strict=True):
                sizes = x.float().abs().unflatten(2, (-1, self.spec.tokens_per_frame)).amax(-1).amax(-1).amax(0).amax(0)
                if bool((sizes <= limit).all()):
                    continue
                at = int((~(sizes <= limit)).nonzero()[0])
                place = (layer.layer, self.frames_committed + at, name, self._commit is not None)
                if not bool(sizes[at].isfinite()):
                    raise NonFiniteError(*place)
                raise TooLargeError(*place, float(sizes[at]), limit, self.config.codec)

    def _forget_origins(self, step: Step, frames: int) -> None:
        """Keep positions in step with the layers: the block's join, those of evicted frames (behind the sink) leave."""
        evicted = self.layout.frames + frames - step.layout.frames
        if self.rope is not None:
            self._origins.extend(self._current_origins)
            sink = sum(step.layout.sink)
            del self._origins[sink : sink + evicted]
        self._current_origins, self._current_rotation = [], None

    def _block_rotation(self, k: Tensor) -> Rotation:
        """Angles of the current block, computed once for all layers."""
        assert self.rope is not None
        if len(self._current_origins) * self.spec.tokens_per_frame != k.shape[2]:
            raise CacheError(
                f"{len(self._current_origins)} frames were placed, but the block has {k.shape[2]} tokens of "
                f"{self.spec.tokens_per_frame} per frame; call place() with one origin per frame before attend()"
            )
        if self._current_rotation is None:
            self._current_rotation = self.rope.rotation(torch.tensor(self._current_origins, device=k.device))
        return self._current_rotation

    def _rotation(self, start: int, stop: int) -> Rotation:
        """Angles of history tokens start:stop, made anew each time: angles of a long history would outweigh its codes."""
        assert self.rope is not None
        per_frame = self.spec.tokens_per_frame
        first, last = start // per_frame, -(-stop // per_frame)
        origins = torch.tensor(self._origins[first:last], device=self._device)
        return self.rope.rotation(origins).tokens(start - first * per_frame, stop - first * per_frame)
