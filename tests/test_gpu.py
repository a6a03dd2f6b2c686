"""The torch path on a real GPU: same bytes every time, same results as on a CPU, memory bounded by the allocator's own count."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.kernels import e4m3, packing
from comfyui_qvg.qvg import CacheSpec, GridRope, KVCache, QuantizedSpan, QVGConfig
from comfyui_qvg.qvg.codec import QVGCodec
from comfyui_qvg.qvg.codec.base import EncodeHint
from comfyui_qvg.qvg.rope import geometric_frequencies
from comfyui_qvg.qvg.span import move

from .helpers import assert_close, make_kv

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU")

CONFIG = QVGConfig(clusters=64, span_frames=2, sink_frames=1, recent_frames=1, workspace_mb=64)
ROPE = GridRope(30, 52, (geometric_frequencies(8, 4, 60), geometric_frequencies(28, 3, 60), geometric_frequencies(28, 3, 60)))


def test_bytes_of_the_format_are_the_same_on_every_device() -> None:
    x = torch.randn(1000, 128, generator=torch.Generator().manual_seed(0)) * 30
    assert torch.equal(e4m3.encode(x.cuda()).cpu(), e4m3.encode(x))
    code = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(e4m3.decode(code.cuda()).cpu(), e4m3.decode(code))
    for bits in packing.BITS:
        codes = torch.randint(0, 1 << bits, (33, 128), dtype=torch.uint8)
        assert torch.equal(packing.unpack(packing.pack(codes.cuda(), bits), bits).cpu(), codes)


def test_encoding_is_deterministic() -> None:
    x = make_kv()[0].cuda().bfloat16()
    first, second = (QVGCodec(CONFIG.with_changes(num_stages=2)).encode(x, EncodeHint(seed=3)) for _ in range(2))
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


def test_a_span_written_on_a_gpu_reads_the_same_on_a_cpu() -> None:
    x = make_kv()[1].cuda()
    codec = QVGCodec(CONFIG.with_changes(bits=3, num_stages=2, symmetric=False))
    span = codec.encode(x, EncodeHint())
    assert isinstance(span, QuantizedSpan)
    there = codec.decode(span, slice(None), slice(None), torch.empty_like(x)).cpu()
    here = codec.decode(move([span], "cpu")[0], slice(None), slice(None), torch.empty(x.shape))
    assert_close("decoded", here, there, 1e-6)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=["float32", "bfloat16"])
def test_attention_equals_the_one_on_a_cpu(dtype: torch.dtype, relative: float) -> None:
    """The history is written on the GPU and copied, so that only the reading differs."""
    spec = CacheSpec(1, 2, 128, 1560)
    gpu, cpu = KVCache(spec, CONFIG, ROPE), KVCache(spec, CONFIG, ROPE)
    generator = torch.Generator().manual_seed(0)
    for frame in range(6):
        q, k, v = torch.randn(3, 1, 2, 1560, 128, generator=generator)
        for cache, device in ((gpu, "cuda"), (cpu, "cpu")):
            cache.place([(frame, 0.0, 0.5)])
            out = cache.attend(0, *(part.to(device).to(dtype if device == "cuda" else torch.float32) for part in (q, k, v)))
            if device == "cuda":
                there = out.float().cpu()
        assert_close(f"frame {frame}", out, there, relative)
        gpu.commit(), cpu.commit()
        for name in ("sink", "spans", "tail"):
            pairs = getattr(gpu.layers[0].state, name)
            setattr(cpu.layers[0].state, name, [type(pair)(*move(pair, "cpu")) for pair in pairs])


def test_peak_memory_by_the_allocators_count() -> None:
    spec = CacheSpec(1, 12, 128, 1560, chunk_frames=3)
    config = CONFIG.with_changes(span_frames=3, recent_frames=3, clusters=256, workspace_mb=512, iterations=2)
    cache = KVCache(spec, config)
    peaks = []
    for chunk in range(12):
        q, k, v = torch.randn(3, 1, 12, 4680, 128, device="cuda", dtype=torch.bfloat16)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated() - cache.workspace.nbytes
        torch.cuda.reset_peak_memory_stats()
        cache.attend(0, q, k, v)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        cache.commit()
        assert cache.nbytes() == spec.predict(config, 3 * (chunk + 1))
    assert max(peaks) <= (512 << 20) + 3 * q.nbytes, peaks
