"""The torch path on a real GPU: same bytes every time, same results as on a CPU, memory bounded by the allocator's own count."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.kernels import e4m3, packing
from comfyui_qvg.qvg import CacheSpec, GridRope, KVCache, QuantizedSpan, QVGConfig
from comfyui_qvg.qvg.bench.synthetic import make_keys_values
from comfyui_qvg.qvg.codec import QVGCodec
from comfyui_qvg.qvg.codec.base import EncodeHint
from comfyui_qvg.qvg.codec.span import move
from comfyui_qvg.qvg.positions.rope import geometric_frequencies

from .helpers import assert_close

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
    x = make_keys_values()[0].cuda().bfloat16()
    first, second = (QVGCodec(CONFIG.with_changes(num_stages=2)).encode(x, EncodeHint(seed=3)) for _ in range(2))
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


def test_a_span_written_on_a_gpu_reads_the_same_on_a_cpu() -> None:
    x = make_keys_values()[1].cuda()
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
        assert cache.nbytes() == spec.predict(config, 3 * (chunk + 1), codebooks=cache.codebooks())
    assert max(peaks) <= (512 << 20) + 3 * q.nbytes, peaks


@pytest.mark.parametrize("read", ["exact", "fast", "direct"])
@pytest.mark.parametrize("codec", ["qvg", "klt"])
def test_spans_in_pinned_memory_give_the_same_bits(codec: str, read: str) -> None:
    """Pass after pass without a stop in between: a copy that came too late, or went too early, would show."""
    spec = CacheSpec(5, 4, 128, 1560)
    config = QVGConfig(codec, clusters=64, span_frames=2, spans_per_codebook=3, read=read, workspace_mb=256)
    near, far = KVCache(spec, config, ROPE), KVCache(spec, config.with_changes(offload="cpu"), ROPE)
    generator = torch.Generator("cuda").manual_seed(0)
    for frame in range(14):
        outs: list[list[torch.Tensor]] = [[], []]
        for step in range(3):
            blocks = torch.randn(5, 3, 1, 4, 1560, 128, generator=generator, device="cuda").bfloat16()
            for cache, out in zip((near, far), outs, strict=True):
                cache.place([(frame, 0.0, 0.5 * step)])
                out += [cache.attend(layer, *blocks[layer]) for layer in range(5)]
        assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True)), frame
        near.commit(), far.commit()
        assert near.nbytes() == far.nbytes() == spec.predict(config, frame + 1, codebooks=near.codebooks())
    spans = [span for layer in far.layers for pair in layer.state.spans for span in pair]
    assert spans and all(tensor.is_pinned() for span in spans for tensor in span.tensors().values())
    places = far.placement()
    assert places.home == sum(size for name, size in far.nbytes().by_component().items() if name != "exact")
    assert 0 < places.copied <= 0.5 * places.home and places.device == far.nbytes().exact


def test_memory_of_an_offloaded_cache_by_the_allocators_count() -> None:
    spec, sizes = CacheSpec(8, 4, 128, 1560, chunk_frames=3), []
    for offload in ("gpu", "gpu", "cpu"):  # the first one pays for what libraries keep once they have run
        config = QVGConfig("klt", clusters=64, span_frames=3, recent_frames=3, sink_frames=3, workspace_mb=64, offload=offload)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        cache = KVCache(spec, config)
        for _ in range(9):
            for layer in range(8):
                cache.attend(layer, *torch.randn(3, 1, 4, 4680, 128, device="cuda", dtype=torch.bfloat16))
                cache.commit_layer(layer)
        for layer in range(8):
            cache.attend(layer, *torch.randn(3, 1, 4, 4680, 128, device="cuda", dtype=torch.bfloat16))
            cache.release(layer)
        torch.cuda.synchronize()
        sizes.append(torch.cuda.memory_allocated() - before - cache.workspace.nbytes)
        cache.reset()
        if len(sizes) > 1:  # the allocator gives whole 512 bytes to every tensor
            assert spec.device_bytes(config, 27) <= sizes[-1] <= spec.device_bytes(config, 27) + (4 << 20)
    assert sizes[2] < 0.8 * sizes[1]
