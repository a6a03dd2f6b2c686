"""A method as the code of arXiv 2603.27469 runs it, to compare with: what it costs to do so is what the study measured.

Keys are kept after RoPE. The whole cache, allocated beforehand, is rebuilt at every layer of every pass, the current block is
written into it, and everything is quantized again: values that were quantized before lose more each time, in groups that cut
across blocks. What is evicted comes back as zeros (which take their share of attention: a logit of 0) or as a mean that is spread
over its frame. With REFRESH only the clean pass quantizes. Codes are packed here; what the study's own integration holds instead
is `held_bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..cache.layer_cache import NOTHING_YET, Earlier, LayerCache
from ..cache.policy import Step
from ..cache.spec import CacheBytes, CacheSpec
from ..codec.span import PartsSpan, storage_bytes
from ..config import QVGConfig
from ..errors import CacheError, ConfigError
from ..positions.rope import GridRope, Rotation
from . import importance
from .foreground import foreground_mask
from .method import StudyMethod
from .published_plan import Partition, Portion, partition, published_codec
from .read_alone import ReadAlone


class PublishedLayer(LayerCache):
    """One layer's buffer."""

    def __init__(self, spec: CacheSpec, config: QVGConfig, layer: int, method: StudyMethod, capacity_frames: int):
        super().__init__(spec, config, layer)
        self.method, self.capacity = method, capacity_frames * spec.tokens_per_frame
        self._clear()

    def _clear(self) -> None:
        self.filled, self.round_trips, self._written = 0, 0, False
        self.partition: Partition | None = None
        # Of keys and of values, what each portion is kept in: codes, or tokens in 16 bits.
        self.kept: list[list[PartsSpan | Tensor]] = [[], []]
        self.means: list[Tensor] = []
        self.listed: list[Tensor] = []
        self._summaries: Tensor | None = None
        self._planned = (0, list[float]())

    def reset(self) -> None:
        """See `LayerCache`."""
        super().reset()
        self._clear()

    def rebuilt(self, which: int, like: Tensor) -> Tensor:
        """All tokens of keys (which = 0) or values (1): [B, H, capacity, D] in `like`'s dtype."""
        shape = (self.spec.batch, self.spec.heads, self.capacity, self.spec.head_dim)
        dense = torch.zeros(shape, dtype=like.dtype, device=like.device)
        if self.partition is None:
            return dense
        for portion, kept in zip(self.partition.portions, self.kept[which], strict=True):
            if portion.tokens:
                index = torch.tensor(portion.tokens, device=like.device)
                dense[:, :, index] = (kept if isinstance(kept, Tensor) else _decoded(portion, which, kept)).to(like.dtype)
        size = self.spec.tokens_per_frame
        for number, frame in enumerate(self.partition.pooled):
            dense[:, :, frame * size : (frame + 1) * size] = self.means[which][:, :, number : number + 1].to(like.dtype)
        return dense

    def write(self, block: tuple[Tensor, Tensor]) -> None:
        """The current block joins what is rebuilt, and everything is quantized anew."""
        active = self.filled + block[0].shape[2]
        if active > self.capacity:
            raise CacheError(
                f"layer {self.layer} holds {self.capacity} tokens, but frames up to {active} were generated; give a published "
                "cache the capacity_frames of the whole video"
            )
        dense = []
        for which, x in enumerate(block):
            whole = self.rebuilt(which, x)
            whole[:, :, self.filled : active] = x
            dense.append(whole)
        self.partition = self._partition(dense[0], dense[1], active)
        for which, whole in enumerate(dense):
            self.kept[which] = [_kept(portion, which, whole) for portion in self.partition.portions]
        size, pooled = self.spec.tokens_per_frame, self.partition.pooled
        frames = [x.unflatten(2, (-1, size)) for x in dense] if pooled else []
        self.means = [x[:, :, pooled].float().mean(3).to(torch.bfloat16) for x in frames]
        lists = [portion.tokens for portion in self.partition.portions] if self.partition.listed else []
        self.listed = [torch.tensor(tokens) for tokens in lists]
        if self.partition.masked:
            self.listed.append(torch.zeros(self.capacity, dtype=torch.bool))
        self.round_trips += 1
        self._written = True

    def append(self, k: Tensor, v: Tensor) -> None:
        """See `LayerCache`."""
        super().append(k, v)
        self._written = False

    def commit(self, step: Step, earlier: Earlier = NOTHING_YET, rotation: Rotation | None = None) -> Earlier:
        """See `LayerCache`."""
        assert self.state.current is not None
        if not self._written:
            self.write(self.state.current)
        self.filled += self.state.current[0].shape[2]
        self.state.current = None
        return earlier

    def tensors(self) -> dict[str, Tensor]:
        """All that is held, by names that say what it counts as."""
        found: dict[str, Tensor] = {}
        for which, portions in enumerate(self.kept):
            for number, kept in enumerate(portions):
                parts = {"exact": kept} if isinstance(kept, Tensor) else kept.tensors()
                found |= {f"{which}.{number}.{name}": tensor for name, tensor in parts.items()}
        found |= {f"m.{number}.exact": mean for number, mean in enumerate(self.means)}
        return found | {f"l.{number}.ids": tokens for number, tokens in enumerate(self.listed)}

    def _partition(self, keys: Tensor, values: Tensor, active: int) -> Partition:
        size = self.spec.tokens_per_frame
        mask: list[int] = []
        if self.method.foreground is not None:
            mean = values.float().abs().mean((0, 1, 3)).unflatten(0, (-1, size))  # what is not there yet counts, as zeros
            chosen = foreground_mask(mean.var(0, unbiased=False), self.method.foreground, published=True)
            mask = chosen.nonzero()[:, 0].tolist()
        scores: Sequence[float] = ()
        if not self.method.plain and self.method.foreground is None:
            scores = self._scores(keys, values, active // size)
        return partition(self.method, self.spec, self.layer, self.capacity, active, scores, mask)

    def _scores(self, keys: Tensor, values: Tensor, frames: int) -> list[float]:
        """Made anew when there are more frames. Summaries are compared with those of the last plan from the end: with the frame
        one block earlier, not with the same one."""
        if self._planned[0] == frames:
            return self._planned[1]
        size = self.spec.tokens_per_frame
        now = torch.stack(
            [
                importance.summary(keys[:, :, start : start + size], values[:, :, start : start + size])
                for start in range(0, frames * size, size)
            ]
        )
        before, changes = self._summaries, [1.0] * frames
        overlap = 0 if before is None else min(len(before), frames)
        for back in range(1, overlap + 1):
            assert before is not None
            changes[-back] = importance.change(now[-back], before[-back])
        self._summaries = now
        self._planned = (frames, importance.scores(changes))
        return self._planned[1]


class PublishedCache(ReadAlone):
    """See the module docstring. `capacity_frames` is the length of the whole video."""

    def __init__(
        self, spec: CacheSpec, method: StudyMethod, capacity_frames: int, rope: GridRope | None = None, **reading: object
    ):
        for coding in method.codings:
            coding.codecs(spec)  # heads that do not fit are refused before anything runs
        if not isinstance(capacity_frames, int) or capacity_frames < 1:
            raise ConfigError(f"capacity_frames is {capacity_frames!r}, but must be at least 1; give the length of the video")
        super().__init__(spec, QVGConfig(codec="none", keys="after_rope", sink_frames=0).with_changes(**reading), rope)
        self.method = method
        self.published_layers = [
            PublishedLayer(spec, self.config, layer, method, capacity_frames) for layer in range(spec.layers)
        ]
        self.layers = list(self.published_layers)

    def attend_alone(self, layer: int, q: Tensor, current: tuple[Tensor, Tensor]) -> Tensor:
        """See `ReadAlone`. History as it was quantized last, the current block as it is; then everything is quantized."""
        own = self.published_layers[layer]
        keys, values = (torch.cat([own.rebuilt(which, x)[:, :, : own.filled], x], 2) for which, x in enumerate(current))
        out = scaled_dot_product_attention(q, keys.to(q.dtype), values.to(q.dtype))
        if not self.method.refresh and self.method.coding.codec != "none":
            assert own.state.current is not None
            own.write(own.state.current)
        return out

    def nbytes(self) -> CacheBytes:
        """See `KVCache`; lists of tokens count as ids."""
        held = [_Held(name, tensor) for layer in self.published_layers for name, tensor in layer.tensors().items()]
        return CacheBytes(**storage_bytes(held))  # type: ignore[arg-type]

    def verify_encoded(self) -> None:
        """Raise CacheError unless every layer went through as many round trips as every other, and at least one."""
        trips = {layer.round_trips for layer in self.published_layers}
        if len(trips) != 1 or not trips.pop():
            raise CacheError(
                f"layers of {self.method.name} were quantized {sorted(trips)} times; generate a block in all of them"
            )


class _Held:
    """A tensor as `storage_bytes` takes it."""

    def __init__(self, name: str, tensor: Tensor):
        self._tensor = {name.rsplit(".", 1)[-1]: tensor}

    def tensors(self) -> dict[str, Tensor]:
        """By what it counts as."""
        return self._tensor


def _kept(portion: Portion, which: int, whole: Tensor) -> PartsSpan | Tensor:
    chosen = whole[:, :, torch.tensor(portion.tokens, dtype=torch.long, device=whole.device)]
    if portion.coding.codec == "none" or not portion.tokens:
        return chosen.to(torch.bfloat16)
    codec = published_codec(portion.coding, which)
    return PartsSpan(codec.packed(chosen.float()), len(portion.tokens), codec)


def _decoded(portion: Portion, which: int, span: PartsSpan) -> Tensor:
    codec = published_codec(portion.coding, which)
    outliers = codec.core.outliers
    x = codec.before_outliers(span.parts, slice(0, span.num_tokens), slice(None))
    return x if outliers is None else outliers.put_back_published(x, span.parts)
