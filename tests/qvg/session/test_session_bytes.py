"""What a session of Self-Forcing's takes on disk, counted without its tensors: of 180 latent frames, saved as often as can be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.kernels.rows8 import Rows8
from comfyui_qvg.qvg import CacheSpec, KVCache, QVGConfig
from comfyui_qvg.qvg.attention.plan import Pair
from comfyui_qvg.qvg.codec.klt_sizes import added_codewords, directions, first_codewords
from comfyui_qvg.qvg.codec.span import Basis, ExactSpan, Group, Span, TransformCodebook, TransformSpan
from comfyui_qvg.qvg.safetensors_writer import in_memory
from comfyui_qvg.qvg.session.folder import new_line
from comfyui_qvg.qvg.session.recorder import CacheRecorder
from comfyui_qvg.qvg.session.segment import Segment, segment_bytes
from comfyui_qvg.qvg.session.session import DEFAULT_EVERY
from torch import Tensor

SPEC = CacheSpec(layers=30, heads=12, head_dim=128, tokens_per_frame=1560, chunk_frames=3)
CONFIG = QVGConfig.preset("balanced")
BLOCKS = 60


def _nothing(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class _Growing:
    """A cache whose spans and chunks have shapes and no values."""

    def __init__(self) -> None:
        self.cache = KVCache(SPEC, CONFIG)
        self.packed = 0

    def commit(self) -> None:
        cache, tokens = self.cache, SPEC.chunk_frames * SPEC.tokens_per_frame
        step = cache.policy.commit(cache.layout, SPEC.chunk_frames)
        for layer in cache.layers:
            state = layer.state
            chunk = [ExactSpan(_nothing(1, SPEC.heads, tokens, 128, dtype=torch.bfloat16)) for _ in range(2)]
            (state.sink if step.to_sink else state.tail).append(Pair(*chunk))
            if step.encode_chunks:
                del state.tail[: step.encode_chunks]
                state.spans.append(Pair(*(self._span(layer, which, step.encode_chunks * tokens) for which in range(2))))
                state.spans_encoded += 1
        cache.layout, cache.frames_committed = step.layout, cache.frames_committed + SPEC.chunk_frames
        cache.spans_due += step.encode_chunks > 0

    def _span(self, layer: Any, which: int, tokens: int) -> Span:
        bits, heads = (CONFIG.bits, CONFIG.bits_v)[which], SPEC.heads
        state, config = layer.state, CONFIG.with_changes(bits=bits)
        last = state.spans[-1][which].codebook if state.spans and state.spans_encoded % CONFIG.spans_per_codebook else None
        if last is None:
            rows = directions(config, tokens, 128)
            planes = ((round(bits * 128 / 8) * 8,),)
            basis = Basis(_nothing(1, heads, rows, 128, dtype=torch.int8), _nothing(1, heads, rows, dtype=torch.float16), planes)
            count, group = first_codewords(config, tokens), Group()
        else:
            basis, group, count = last.basis, last.group, last.codewords.values.shape[2]
            count += added_codewords(config, count, tokens)
        words = Rows8(_nothing(1, heads, count, 128, dtype=torch.int8), _nothing(1, heads, count, dtype=torch.float16))
        codebook = TransformCodebook(words, basis, group)
        if last is not None:
            layer._hand_on(codebook, which)
        codes = _nothing(1, heads, tokens, round(bits * 128) // 8)
        self.packed += codes.nbytes + 2 * heads * tokens
        return TransformSpan(codes, _nothing(1, heads, tokens), _nothing(1, heads, tokens), codebook)


@pytest.mark.parametrize("every", [1, DEFAULT_EVERY])
def test_self_forcing_for_180_frames(every: int) -> None:
    """A tenth at most beside what is in memory at any time, and beside what is packed and met."""
    sizes: dict[str, int] = {}
    written = index = 0
    met = set[int]()

    def counted(folder: Path, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Segment:
        sizes[name] = segment_bytes(in_memory(tensors), about)
        return Segment(name, sizes[name], "00000000")

    growing = _Growing()
    recorder = CacheRecorder("c0-0", growing.cache, counted)
    for block in range(1, BLOCKS + 1):
        growing.commit()
        if block % every:
            continue
        change = recorder.checkpoint(Path("nowhere"), block)
        written += sum(segment.nbytes for segment in change.added)
        for name in change.gone:
            del sizes[name]
        index += len(json.dumps(new_line(change.added, change.gone, {})))
        layout, frames = growing.cache.layout, growing.cache.frames_committed
        held = SPEC.predict(CONFIG, frames)
        assert sum(sizes.values()) + index + len(json.dumps(change.state, indent=1)) <= 1.1 * held.total
        met |= set(range(sum(layout.sink))) | set(range(frames - sum(layout.tail), frames))
    packed = growing.packed + held.centroids + held.basis
    assert packed == held.total - held.exact  # the shapes are those of a real cache
    assert written + index <= 1.1 * (packed + SPEC.exact_bytes(len(met)))
    assert set(sizes) == set(recorder.names())
