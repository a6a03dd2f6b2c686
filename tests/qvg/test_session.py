"""A saved cache goes on where it stopped; a damaged, foreign or newer file gets a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg import CacheFileError, CacheSpec, GridRope, KVCache, QVGConfig
from comfyui_qvg.qvg.rope import geometric_frequencies
from comfyui_qvg.qvg.session import load_cache, save_cache
from safetensors.torch import load_file, save_file

ROPE = GridRope(2, 3, ((), geometric_frequencies(16, 3, 30), geometric_frequencies(16, 3, 30)))
SPEC = CacheSpec(layers=2, heads=2, head_dim=64, tokens_per_frame=6)
CONFIG = QVGConfig(clusters=4, span_frames=3, recent_frames=2, spans_per_codebook=2, window_frames=14, symmetric=False)


def _steps(cache: KVCache, frames: range) -> list[torch.Tensor]:
    outs = []
    for frame in frames:
        cache.place([(0.0, frame * 0.5, 1.0)])
        for layer in range(2):
            q, k, v = torch.randn(3, 1, 2, 6, 64, generator=torch.Generator().manual_seed(frame * 2 + layer))
            outs.append(cache.attend(layer, q, k, v))
        cache.commit()
    return outs


@pytest.mark.parametrize("config", [CONFIG, QVGConfig(codec="none", span_frames=3)], ids=["qvg", "exact"])
def test_resumed_equals_uninterrupted(config: QVGConfig, tmp_path: Path) -> None:
    cache = KVCache(SPEC, config, ROPE)
    _steps(cache, range(17))
    file = tmp_path / "cache.safetensors"
    save_cache(cache, file)
    resumed = load_cache(file, ROPE)
    assert resumed.nbytes() == cache.nbytes() and resumed.config == config and resumed.origins == cache.origins
    for a, b in zip(_steps(cache, range(17, 30)), _steps(resumed, range(17, 30)), strict=True):
        assert torch.equal(a, b)
    assert resumed.nbytes() == cache.nbytes()


def test_a_file_holds_the_memory_format_and_shared_codebooks_once(tmp_path: Path) -> None:
    cache = KVCache(SPEC, CONFIG, ROPE)
    _steps(cache, range(12))
    file = tmp_path / "cache.safetensors"
    save_cache(cache, file)
    tensors = load_file(file)
    assert sum(tensor.nbytes for tensor in tensors.values()) == cache.nbytes().total
    span = cache.layers[1].state.spans[0].keys
    assert torch.equal(tensors["layer.1.keys.1.codes"], span.tensors()["codes"])
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    cache = KVCache(SPEC, CONFIG, ROPE)
    _steps(cache, range(12))
    save_cache(cache, tmp_path / "cache.safetensors")
    return tmp_path / "cache.safetensors"


@pytest.mark.parametrize("keep", [0, 7, 500, -1], ids=["empty", "header_cut", "tensors_cut", "one_byte_short"])
def test_truncated(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CacheFileError, match="cannot be read as a saved cache .* truncated or foreign"):
        load_cache(saved, ROPE)


def test_missing_and_foreign(tmp_path: Path) -> None:
    with pytest.raises(CacheFileError, match="cannot be read as a saved cache"):
        load_cache(tmp_path / "none.safetensors")
    foreign = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3)}, foreign, {"format": "pt"})
    with pytest.raises(CacheFileError, match="not a saved cache"):
        load_cache(foreign)
    (tmp_path / "text.safetensors").write_text("hello " * 100)
    with pytest.raises(CacheFileError, match="truncated or foreign"):
        load_cache(tmp_path / "text.safetensors")


def test_newer_version(tmp_path: Path) -> None:
    file = tmp_path / "cache.safetensors"
    save_file({"x": torch.zeros(1)}, file, {"format": "qvg-cache", "version": "2"})
    with pytest.raises(CacheFileError, match="version 2, this version reads 1; update the pack"):
        load_cache(file)


def test_contents_that_do_not_fit(saved: Path) -> None:
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    del tensors["layer.1.values.1.codes"]
    save_file(tensors, saved, metadata)
    with pytest.raises(CacheFileError, match="do not fit together"):
        load_cache(saved, ROPE)


def test_rope_comes_from_the_file_and_another_is_refused(saved: Path) -> None:
    assert load_cache(saved).rope == ROPE
    with pytest.raises(CacheFileError, match="not the one it was saved with"):
        load_cache(saved, GridRope(2, 3, ((0.5,) * 4, (0.5,) * 14, (0.5,) * 14)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layer.0.keys.1.codes", lambda x: x[:, :, :5].contiguous()),
        ("layer.1.values.0.exact", lambda x: x.double()),
        ("layer.0.keys.1.ids", lambda x: x + 200),
        ("codebook.0", lambda x: x[:, :, :, :, :32].contiguous()),
    ],
    ids=["short_codes", "wrong_dtype", "ids_out_of_range", "narrow_codebook"],
)
def test_tensors_that_do_not_fit(saved: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    save_file({**tensors, name: change(tensors[name])}, saved, metadata)
    with pytest.raises(CacheFileError, match="do not fit together"):
        load_cache(saved, ROPE)


def test_a_failed_save_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(CacheFileError, match="could not be written"):
        save_cache(load_cache(saved, ROPE), saved.parent / "no_such_folder" / "cache.safetensors")
    assert saved.read_bytes() == before
