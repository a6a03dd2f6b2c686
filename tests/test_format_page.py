"""docs/format.md is enough to read a saved cache: a decoder written from it alone (`page_decoder.py`) equals the library."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_qvg.kernels import lloyd_max
from comfyui_qvg.qvg import CacheSpec, GridRope, KVCache, QVGConfig
from comfyui_qvg.qvg.positions.rope import geometric_frequencies
from comfyui_qvg.qvg.session import load_cache, save_cache
from safetensors.torch import load_file
from torch import Tensor

from .earlier import CACHES, SAVED, configs, saved_after, seen
from .helpers import assert_close
from .page_decoder import LEVELS, SavedCache
from .rounding import attention_error, share

SPEC = CacheSpec(layers=2, heads=2, head_dim=32, tokens_per_frame=20, chunk_frames=2, batch=2)
ROPE = GridRope(4, 5, (geometric_frequencies(4, 4, 60), geometric_frequencies(6, 3, 60), geometric_frequencies(6, 3, 60)))
FRAMES = 30
# A sum of 32 products and a centroid, each rounded; four times the expected.
DECODED = 4 * share(torch.float32, 2 * 34)

_QVG = QVGConfig(clusters=12, group_size=16, span_frames=6, sink_frames=2, recent_frames=2)
_KLT = QVGConfig("klt", 2.5, 1.5, clusters="auto", span_frames=8, sink_frames=2, recent_frames=2, spans_per_codebook=4)
_PLAIN = QVGConfig("rtn", 3, 2, group_size=32, symmetric=False, span_frames=6, sink_frames=1, recent_frames=1)
KINDS = {
    "none": QVGConfig(codec="none"),
    "qvg": _QVG.with_changes(group_size=32),
    "qvg of four stages": _QVG.with_changes(num_stages=4),
    "qvg with all levels": _QVG.with_changes(symmetric=False, bits=3, bits_v=4),
    "qvg of 8 bits": _QVG.with_changes(bits=8, spans_per_codebook=2, window_frames=20),
    "klt": _KLT,
    "klt with a window": _KLT.with_changes(window_frames=18),
    "klt of many bits": _KLT.with_changes(bits=5.5, bits_v=6),
    "klt of few bits": _KLT.with_changes(bits=0.5, bits_v=0.25),
    "klt, Hadamard": _KLT.with_changes(transform="hadamard"),
    "klt, spans too short to learn from": _KLT.with_changes(span_frames=2),
    "klt, keys after RoPE": _KLT.with_changes(keys="after_rope"),
    "rtn": _PLAIN,
    "rtn, symmetric": _PLAIN.with_changes(symmetric=True, bits=4),
    "quarot": _PLAIN.with_changes(codec="quarot"),
    "kivi": _PLAIN.with_changes(codec="kivi"),
    "none, merged": QVGConfig(codec="none", span_frames=6, merge=0.98),
    "klt, merged": _KLT.with_changes(merge=0.98, bits=5),
    "kivi, merged": _PLAIN.with_changes(codec="kivi", bits=8, merge=0.98),
    "klt, a share of it": _KLT.with_changes(sparse=0.2),
    "qvg, merged": _QVG.with_changes(bits=8, merge=0.98, merge_key="first"),
}
# What a cache that merges knows: one video, and places that are seen again.
ONE_VIDEO = replace(SPEC, batch=1)


def frames(number: int, again: bool = False) -> tuple[Tensor, Tensor, Tensor, list[list[float]]]:
    """Queries, keys, values and places of a block: two scenes whose loud directions differ, so that klt learns two bases.
    `again`: of one video that comes back to where it was every seventh block."""
    if again:
        q, k, v, places = (part[:1] if isinstance(part, Tensor) else part for part in frames(number % 7))
        return q, k, v, [[2.0 * number + frame, 5.0 * (number % 7), 9.0 * frame] for frame in range(len(places))]
    generator = torch.Generator().manual_seed(number)
    scene = torch.Generator().manual_seed(1000 + number // 9)
    loud = torch.randn(3, 1, 2, 4, 32, generator=scene)
    parts = torch.randn(3, 2, 2, 40, 4, generator=generator) @ loud + 0.3 * torch.randn(3, 2, 2, 40, 32, generator=generator)
    parts[:, 1] *= torch.linspace(0.2, 2, 32)  # the batch's rows differ: so do their planes
    return parts[0], parts[1], parts[2], [[2.0 * number + frame, 0.5 * number, 1.0] for frame in range(2)]


def run(kind: str, folder: Path) -> tuple[KVCache, SavedCache]:
    """A cache that was run and saved, and what the page's decoder reads."""
    merges = KINDS[kind].merges
    cache = KVCache(ONE_VIDEO if merges else SPEC, KINDS[kind], ROPE)
    for number in range(FRAMES // 2):
        q, k, v, places = frames(number, merges)
        cache.place(places)
        for layer in range(SPEC.layers):
            cache.attend(layer, q, k * (layer + 1), v)
        cache.commit()
    save_cache(cache, folder / "cache.safetensors")
    return cache, SavedCache.read(folder / "cache.safetensors")


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[KVCache, SavedCache]:
    """See `run`."""
    return run(request.param, tmp_path_factory.mktemp("saved"))


def check_stretches(cache: KVCache, read: SavedCache) -> set[str]:
    """Every stretch is decoded as the library does. -> the codecs that came up"""
    spec, kinds = cache.spec, set()
    for layer in cache.layers:
        for number, pair in enumerate(layer.state.history):
            for which, name in enumerate(("keys", "values")):
                span = pair[which]
                codec = layer.exact if span.codec == "none" else layer.codecs[which]
                out = torch.empty(spec.batch, spec.heads, span.num_tokens, spec.head_dim)
                ours = codec.decode(span, slice(None), slice(None), out)
                theirs = torch.from_numpy(read.stretch(layer.layer, name, number))
                assert_close(f"layer {layer.layer}, {name}, stretch {number}", theirs, ours.double(), DECODED)
                kinds.add(span.codec)
    return kinds


def test_every_stretch_is_decoded_as_the_library_does(saved: tuple[KVCache, SavedCache]) -> None:
    cache, read = saved
    assert check_stretches(cache, read) == {"none", cache.config.codec}


def test_attention_is_as_the_library_s(saved: tuple[KVCache, SavedCache]) -> None:
    """Positions, hidden frames, and the order of stretches."""
    cache, read = saved
    q, k, v, places = frames(FRAMES // 2, cache.config.merges)
    cache.place(places)
    ours = cache.attend(1, q, k, v)
    theirs = torch.from_numpy(read.attend(1, *(part.numpy().astype(float) for part in (q, k, v)), places))
    history = (torch.from_numpy(read.history(1, name)) for name in ("keys", "values"))
    keys, values = (torch.cat([past, now.double()], 2) for past, now in zip(history, (k, v), strict=True))
    # Angles are products of float32 numbers, of up to 64 radians here.
    turned = share(torch.float32, 2) * 64
    assert_close("attention", theirs, ours.double(), attention_error(q.double(), keys, values) + DECODED + turned)


def test_the_cases_reach_what_the_page_describes(tmp_path: Path) -> None:
    """Hidden frames, two bases with the same codewords, rows of a batch with planes of their own, a run that is filled up."""
    state = run("klt with a window", tmp_path)[1].state
    assert state["layout"]["hidden"] > 0
    assert {("codebook.0", "basis.0"), ("codebook.0", "basis.2")} <= {tuple(book) for book in state["codebooks"].values()}
    assert any(rows[0] != rows[1] for rows in state["planes"].values())
    assert 6 * SPEC.tokens_per_frame % KINDS["kivi"].group_size
    for kind in ("klt, merged", "none, merged"):
        read = run(kind, tmp_path)[1]
        assert sorted(set(read.tensors["rows.counts"].tolist())) in ([1, 2], [2, 3], [1, 2, 3]) and read.state["spans_due"] >= 1
        assert len(read.stretches) > len(read.state["layout"]["sink"]) + read.state["spans_due"] + len(
            read.state["layout"]["tail"]
        )


@pytest.mark.parametrize(("version", "kind"), SAVED)
def test_files_of_every_version_are_read(version: int, kind: str) -> None:
    read = SavedCache.read(CACHES[version] / f"{kind}.safetensors")
    assert read.version == version
    frame = saved_after(kind)
    look = seen(configs(version)[kind].merges, frame)
    q, k, v = torch.randn(3, 1, 2, 4, 32, generator=torch.Generator().manual_seed(look)).double()
    theirs = torch.from_numpy(read.attend(0, q.numpy(), k.numpy(), v.numpy(), [[0.0, look * 0.5, 1.0]]))
    stored = load_file(CACHES[version] / "read.safetensors")[kind].double()
    assert_close(kind, theirs, stored[None], 1e-5)  # as in test_earlier.py
    check_stretches(load_cache(CACHES[version] / f"{kind}.safetensors"), read)


def test_the_decoder_stands_alone() -> None:
    """It imports nothing of ours, nor torch."""
    tree = ast.parse((Path(__file__).parent / "page_decoder.py").read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))
    allowed = {"__future__", "dataclasses", "json", "numpy", "pathlib", "re", "struct", "typing", "zlib"}
    assert {str(name).split(".")[0] for name in found} <= allowed


def test_the_page_has_the_library_s_levels() -> None:
    assert sorted(LEVELS) == [0, *range(1, lloyd_max.MAX_BITS + 1)]
    for bits in range(1, lloyd_max.MAX_BITS + 1):
        assert np.array_equal(LEVELS[bits], np.array(lloyd_max.levels(bits)))
