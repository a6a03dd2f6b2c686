"""Caches with the true spans of real models for `launch_gate.py`: filled by `KVCache` and a preset on the counting GPU.

Codes are not made: what a span of codec "klt" holds follows from the settings alone in a video without cuts (a group of spans
shares codewords, which grow, and one basis). Every cache's bytes are held against `CacheSpec.predict`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import bootstrap_package  # noqa: F401
import torch
from comfyui_qvg.kernels.rows8 import Rows8
from comfyui_qvg.qvg import PRESETS, CacheSpec, KVCache, QVGConfig
from comfyui_qvg.qvg.bench.synthetic import make_keys_values
from comfyui_qvg.qvg.cache.log_counts import LogCounts
from comfyui_qvg.qvg.codec import KeyValueCodecs, KLTCodec
from comfyui_qvg.qvg.codec.base import EncodeHint
from comfyui_qvg.qvg.codec.klt_basis import allocate_planes
from comfyui_qvg.qvg.codec.klt_sizes import added_codewords, directions, first_codewords
from comfyui_qvg.qvg.codec.klt_tables import Tables
from comfyui_qvg.qvg.codec.span import Basis, Group, Span, TransformCodebook, TransformSpan
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.positions.projective import Projector
from comfyui_qvg.qvg.positions.rope import wan_rope
from counting_gpu import DEVICE, CountingGpu, Counts, OnGpu
from counting_pack import counting
from torch import Tensor

READS = ("exact", "fast", "direct")
# FAST-AR's: a share of the tiles is read; every row counts several tokens, so that each key has a bias and angles of its own.
MODULES = ("sparse", "counted")
_SPARSE = 0.15


class Layout(NamedTuple):
    """A model's layer in use. `frames`: latent ones in memory, `rows` and `cols` of tokens each. `cameras`: a second attention in
    their coordinates; `text`: tokens that both attentions see besides."""

    network: str
    frames: int
    rows: int
    cols: int
    cameras: bool = False
    text: int = 0

    def spec(self) -> CacheSpec:
        """One layer of it."""
        shape = networks()[self.network]
        return CacheSpec(1, shape.heads, shape.head_dim, self.rows * self.cols, shape.chunk_frames)


LAYOUTS = {
    "Self-Forcing, 180 frames": Layout("self-forcing-1.3b", 180, 30, 52),
    "WorldPlay 5B, 48 frames": Layout("worldplay-5b", 48, 22, 40, cameras=True),
    "WorldPlay 8B, 20 frames": Layout("worldplay-8b", 20, 30, 52, cameras=True, text=1985),
    "Krea 14B, 90 frames": Layout("krea-14b", 90, 30, 52),
    "LongCat, 20 frames": Layout("longcat-13b", 20, 30, 52),
}


class LayerCall:
    """One layer of a layout with a preset's cache, and its attention."""

    def __init__(self, gpu: CountingGpu, layout: Layout, config: QVGConfig, counted: bool = False):
        self.layout, self.spec = layout, layout.spec()
        self.cache = KVCache(self.spec, config, wan_rope(layout.rows, layout.cols))
        layer = self.cache.layers[0]
        layer.codecs = KeyValueCodecs(*(_UncutKLT(one.config) if isinstance(one, KLTCodec) else one for one in layer.codecs))
        block = (1, self.spec.heads, self.spec.chunk_frames * self.spec.tokens_per_frame, self.spec.head_dim)
        self.block = [torch.empty(block, dtype=torch.bfloat16, device=DEVICE) for _ in range(3)]
        with gpu.paused():
            for start in range(0, layout.frames, self.spec.chunk_frames):
                self._place(start)
                layer.append(*self.block[1:])
                _commit_unchecked(self.cache)
            self._place(layout.frames)
        _require_predicted(self.cache)
        if counted:
            tokens = layout.frames * self.spec.tokens_per_frame
            self.cache.positions.places = torch.zeros(tokens, 3)
            self.cache.merger = SimpleNamespace(log_counts=LogCounts(0, torch.full((tokens,), 2)).of)  # type: ignore[assignment]

    def _place(self, start: int) -> None:
        self.cache.place([(float(start + frame), 0.0, 0.0) for frame in range(self.spec.chunk_frames)])

    def attend(self) -> None:
        """What the network asks of one layer in one step."""
        joint = None
        if self.layout.text:
            rows = (1, self.spec.heads, self.layout.text, self.spec.head_dim)
            joint = tuple(torch.empty(rows, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
        self.cache.attend(0, *self.block, joint=joint)
        if self.layout.cameras:
            self.cache.attend_projected(0, *self.block, self._projector(), joint=joint)
        self.cache.release(0)

    def _projector(self) -> Projector:
        seen = self.layout.frames + self.spec.chunk_frames
        eye = torch.eye(4).expand(seen, 4, 4)
        return Projector(eye[: self.spec.chunk_frames], eye, self.spec.tokens_per_frame, apart=True)


def count_reads(layout: Layout, preset: str, read: str) -> dict[str, Counts]:
    """Of one layer's attention: the first call after a commit, and those that follow until the next."""
    changes = {"sparse": {"sparse": _SPARSE, "span_frames": "auto"}, "counted": {}}.get(read, {"read": read})
    with counting() as gpu:
        call = LayerCall(gpu, layout, PRESETS[preset].with_changes(**changes), read == "counted")
        with gpu.paused():  # what a process makes once: tables of levels, choices of kernels
            LayerCall(gpu, layout._replace(frames=4 * call.spec.chunk_frames), call.cache.config).attend()
        return {"first": gpu.counted(call.attend), "then": gpu.counted(call.attend)}


def count_commits(layout: Layout, preset: str) -> dict[str, Counts]:
    """Of one layer's commit: one that encodes nothing, one whose span begins a codebook, one whose span goes on with it. One head
    of numbers that are made up; their traffic is multiplied up."""
    spec = replace(layout.spec(), heads=1)
    config = PRESETS[preset]
    found: dict[str, Counts] = {}
    with counting(values=True) as gpu:
        cache = KVCache(spec, config)
        for keys, values in _blocks(layout, spec, config):
            with gpu.paused():
                cache.layers[0].append(gpu.tensor(keys), gpu.tensor(values))
            spans = cache.layers[0].state.spans_encoded
            counts = gpu.counted(lambda: cache.commit_layer(0))
            encoded = cache.layers[0].state.spans_encoded > spans
            kind = "commit" if not encoded else "first span" if not spans else "next span"
            found.setdefault(kind, counts)
            if len(found) == (1 if config.codec == "none" else 3):
                break
            if config.codec == "qvg" and kind == "first span":
                break  # every span of it is a first one
    heads = layout.spec().heads
    for counts in found.values():
        counts.read_bytes, counts.written_bytes = heads * counts.read_bytes, heads * counts.written_bytes
    return found


def _blocks(layout: Layout, spec: CacheSpec, config: QVGConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of a video without cuts, as many as three spans need."""
    chunks = spec.check(config).span_chunks * (1 if config.codec == "qvg" else 2) + 3
    video = make_keys_values(frames=chunks * spec.chunk_frames, channels=spec.head_dim, rows=layout.rows, cols=layout.cols)
    tokens = spec.chunk_frames * spec.tokens_per_frame
    for start in range(0, chunks * tokens, tokens):
        keys, values = (x[:, :, start : start + tokens].bfloat16() for x in video)
        yield keys, values


class _UncutKLT(KLTCodec):
    """Makes the spans that a video without cuts has, and nothing in them."""

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """See `Codec`."""
        batch, heads, tokens, channels = x.shape
        known = hint.reuse
        if isinstance(known, TransformCodebook):
            had = known.codewords.values.shape[2]
            codewords = _rows8(batch, heads, had + added_codewords(self.config, had, tokens), channels)
            codebook = replace(known, codewords=codewords)
        else:
            basis = _rows8(batch, heads, directions(self.config, tokens, channels), channels)
            spectrum = torch.logspace(0, -2, channels).tolist()[: basis.values.shape[2]]
            planes = allocate_planes(spectrum, self.config.bits, channels)
            codewords = _rows8(batch, heads, first_codewords(self.config, tokens), channels)
            codebook = TransformCodebook(codewords, Basis(*basis, (planes,)), Group())
        width = sum(codebook.basis.planes[0]) // 8
        codes = torch.empty(batch, heads, tokens, width, dtype=torch.uint8, device=x.device)
        gains, ids = torch.empty(2, batch, heads, tokens, dtype=torch.uint8, device=x.device).unbind()
        return TransformSpan(codes, gains, ids, codebook)

    def is_new(self, x: Tensor, known: TransformCodebook, tables: Tables | None = None) -> bool:
        """More of the same."""
        return False


def _rows8(batch: int, heads: int, rows: int, channels: int) -> Rows8:
    values = torch.empty(batch, heads, rows, channels, dtype=torch.int8, device=DEVICE)
    return Rows8(values, torch.empty(batch, heads, rows, dtype=torch.float16, device=DEVICE))


def _commit_unchecked(cache: KVCache) -> None:
    """`commit_layer` of numbers that are not known."""
    from comfyui_qvg.qvg.cache import kv_cache

    check, kv_cache.check_finite = kv_cache.check_finite, lambda *arguments: None
    try:
        cache.commit_layer(0)
    finally:
        kv_cache.check_finite = check


def _require_predicted(cache: KVCache) -> None:
    """AssertionError unless the cache holds what `CacheSpec.predict` says."""
    storages: dict[int, int] = {}
    state = cache.layers[0].state
    for kept in (*(span for pair in state.history for span in pair), *state.tiles):
        for tensor in kept.tensors().values():
            storage = tensor.inner.untyped_storage() if isinstance(tensor, OnGpu) else tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    expected: Any = cache.spec.predict(cache.config, cache.frames_committed)
    assert sum(storages.values()) == expected.total, f"{sum(storages.values())} bytes, predicted {expected.total}"
