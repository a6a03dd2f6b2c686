"""What one layer of a study's cache remembers: frame by frame, each in the coding that its age and content give it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.plan import Pair
from ..cache.layer_cache import NOTHING_YET, Earlier, LayerCache
from ..cache.offload import Offloader
from ..cache.policy import Step
from ..cache.spec import CacheSpec
from ..codec import Codec, KeyValueCodecs
from ..codec.base import EncodeHint
from ..codec.parts import PartsCodec
from ..codec.span import ExactSpan, Span
from ..config import QVGConfig
from ..errors import CacheError
from ..positions.rope import Rotation
from . import importance
from .foreground import MixedCodec, TemporalVariance, foreground_mask, pack_mask
from .method import StudyMethod
from .plan import count, levels


@dataclass
class KeptFrame:
    """One frame in memory: its number in the video, its level (`StudyMethod.codings`), and what is left of it. `pooled`: one
    token, which counts as often as a frame has tokens."""

    number: int
    level: int
    pair: Pair
    pooled: bool = False


class StudyLayer(LayerCache):
    """Every frame is encoded once, when it is committed, in the coding of its level. One that falls to another goes there from
    its codes, by itself: decoded into one frame's room and encoded anew. Nothing else is touched."""

    def __init__(self, spec: CacheSpec, config: QVGConfig, layer: int, offloader: Offloader | None, method: StudyMethod):
        super().__init__(spec, config, layer, offloader)
        self.method = method
        self._budget = method.budget(layer, spec.layers)
        self._by_level = [coding.codecs(spec) for coding in method.codings]
        self._mixed = None if method.foreground is None else _mixed(method, spec)
        self._clear()

    def _clear(self) -> None:
        self.frames: list[KeptFrame] = []
        self.changes: list[float] = []
        self.now: list[int] = []
        self.transcoded = 0
        self._last: Tensor | None = None
        self.variance = TemporalVariance(self.spec.tokens_per_frame)

    def reset(self) -> None:
        """See `LayerCache`."""
        super().reset()
        self._clear()

    def commit(self, step: Step, earlier: Earlier = NOTHING_YET, rotation: Rotation | None = None) -> Earlier:
        """See `LayerCache`. The layout counts frames that are gone, too: their numbers are the others' positions."""
        if self.state.current is None:
            raise CacheError(f"layer {self.layer} has no current block to commit; call attend or append for every layer first")
        keys, values = self.state.current
        size = self.spec.tokens_per_frame
        for start in range(0, keys.shape[2], size):
            self._add(keys[:, :, start : start + size], values[:, :, start : start + size])
        self.state.current = None
        self._place_all()
        self.state.spans = [frame.pair for frame in self.frames]
        self.state.spans_encoded += 1
        return earlier

    def codec_of(self, span: Span) -> Codec:
        """What decodes it."""
        if isinstance(span, ExactSpan):
            return self.exact
        known = [codec for codecs in self._by_level for codec in codecs if codec.name == span.codec]
        return known[0] if self._mixed is None else self._mixed[0]

    def statistics_bytes(self) -> int:
        """Of what a foreground is found by."""
        return 0 if self._mixed is None else self.variance.sums.untyped_storage().nbytes()

    def _add(self, keys: Tensor, values: Tensor) -> None:
        """One more frame, in the newest level's coding."""
        brief = importance.summary(keys, values)
        self.changes.append(importance.change(brief, self._last))
        self._last = brief
        self.now.append(0)
        if self._mixed is None:
            pair = self._encoded(self._by_level[0], keys, values, len(self.frames))
        else:
            assert self.method.foreground is not None
            self.variance.add(values)
            mask = foreground_mask(self.variance.get(), self.method.foreground, published=False)
            bits = pack_mask(mask)
            pair = Pair(*(codec.span(x, mask, bits) for codec, x in zip(self._mixed, (keys, values), strict=True)))
        self.state.encode_calls += 2
        self.frames.append(KeptFrame(len(self.now) - 1, 0, pair))

    def _place_all(self) -> None:
        """Frames fall to the levels that are theirs now."""
        if self.method.plain or self._mixed is not None:
            return
        counts = count(self.method, len(self.now), self._budget, self.spec.chunk_frames)
        self.now = levels(counts, importance.scores(self.changes), self.now)
        kept = (self._moved(frame, self.now[frame.number]) for frame in self.frames)
        self.frames = [frame for frame in kept if frame is not None]

    def _moved(self, frame: KeptFrame, level: int) -> KeptFrame | None:
        codings = self.method.codings
        if level == frame.level:
            return frame
        if level < len(codings) and codings[level] == codings[frame.level]:
            return KeptFrame(frame.number, level, frame.pair)
        if level < len(codings):
            keys, values = (self.decoded(span) for span in frame.pair)
            self.transcoded += 1
            return KeptFrame(frame.number, level, self._encoded(self._by_level[level], keys, values, frame.number))
        if self.method.retention is None or not self.method.retention.pooled:
            return None
        means = (self.decoded(span).mean(2, keepdim=True) for span in frame.pair)
        return KeptFrame(frame.number, level, Pair(*(self.exact.encode(mean, EncodeHint()) for mean in means)), pooled=True)

    def decoded(self, span: Span, heads: slice = slice(None)) -> Tensor:
        """A frame of keys or values [B, h, S, D] float32."""
        count = len(range(*heads.indices(self.spec.heads)))
        out = torch.empty(
            self.spec.batch, count, span.num_tokens, self.spec.head_dim, device=next(iter(span.tensors().values())).device
        )
        return self.codec_of(span).decode(span, slice(0, span.num_tokens), heads, out)

    def _encoded(self, codecs: KeyValueCodecs, keys: Tensor, values: Tensor, number: int) -> Pair:
        seed = (self.config.seed * 1_000_003 + self.layer * 4096 + number * 8) % (1 << 63)
        return Pair(*(codec.encode(x, EncodeHint(seed, checked=True)) for codec, x in zip(codecs, (keys, values), strict=True)))


def _mixed(method: StudyMethod, spec: CacheSpec) -> tuple[MixedCodec, MixedCodec]:
    """The codecs of keys and of values with a foreground."""
    assert method.foreground is not None
    found = []
    for front, back in zip(method.foreground.coding.codecs(spec), method.coding.codecs(spec), strict=True):
        assert isinstance(front, PartsCodec) and isinstance(back, PartsCodec)
        found.append(MixedCodec("study-mixed", front, back, spec.tokens_per_frame))
    return found[0], found[1]
