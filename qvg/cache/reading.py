"""How attention reads a layer of the cache: decoded by its codecs, encoded by position, on the device where the queries are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.launch import on_gpu
from ..attention.choice import Reading, Readings
from ..attention.exact import attend
from ..attention.history import Decode, History, LogCounts, PositionEncoding, PositionEncodings
from ..attention.plan import DecodePlan, Pair
from ..attention.sparse import LEAST_TOKENS, SparseHistory, SparsePlan, attend_sparse
from ..attention.workspace import Workspace
from ..codec.base import RotatingCodec
from ..codec.span import ExactSpan, Span
from ..config import QVGConfig
from ..positions.rope import Rotation, rotate_
from .layer_cache import LayerCache
from .offload import Offloader

_SHARE_OF_ANGLES = 16


class Reader:
    """Attention over what layers remember. Holds the workspace that all of them share, and how they were read."""

    def __init__(self, config: QVGConfig, tokens_per_frame: int, offloader: Offloader | None):
        self._config, self._tokens_per_frame, self._offloader = config, tokens_per_frame, offloader
        # Angles of the frames in memory have their share of it.
        self.angle_bytes = (config.workspace_mb << 20) // _SHARE_OF_ANGLES
        self.workspace = Workspace((config.workspace_mb << 20) - self.angle_bytes)
        self.readings = Readings(config)
        self._plans: dict[int, DecodePlan] = {}
        self._sparse_plans: dict[int, SparsePlan] = {}

    def attend(
        self,
        layers: Sequence[LayerCache],
        layer: int,
        q: Tensor,
        current: tuple[Tensor, Tensor],
        encodings: PositionEncodings | None = None,
        projected: bool = False,
        hidden_frames: int = 0,
        log_counts: LogCounts | None = None,
    ) -> Tensor:
        """Attention of q [B, H, S, D] over a layer's history and the current block. Queries and block are encoded by position
        already, `encodings` does it for the history; `hidden_frames` behind its sink are not seen; `log_counts` as in
        `History`."""
        own, hidden_tokens = layers[layer], hidden_frames * self._tokens_per_frame
        if self._config.skips:
            # Of a span that a window cuts the rest is read whole.
            spans = own.state.spans[int(hidden_tokens > 0) :]
            reading = self.readings.choose_sparse(sum(pair.keys.num_tokens for pair in spans), LEAST_TOKENS)
            if reading.mode == "sparse":
                return self._attend_sparse(own, layer, q, current, encodings, hidden_tokens, reading)
        else:
            reading = self.readings.choose(q, projected)
        hidden = (len(own.state.sink), hidden_tokens)
        plan = self._plan(layer, self._pairs(layers, layer, q.device), hidden)
        decode, per_frame = _decoder(own), self._tokens_per_frame
        history = History(plan, current, decode, encodings, projected, per_frame, self._config.backend, log_counts)
        return attend(q, history, self.workspace, reading, self._config.backend)

    def _attend_sparse(
        self,
        own: LayerCache,
        layer: int,
        q: Tensor,
        current: tuple[Tensor, Tensor],
        encodings: PositionEncodings | None,
        hidden_tokens: int,
        reading: Reading,
    ) -> Tensor:
        """The same from a share of the tiles."""
        state, config = own.state, self._config
        plan = self._sparse_plans.get(layer)
        if plan is None or not plan.fits(state.history, hidden_tokens):
            parts = (state.sink, state.spans, state.unpacked, state.tiles)
            self._sparse_plans[layer] = plan = SparsePlan(*parts, hidden_tokens)
        history = SparseHistory(plan, current, _decoder(own), config.sparse, encodings, self._tokens_per_frame, config.backend)
        return attend_sparse(q, history, self.workspace, reading, config.backend)

    def clear(self) -> None:
        """Give everything back."""
        self.workspace.clear()
        self._plans.clear()
        self._sparse_plans.clear()

    def forget(self, layer: int) -> None:
        """The layer is about to change: what it gives up must not be kept alive by a plan."""
        self._plans.pop(layer, None)
        self._sparse_plans.pop(layer, None)

    def _plan(self, layer: int, pairs: list[Pair], hidden: tuple[int, int]) -> DecodePlan:
        """Made once for a block. Copies of offloaded spans come and go, and so do plans for them."""
        plan = self._plans.get(layer)
        if plan is None or not plan.fits(pairs, hidden):
            plan = DecodePlan(pairs, hidden)
            if self._offloader is None:
                self._plans[layer] = plan
        return plan

    def _pairs(self, layers: Sequence[LayerCache], layer: int, device: torch.device) -> list[Pair]:
        """What a layer remembers, on the device where it attends."""
        state = layers[layer].state
        if self._offloader is None:
            return state.history
        following = (layer + 1) % len(layers)
        spans = self._offloader.fetch(device, (layer, state.spans), (following, layers[following].state.spans))
        return [*state.sink, *spans, *state.unpacked]


def _decoder(layer: LayerCache) -> Decode:
    """Decodes a layer's spans. Kernels rotate keys as they decode them; everything else is encoded by position afterwards."""
    exact, codec = layer.exact, layer.codecs.keys

    def decode(span: Span, tokens: slice, heads: slice, out: Tensor, encoding: PositionEncoding | None) -> None:
        method = exact if isinstance(span, ExactSpan) else codec
        if isinstance(encoding, Rotation) and on_gpu(out.device) and isinstance(method, RotatingCodec):
            method.decode(span, tokens, heads, out, encoding)
            return
        method.decode(span, tokens, heads, out)
        if isinstance(encoding, Rotation):
            rotate_(out, encoding)
        elif encoding is not None:
            encoding.apply_(out)

    return decode
