"""A saved cache goes on where it stopped; a damaged, foreign or newer file gets a sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheFileError, CacheSpec, GridRope, KVCache, QVGConfig
from comfyui_qvg.qvg.positions.rope import geometric_frequencies
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


_KLT = QVGConfig(
    codec="klt", bits=2.5, bits_v=1.5, clusters=6, clusters_added=3, span_frames=3, recent_frames=2, spans_per_codebook=3
)
CONFIGS = {
    "qvg": CONFIG,
    "qvg_bits_v": CONFIG.with_changes(bits=4, bits_v=2),
    "exact": QVGConfig(codec="none", span_frames=3),
    "klt": _KLT,
    "klt_window": _KLT.with_changes(window_frames=14),
    "klt_alone": _KLT.with_changes(spans_per_codebook=1, clusters="auto"),
    "klt_hadamard": _KLT.with_changes(transform="hadamard"),
    "klt_rotated_keys": _KLT.with_changes(keys="after_rope"),
    **{
        codec: QVGConfig(codec=codec, bits=3, bits_v=2, symmetric=False, span_frames=3, window_frames=14)
        for codec in ("rtn", "kivi", "quarot")
    },
    "rtn_symmetric": QVGConfig(codec="rtn", span_frames=3),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
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


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("frame_tokens", "group_size"), [(16, 64), (63, 64), (64, 64), (65, 64), (64, 32), (16, 16)])
@pytest.mark.parametrize("codec", ["kivi", "rtn", "quarot", "qvg"])
def test_spans_of_about_one_group(codec: str, frame_tokens: int, group_size: int, bits: int, tmp_path: Path) -> None:
    """One run of KIVI's keys is a view that looks dense and is not: what is kept must be, and come back the same."""
    spec = CacheSpec(layers=1, heads=2, head_dim=64, tokens_per_frame=frame_tokens)
    config = QVGConfig(codec=codec, bits=bits, group_size=group_size, clusters=4, span_frames=1, sink_frames=0, recent_frames=1)
    cache = KVCache(spec, config)
    q, k, v = torch.randn(3, 1, 2, frame_tokens, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        cache.attend(0, q, k, v)
        cache.commit()
    save_cache(cache, tmp_path / "first")
    loaded = load_cache(tmp_path / "first")
    save_cache(loaded, tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    for kept, come_back in zip(cache.layers[0].state.history, loaded.layers[0].state.history, strict=True):
        for one, other in zip(kept, come_back, strict=True):
            tensors = other.tensors()
            for name, tensor in one.tensors().items():
                assert torch.equal(tensor, tensors[name]) and tensor.is_contiguous(), name
    assert torch.equal(cache.attend(0, q, k, v), loaded.attend(0, q, k, v))


@pytest.mark.parametrize("config", [CONFIG, _KLT], ids=["qvg", "klt"])
@pytest.mark.parametrize("frames", [9, 12, 15])
def test_branches_do_not_disturb_each_other(config: QVGConfig, frames: int, tmp_path: Path) -> None:
    """Loaded twice in the middle of a codebook's spans: each goes its own way as if it were alone, and so does the original."""
    cache = KVCache(SPEC, config, ROPE)
    _steps(cache, range(frames))
    file = tmp_path / "cache.safetensors"
    save_cache(cache, file)
    alone = [_steps(load_cache(file), range(start, start + 14)) for start in (frames, 100)]
    left, right = load_cache(file), load_cache(file)
    outs: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for step in range(14):  # by turns
        outs[0].extend(_steps(left, range(frames + step, frames + step + 1)))
        outs[1].extend(_steps(right, range(100 + step, 101 + step)))
    for wanted, got in zip(alone, outs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
    assert not torch.equal(outs[0][-1], outs[1][-1])
    original = _steps(cache, range(frames, frames + 14))
    assert all(torch.equal(a, b) for a, b in zip(original, alone[0], strict=True))
    for branch in (left, right):
        assert branch.nbytes() == SPEC.predict(config, frames + 14, codebooks=branch.codebooks())


def test_a_loaded_cache_shares_its_codebooks_as_before(tmp_path: Path) -> None:
    cache = KVCache(SPEC, _KLT, ROPE)
    _steps(cache, range(22))
    save_cache(cache, tmp_path / "cache.safetensors")
    loaded = load_cache(tmp_path / "cache.safetensors")
    for one in (cache, loaded):
        codewords = [pair.keys.codebook.codewords for pair in one.layers[0].state.spans]  # type: ignore[union-attr]
        assert codewords[0] is codewords[1] is codewords[2] is not codewords[3]
    first, second = (one.layers[1].state.spans[0].values.codebook for one in (cache, loaded))
    assert first is not None and second is not None
    assert all(torch.equal(tensor, second.tensors()[name]) for name, tensor in first.tensors().items())


def _rewritten(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A file whose state was changed; its tensors stay."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = json.loads(metadata["state"])
    change(state)
    save_file(load_file(file), file, {**metadata, "state": json.dumps(state)})


def test_a_file_from_before_there_were_other_codecs(saved: Path) -> None:
    """Version 1 files of the first release know none of the newer settings and have no codebook facts."""

    def age(state: dict[str, Any]) -> None:
        for name in ("bits_v", "clusters_added", "transform", "keys"):
            del state["config"][name]
        del state["planes"], state["directions"], state["group_starts"], state["spare_rows"], state["layout"]["hidden"]

    today = load_cache(saved)
    _rewritten(saved, age)
    old = load_cache(saved)
    assert old.config == CONFIG and old.nbytes() == today.nbytes()
    for a, b in zip(_steps(today, range(12, 22)), _steps(old, range(12, 22)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("planes", "why"),
    [
        ([[]], "must be 1 to 6 multiples of 8"),
        ([[8] * 7], "must be 1 to 6 multiples of 8"),
        ([[60]], "must be 1 to 6 multiples of 8"),
        ([[72, 64]], "that fall from at most 64"),
        ([[64, 32, 8]], "codes is"),
        ([], "for a batch of 1"),
        ([[64, 32]] * 2, "for a batch of 1"),
        (None, "NoneType"),
        ([["x"]], "invalid literal"),
    ],
    ids=["none", "seven", "uneven", "wide", "other_width", "no_row", "two_rows", "null", "text"],
)
def test_planes_that_do_not_fit(planes: object, why: str, tmp_path: Path) -> None:
    cache = KVCache(SPEC, _KLT, ROPE)
    _steps(cache, range(12))
    file = tmp_path / "cache.safetensors"
    save_cache(cache, file)
    _rewritten(file, lambda state: state["planes"].update(dict.fromkeys(state["planes"], planes)))
    with pytest.raises(CacheFileError, match=f"do not fit together .*{why}"):
        load_cache(file)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layer.0.keys.1.codes", lambda x: x[..., :-1].contiguous()),
        ("layer.0.keys.1.gains", lambda x: x[:, :, 1:].contiguous()),
        ("layer.0.values.1.ids", lambda x: x + 200),
        ("codebook.0.centroids", lambda x: x[..., :32].contiguous()),
        ("codebook.0.centroid_scales", lambda x: x.float()),
        ("basis.0.basis", lambda x: x[:, :, :5].contiguous()),
        ("basis.0.basis", lambda x: x[..., :5].contiguous()),
        ("basis.0.basis_scales", lambda x: x[:, :1].contiguous()),
        ("basis.0.basis", None),
        ("layer.0.keys.1.gains", None),
    ],
    ids=["codes", "gains", "ids", "centroids", "scales", "few_rows", "short_rows", "basis_scales", "no_basis", "no_gains"],
)
def test_tensors_of_klt_that_do_not_fit(name: str, change: Callable[[torch.Tensor], torch.Tensor] | None, tmp_path: Path) -> None:
    from safetensors import safe_open

    cache = KVCache(CacheSpec(layers=1, heads=2, head_dim=64, tokens_per_frame=96), _KLT)
    for frame in range(9):  # spans long enough to learn a basis from
        cache.attend(0, *torch.randn(3, 1, 2, 96, 64, generator=torch.Generator().manual_seed(frame)))
        cache.commit()
    file = tmp_path / "cache.safetensors"
    save_cache(cache, file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    changed = tensors.pop(name)
    save_file(tensors if change is None else {**tensors, name: change(changed)}, file, metadata)
    with pytest.raises(CacheFileError, match="do not fit together"):
        load_cache(file)


@pytest.mark.parametrize("part", ["codes", "scales", "zero_points"])
@pytest.mark.parametrize("codec", ["rtn", "kivi", "quarot"])
def test_tensors_of_the_baselines_that_do_not_fit(codec: str, part: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    cache = KVCache(SPEC, CONFIGS[codec], ROPE)
    _steps(cache, range(12))
    file = tmp_path / "cache.safetensors"
    save_cache(cache, file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    for which in ("keys", "values"):
        name = f"layer.0.{which}.1.{part}"
        for wrong in (tensors[name][..., 1:].contiguous(), tensors[name].float(), None):
            rest = {other: tensor for other, tensor in tensors.items() if other != name}
            save_file(rest if wrong is None else {**rest, name: wrong}, file, metadata)
            with pytest.raises(CacheFileError, match="do not fit together"):
                load_cache(file)


def test_a_file_holds_the_memory_format_and_shared_codebooks_once(tmp_path: Path) -> None:
    cache = KVCache(SPEC, CONFIG, ROPE)
    _steps(cache, range(12))
    file = tmp_path / "cache.safetensors"
    save_cache(cache, file)
    tensors = load_file(file)
    assert sum(tensor.nbytes for tensor in tensors.values()) == cache.nbytes().total
    span = cache.layers[1].state.spans[0].keys
    assert torch.equal(tensors["layer.1.keys.1.codes"], span.tensors()["codes"])
    assert list(tmp_path.iterdir()) == [file]


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
    save_file({"x": torch.zeros(1)}, file, {"format": "qvg-cache", "version": "3"})
    with pytest.raises(CacheFileError, match="version 3, this version reads 1 and 2; update the pack"):
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


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_others_can_read_what_the_umask_lets_them(saved: Path) -> None:
    (saved.parent / "usual").touch()
    assert saved.stat().st_mode == (saved.parent / "usual").stat().st_mode
    assert {file.name for file in saved.parent.iterdir()} == {"cache.safetensors", "usual"}


def test_a_link_is_not_followed(saved: Path) -> None:
    mine = saved.with_name("mine")
    mine.write_text("mine")
    link = saved.with_name("link.safetensors")
    link.symlink_to(mine)
    save_cache(load_cache(saved), link)
    assert mine.read_text() == "mine" and not link.is_symlink() and load_cache(link).nbytes() == load_cache(saved).nbytes()


def test_a_failed_save_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(CacheFileError, match="could not be written"):
        save_cache(load_cache(saved, ROPE), saved.parent / "no_such_folder" / "cache.safetensors")
    assert saved.read_bytes() == before


def test_replaced_positions_are_saved(tmp_path: Path) -> None:
    cache = KVCache(SPEC, CONFIG, ROPE)
    _steps(cache, range(17))
    cache.replace_origins([(0.0, 2.0 * frame, 0.0) for frame in range(cache.layout.frames)])
    save_cache(cache, tmp_path / "cache.safetensors")
    resumed = load_cache(tmp_path / "cache.safetensors", ROPE)
    assert resumed.origins == cache.origins
    assert all(torch.equal(a, b) for a, b in zip(_steps(cache, range(17, 24)), _steps(resumed, range(17, 24)), strict=True))
