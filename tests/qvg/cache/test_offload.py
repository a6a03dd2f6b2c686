"""Packed spans in CPU memory: the same results, two layers' copies on the device at most, and none of a history that has changed.

Here `home` is "cpu:0", which torch takes for another device than "cpu" and therefore copies between them; so every step is taken
that a GPU takes, but for streams and pinned memory (`tests/test_gpu.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheFileError, CacheSpec, ConfigError, GridRope, KVCache, QVGConfig
from comfyui_qvg.qvg.bench.cache_watch import CacheWatch
from comfyui_qvg.qvg.cache import offload as offload_module
from comfyui_qvg.qvg.cache.peak import peaks
from comfyui_qvg.qvg.codec.base import EncodeHint
from comfyui_qvg.qvg.codec.span import storage_bytes
from comfyui_qvg.qvg.positions.rope import geometric_frequencies
from comfyui_qvg.qvg.session import load_cache, save_cache
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SPEC = CacheSpec(layers=4, heads=2, head_dim=64, tokens_per_frame=6, batch=2)
ROPE = GridRope(2, 3, ((), geometric_frequencies(16, 3, 30), geometric_frequencies(16, 3, 30)))
_KLT = QVGConfig(codec="klt", bits=2.5, bits_v=1.5, clusters=6, clusters_added=3, span_frames=3, spans_per_codebook=3)
CONFIGS = {
    "qvg": QVGConfig(clusters=4, span_frames=3),
    "qvg_shared": QVGConfig(clusters=4, span_frames=3, spans_per_codebook=2, num_stages=2, symmetric=False),
    "klt": _KLT,
    "klt_window": _KLT.with_changes(window_frames=14),
    "klt_hadamard": _KLT.with_changes(transform="hadamard", sink_frames=0),
    "kivi": QVGConfig(codec="kivi", span_frames=3, window_frames=14),
    "quarot": QVGConfig(codec="quarot", span_frames=3, keys="after_rope"),
    "direct": _KLT.with_changes(workspace_mb=0),
    "fast": QVGConfig(clusters=4, span_frames=3, read="fast"),
}


def _caches(config: QVGConfig, spec: CacheSpec = SPEC, home: str = "cpu:0") -> tuple[KVCache, KVCache]:
    """The same cache twice: all on one device, and with packed spans elsewhere."""
    return KVCache(spec, config, ROPE), KVCache(spec, config.with_changes(offload="cpu"), ROPE, home)


def _attend(cache: KVCache, frame: int) -> Iterator[torch.Tensor]:
    """One pass over all layers, with a moment behind each."""
    cache.place([(0.0, frame * 0.5, 1.0)])
    for layer in range(cache.spec.layers):
        generator = torch.Generator().manual_seed(frame * 10 + layer)
        yield cache.attend(layer, *torch.randn(3, 2, 2, 6, 64, generator=generator))


def _packed_bytes(cache: KVCache, layer: int) -> int:
    return sum(storage_bytes(span for pair in cache.layers[layer].state.spans for span in pair).values())


def _here(cache: KVCache) -> dict[int, int]:
    assert cache.offloader is not None
    return cache.offloader.copied_bytes


@pytest.mark.parametrize("by_layer", [False, True], ids=["commit", "commit_layer"])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_bits_and_two_layers_at_most(name: str, by_layer: bool) -> None:
    near, far = _caches(CONFIGS[name])
    most = 0
    for frame in range(24):
        for _ in range(2):  # a denoise step, and the pass that is committed
            pairs = zip(_attend(near, frame), _attend(far, frame), strict=True)
            for layer, (wanted, got) in enumerate(pairs):
                assert torch.equal(wanted, got), (frame, layer)
                both = (layer, (layer + 1) % SPEC.layers)
                assert _here(far) == {each: _packed_bytes(far, each) for each in both if _packed_bytes(far, each)}
                most = max(most, sum(_here(far).values()))
        for cache in (near, far):
            for layer in range(SPEC.layers):
                cache.commit_layer(layer) if by_layer else None
            None if by_layer else cache.commit()
        assert far.nbytes() == near.nbytes() == SPEC.predict(far.config, frame + 1, codebooks=far.codebooks())
        places = far.placement()
        assert places.device + places.home == far.nbytes().total and near.placement().device == near.nbytes().total
    assert places.home == sum(_packed_bytes(far, layer) for layer in range(SPEC.layers)) > 0
    assert 0 < places.copied == most
    far.verify_encoded()


def test_the_next_layer_is_brought_while_this_one_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    brought = []
    _, cache = _caches(_KLT)
    for frame in range(9):
        list(_attend(cache, frame))
        cache.commit()
    assert cache.offloader is not None
    bring = cache.offloader._bring
    for layer in range(SPEC.layers):
        cache.offloader.forget(layer)
    monkeypatch.setattr(cache.offloader, "_bring", lambda pairs, device: brought.append(len(pairs)) or bring(pairs, device))
    assert [len(brought) for _ in _attend(cache, 9)] == [2, 3, 4, 5], "the first one has to wait"
    assert [len(brought) for _ in _attend(cache, 9)] == [6, 7, 8, 9], "the first one of the next pass is there already"


def test_copies_of_a_changed_history_are_forgotten() -> None:
    near, far = _caches(CONFIGS["qvg"])
    for frame in range(7):
        for _ in zip(_attend(near, frame), _attend(far, frame), strict=True):
            pass
        near.commit(), far.commit()
    assert far.layers[0].state.spans and not _here(far), "the last commit encoded a span of every layer"
    list(_attend(far, 7))
    far.commit()
    assert set(_here(far)) == {3, 0}, "this one encoded nothing"
    far.layers[0].evict(1, 0)
    assert set(_here(far)) == {3}


def test_layers_in_any_order() -> None:
    near, far = _caches(CONFIGS["klt"])
    for frame in range(12):
        for _ in zip(_attend(near, frame), _attend(far, frame), strict=True):
            pass
        near.commit(), far.commit()
    for cache in (near, far):
        cache.place([(0.0, 6.0, 1.0)])
    for layer in (2, 0, 3, 3, 1, 2, 0):
        x = torch.randn(3, 2, 2, 6, 64, generator=torch.Generator().manual_seed(layer))
        assert torch.equal(near.attend(layer, *x), far.attend(layer, *x)), layer
        assert set(_here(far)) == {layer, (layer + 1) % SPEC.layers}


@pytest.mark.parametrize("layers", [1, 2])
def test_fewer_layers_than_that(layers: int) -> None:
    near, far = _caches(CONFIGS["klt"], CacheSpec(layers, 2, 64, 6, batch=2))
    for frame in range(12):
        for wanted, got in zip(_attend(near, frame), _attend(far, frame), strict=True):
            assert torch.equal(wanted, got)
        near.commit(), far.commit()
    list(_attend(far, 12))
    assert set(_here(far)) == set(range(layers))
    assert far.placement().copied == far.placement().home


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_on_the_device_are_those_predicted(name: str) -> None:
    _, cache = _caches(CONFIGS[name])
    for frame in range(24):
        list(_attend(cache, frame))
        cache.commit()
        list(_attend(cache, frame + 1))
        places, predicted = cache.placement(), SPEC.device_bytes(cache.config, frame + 1)
        if cache.codebooks() is not None:  # each layer has begun codebooks of its own: two of the four are here
            assert set(_here(cache)) <= {0, SPEC.layers - 1}
            packed = {layer: _packed_bytes(cache, layer) for layer in range(SPEC.layers)}
            predicted = cache.nbytes().total - packed[1] - packed[2]
        assert places.device + sum(_here(cache).values()) == predicted
        assert predicted <= places.device + places.copied
    everything = SPEC.predict(CONFIGS[name], 24)
    assert everything.total == SPEC.device_bytes(CONFIGS[name], 24)
    assert cache.codebooks() is not None or 2 * predicted == everything.total + everything.exact


def test_at_home_nothing_is_copied() -> None:
    """Without an accelerator the setting changes nothing."""
    near, far = _caches(_KLT, home="cpu")
    for frame in range(12):
        for wanted, got in zip(_attend(near, frame), _attend(far, frame), strict=True):
            assert torch.equal(wanted, got) and not _here(far)
        near.commit(), far.commit()
    assert far.placement() == near.placement() and far.nbytes() == near.nbytes()


def test_an_exact_cache_packs_nothing() -> None:
    cache = KVCache(SPEC, QVGConfig(codec="none", offload="cpu"))
    assert cache.offloader is None and SPEC.device_bytes(cache.config, 9) == SPEC.predict(cache.config, 9).total


def test_reset_equals_birth() -> None:
    _, cache = _caches(_KLT)
    for _ in range(2):
        for frame in range(12):
            list(_attend(cache, frame))
            cache.commit()
        assert _here(cache) or cache.placement().copied
        cache.reset()
        assert not _here(cache) and cache.placement().home == cache.placement().copied == cache.nbytes().total == 0


@pytest.mark.parametrize("config", [CONFIGS["qvg_shared"], _KLT], ids=["qvg", "klt"])
def test_a_session_is_the_same_bytes_and_goes_on(config: QVGConfig, tmp_path: Path) -> None:
    files = tmp_path / "near.safetensors", tmp_path / "far.safetensors"
    caches = _caches(config)
    for cache, file in zip(caches, files, strict=True):
        for frame in range(14):
            list(_attend(cache, frame))
            cache.commit()
        save_cache(cache, file)
    near, far = (load_file(file) for file in files)
    assert set(near) == set(far) and all(torch.equal(near[name], far[name]) for name in near)
    # "cpu:0" is where it goes on here, and its home is "cpu": packed spans are copied to where they stay, codebooks shared.
    resumed = [load_cache(files[0]), load_cache(files[1]), load_cache(files[1], device="cpu:0")]
    assert [cache.placement().home > 0 for cache in resumed] == [False, False, True]
    for frame in range(14, 26):
        for wanted, *got in zip(*(_attend(cache, frame) for cache in (caches[1], *resumed)), strict=True):
            assert all(torch.equal(wanted, each) for each in got)
        for cache in (caches[1], *resumed):
            cache.commit()
            assert cache.nbytes() == SPEC.predict(config, frame + 1, codebooks=cache.codebooks())


def test_a_file_from_before_there_was_such_a_setting(tmp_path: Path) -> None:
    cache, _ = _caches(_KLT)
    list(_attend(cache, 0))
    cache.commit()
    file = tmp_path / "cache.safetensors"
    save_cache(cache, file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    del metadata["crc32"]
    metadata["version"] = "2"  # the last one without checksums
    older = metadata["state"].replace(', "offload": "gpu"', "")
    assert older != metadata["state"]
    save_file(load_file(file), file, {**metadata, "state": older})
    assert load_cache(file).config == cache.config
    save_file(load_file(file), file, {**metadata, "state": "[]"})
    with pytest.raises(CacheFileError, match="contents do not fit together .*the state"):
        load_cache(file)


@pytest.mark.parametrize("value", ["disk", None, 0, "CPU"])
def test_another_place_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=f"offload is {value!r}, but must be one of 'gpu', 'cpu'"):
        QVGConfig(offload=value)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here memory can be pinned")
def test_without_pinned_memory_it_is_pageable_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    offload_module._say_once_that_nothing_is_pinned.cache_clear()
    like = torch.zeros(2, 3, dtype=torch.uint8)
    with caplog.at_level(logging.WARNING, offload_module.__name__):
        rooms = [offload_module._room(like, torch.device("cpu"), True) for _ in range(2)]
    assert all(room.shape == like.shape and room.dtype == like.dtype for room in rooms)
    messages = [record.message for record in caplog.records]
    assert len(set(messages)) == 1 and messages[0].startswith("packed spans are kept in pageable memory")


@pytest.mark.parametrize("by_layer", [True, False], ids=["by_layer", "at_once"])
@pytest.mark.parametrize("name", ["qvg", "qvg_shared", "klt", "klt_window", "kivi"])
def test_the_most_on_the_device_is_bounded_before_the_run(name: str, by_layer: bool) -> None:
    """And not by much: what encoders borrow, and keys that go home before values do, count as if they were there together."""
    cache = KVCache(CacheSpec(8, 2, 64, 48, batch=2), CONFIGS[name].with_changes(offload="cpu"), home="cpu:0")
    bounds = list(peaks(cache.spec, cache.config, [1] * 22, torch.float32, by_layer))
    held, most, generator = CacheWatch(cache), 0, torch.Generator().manual_seed(0)

    def on_device() -> int:
        home = [span for layer in cache.layers for pair in layer.state.spans for span in pair]
        return held.now() - sum(storage_bytes(home).values()) + sum(_here(cache).values())

    for codec in {id(codec): codec for layer in cache.layers for codec in layer.codecs}.values():
        _watch(codec, lambda extra: watched.append(on_device() + extra))
    for bound in bounds:
        watched: list[int] = []
        for layer in range(8):
            cache.attend(layer, *(torch.randn(2, 2, 48, 64, generator=generator) for _ in range(3)))
            watched.append(on_device())
            if by_layer:
                cache.commit_layer(layer)
        if not by_layer:
            cache.commit()
        most = max(most, *watched)
        assert most <= bound.device_bytes
    assert most > 0.9 * bound.device_bytes and bound.device_bytes < bound.peak_bytes


def _watch(codec: Any, note: Callable[[int], None]) -> None:
    """Have `note` called with the bytes that an encoder is lent, while it has them and what it made."""
    encode = codec.encode

    def noting(x: torch.Tensor, hint: EncodeHint) -> Any:
        span = encode(x, hint)
        codebooks = {id(codebook): codebook for codebook in (hint.reuse, hint.warm) if codebook is not None}
        note(sum(tensor.nbytes for codebook in codebooks.values() for tensor in codebook.tensors().values()))
        return span

    codec.encode = noting
