"""The cache of a study's method, by the rules of ours: keys before RoPE, every frame encoded once, at commit, nothing rebuilt."""

from __future__ import annotations

from torch import Tensor

from ..cache.spec import CacheBytes, CacheSpec
from ..codec.span import storage_bytes
from ..errors import CacheError, ConfigError
from ..positions.rope import GridRope, Rotation
from .bytes import predict
from .layer import StudyLayer
from .method import StudyMethod
from .read_alone import ReadAlone
from .reading import attend_frames


class StudyCache(ReadAlone):
    """`KVCache` whose frames have tiers, importance, retention or a foreground. Read by the reference, on any device. Its config
    says the coding of the oldest frames."""

    def __init__(self, spec: CacheSpec, method: StudyMethod, rope: GridRope | None = None, **changes: object):
        """`changes`: settings of a `QVGConfig` that say how it is read (`seed`, `workspace_mb`, `keys`)."""
        super().__init__(spec, method.coding.config().with_changes(**changes), rope)
        for name, unchanged in (("sink_frames", 0), ("recent_frames", 0), ("window_frames", None), ("merge", 0.0)):
            if getattr(self.config, name) != unchanged:
                raise ConfigError(f"{name} is {getattr(self.config, name)}, but a study's method has none; leave it out")
        self.method = method
        self.study_layers = [StudyLayer(spec, self.config, layer, None, method) for layer in range(spec.layers)]
        self.layers = list(self.study_layers)

    def attend_alone(self, layer: int, q: Tensor, current: tuple[Tensor, Tensor]) -> Tensor:
        """See `ReadAlone`."""
        size = self.spec.tokens_per_frame
        rotates = self.rope is not None and self.config.keys == "before_rope"

        def angles(number: int):  # type: ignore[no-untyped-def]
            return Rotation(*self.positions.history_angles(number * size, (number + 1) * size, q.device).spread())

        return attend_frames(q, self.study_layers[layer], current, angles if rotates else None, self._tile_tokens(q))

    def _tile_tokens(self, q: Tensor) -> int:
        """Tokens whose keys, values and logits take the workspace at most."""
        rows = q.shape[0] * q.shape[1]
        return max(1, (self.config.workspace_mb << 20) // (rows * 4 * (4 * q.shape[3] + 2 * q.shape[2])))

    def nbytes(self) -> CacheBytes:
        """See `KVCache`; what a foreground is found by counts as scales."""
        spans = [span for layer in self.study_layers for frame in layer.frames for span in frame.pair]
        sizes = storage_bytes(spans)
        statistics = sum(layer.statistics_bytes() for layer in self.study_layers)
        return CacheBytes(**{**sizes, "scales": sizes.get("scales", 0) + statistics})

    def predicted_bytes(self) -> CacheBytes:
        """What `nbytes` must be after so many frames."""
        return predict(self.method, self.spec, self.frames_committed)

    def verify_encoded(self) -> None:
        """Raise CacheError unless every frame was encoded once in every layer."""
        calls = {layer.state.encode_calls for layer in self.study_layers}
        if calls != {2 * self.frames_committed}:
            raise CacheError(
                f"codecs were called {sorted(calls)} times per layer for {self.frames_committed} frames, but keys and values of "
                "each are encoded once; this is a bug, please report it with the method's name"
            )
        if not self.frames_committed:
            raise CacheError(f"nothing was committed, so this run says nothing about {self.method.name}; generate a frame")
