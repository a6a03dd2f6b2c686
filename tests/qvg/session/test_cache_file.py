"""A saved cache goes on where it stopped; a damaged, foreign or newer file gets a sentence."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheFileError, CacheSpec, ConfigError, GridRope, KVCache, QVGConfig
from comfyui_qvg.qvg.positions.rope import geometric_frequencies
from comfyui_qvg.qvg.session import load_cache, save_cache
from safetensors.torch import load_file, save_file

from ...saved_caches import Tensors, read_apart, rewrite, write_sealed

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


@pytest.mark.parametrize("sink_frames", [0, 1])
def test_a_pinned_block_goes_on_being_pinned(sink_frames: int, tmp_path: Path) -> None:
    """A scene cut before the file is written, and one behind it, which sets the first one free."""
    caches = [KVCache(SPEC, CONFIG.with_changes(sink_frames=sink_frames), ROPE)]
    _steps(caches[0], range(7))
    caches[0].pin_next()
    _steps(caches[0], range(7, 12))
    save_cache(caches[0], tmp_path / "cache.safetensors")
    caches.append(load_cache(tmp_path / "cache.safetensors", ROPE))
    outs = []
    for cache in caches:
        made = _steps(cache, range(12, 15))
        cache.pin_next()
        outs.append([*made, *_steps(cache, range(15, 24))])
    assert caches[0].origins == caches[1].origins and caches[0].layout == caches[1].layout
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))


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


def _changed(name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Callable[[Tensors], None]:
    """One tensor of a file is another, or is taken out."""

    def apply(tensors: Tensors) -> None:
        before = tensors.pop(name)
        if change is not None:
            tensors[name] = change(before)

    return apply


def test_a_file_from_before_there_were_other_codecs(saved: Path) -> None:
    """Version 1 files of the first release know none of the newer settings and have no codebook facts."""

    def age(state: dict[str, Any]) -> None:
        for name in ("bits_v", "clusters_added", "transform", "keys"):
            del state["config"][name]
        del state["planes"], state["directions"], state["group_starts"], state["spare_rows"], state["layout"]["hidden"]
        state["codebooks"] = {prefix: names[0] for prefix, names in state["codebooks"].items()}

    today = load_cache(saved)
    rewrite(saved, age, version=1)
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
        ([], "must be a list of 1"),
        ([[64, 32]] * 2, "must be a list of 1"),
        (None, "is None, but must be a list"),
        ([["x"]], "is 'x', but must be a whole number"),
    ],
    ids=["none", "seven", "uneven", "wide", "other_width", "no_row", "two_rows", "null", "text"],
)
def test_planes_that_do_not_fit(planes: object, why: str, tmp_path: Path) -> None:
    cache = KVCache(SPEC, _KLT, ROPE)
    _steps(cache, range(12))
    file = tmp_path / "cache.safetensors"
    save_cache(cache, file)
    rewrite(file, lambda state: state["planes"].update(dict.fromkeys(state["planes"], planes)))
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
    cache = KVCache(CacheSpec(layers=1, heads=2, head_dim=64, tokens_per_frame=96), _KLT)
    for frame in range(9):  # spans long enough to learn a basis from
        cache.attend(0, *torch.randn(3, 1, 2, 96, 64, generator=torch.Generator().manual_seed(frame)))
        cache.commit()
    file = tmp_path / "cache.safetensors"
    save_cache(cache, file)
    rewrite(file, tensors=_changed(name, change))
    with pytest.raises(CacheFileError, match="do not fit together"):
        load_cache(file)


@pytest.mark.parametrize("part", ["codes", "scales", "zero_points"])
@pytest.mark.parametrize("codec", ["rtn", "kivi", "quarot"])
def test_tensors_of_the_baselines_that_do_not_fit(codec: str, part: str, tmp_path: Path) -> None:
    cache = KVCache(SPEC, CONFIGS[codec], ROPE)
    _steps(cache, range(12))
    file = tmp_path / "cache.safetensors"
    changes: list[Callable[[torch.Tensor], torch.Tensor] | None] = [lambda x: x[..., 1:], lambda x: x.float(), None]
    for which in ("keys", "values"):
        for change in changes:
            save_cache(cache, file)
            rewrite(file, tensors=_changed(f"layer.0.{which}.1.{part}", change))
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
    with pytest.raises(CacheFileError, match=r"none.safetensors cannot be opened \(No such file or directory\); name a file"):
        load_cache(tmp_path / "none.safetensors")
    with pytest.raises(CacheFileError, match=r"cannot be opened \(it is a folder\)"):
        load_cache(tmp_path)
    foreign = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3)}, foreign, {"format": "pt"})
    with pytest.raises(CacheFileError, match="not a saved cache"):
        load_cache(foreign)
    (tmp_path / "text.safetensors").write_text("hello " * 100)
    with pytest.raises(CacheFileError, match="truncated or foreign"):
        load_cache(tmp_path / "text.safetensors")


def test_newer_version(tmp_path: Path) -> None:
    file = tmp_path / "cache.safetensors"
    save_file({"x": torch.zeros(1)}, file, {"format": "qvg-cache", "version": "6"})
    with pytest.raises(CacheFileError, match="version 6, this version reads 1, 2, 3, 4 and 5; update the pack"):
        load_cache(file)


def test_contents_that_do_not_fit(saved: Path) -> None:
    rewrite(saved, tensors=_changed("layer.1.values.1.codes", None))
    with pytest.raises(CacheFileError, match="do not fit together"):
        load_cache(saved, ROPE)


def test_rope_comes_from_the_file_and_another_is_refused(saved: Path) -> None:
    assert load_cache(saved).rope == ROPE
    with pytest.raises(ConfigError, match="not the one that .* was saved with; leave it out"):
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
    rewrite(saved, tensors=_changed(name, change))
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


def test_one_flipped_bit_is_found(saved: Path) -> None:
    """Wherever it is: in a tensor, in the state, in the checksums, in the header's names."""
    whole = saved.read_bytes()
    body = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, body, 397), *range(body, len(whole), 211)]
    for number, place in enumerate(places):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << number % 8
        saved.write_bytes(damaged)
        with pytest.raises(CacheFileError) as refused:
            load_cache(saved)
        assert place < body or "is damaged: " in str(refused.value), refused.value


def test_versions_cannot_be_mistaken_for_one_another(saved: Path) -> None:
    metadata, state, tensors = read_apart(saved)
    write_sealed(saved, 2, state, tensors)
    load_cache(saved)
    save_file(tensors, saved, {**metadata, "version": "2"})
    with pytest.raises(CacheFileError, match="says that it is of version 2, but has checksums"):
        load_cache(saved)
    save_file(tensors, saved, {"format": "qvg-cache", "version": "3", "state": metadata["state"]})
    with pytest.raises(CacheFileError, match="says that it is of version 3, but has no checksums"):
        load_cache(saved)


def _put(*path: Any, value: Any) -> Callable[[Any], None]:
    def apply(state: Any) -> None:
        for step in path[:-1]:
            state = state[step]
        state[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_put("spec", "layers", value=10**9), "must be a list of 1000000000"),
        (_put("spec", "layers", value=1), "must be a list of 1"),
        (_put("spec", "heads", value=3), "is .* but must be"),
        (_put("spec", "head_dim", value=10**9), "head_dim is 1000000000"),
        (_put("spec", "dtype", value="load"), "dtype is 'load'"),
        (_put("frames_committed", value=-5), "whole number"),
        (_put("frames_committed", value=3), "3 frames and 3 spans were made"),
        (_put("frames_committed", value=10**30), "whole number"),
        (_put("frames_committed", value=float("inf")), "Infinity"),
        (_put("spans_due", value=0), "0 spans were made, and it holds"),
        (_put("encode_calls", value=[10**9, 6]), "encode_calls is 1000000000"),
        (_put("config", "window_frames", value=8), "a window of 8 leaves room for 7"),
        (_put("config", "seed", value=-1), "seed is -1"),
        (_put("config", "colour", value=1), "a setting 'colour'"),
        (_put("rope", "axis_frequencies", 1, 0, value=float("nan")), "NaN"),
        (_put("rope", "axis_frequencies", 1, value=[0.5]), "its rope turns 6 tokens of 34 channels"),
        (_put("rope", "grid_rows", value=-2), "grid_rows is -2"),
        (_put("rope", value=7), "rope is 7, but must be an object"),
        (_put("origins", 0, value=[0, 1]), "must be a list of 3"),
        (_put("origins", value=[]), "0 positions for 12 frames"),
        (_put("layout", "sink", value=[1.5]), "whole number"),
        (_put("layout", "hidden", value=3), "3 frames are hidden"),
        (_put("layout", "tail", value=[40]), "more than the 1 frames"),
        (_put("codebooks", value={}), "0 stretches have codebooks, but 12 must"),
        (_put("group_starts", 0, value=[0, 99]), "whole number from 0 to 2"),
        (lambda state: state.pop("origins"), "has no 'origins'"),
    ],
)
def test_a_state_that_cannot_be(change: Callable[[Any], Any], why: str, tmp_path: Path) -> None:
    """Sealed anew, so no checksum tells; refused before memory is taken, in one sentence."""
    cache = KVCache(SPEC, CONFIG, ROPE)
    _steps(cache, range(12))
    save_cache(cache, tmp_path / "cache")
    rewrite(tmp_path / "cache", state=change)
    with pytest.raises(CacheFileError, match=why) as refused:
        load_cache(tmp_path / "cache")
    assert len(str(refused.value)) < 600 and "\n" not in str(refused.value)


def test_what_belongs_to_nothing_is_named(saved: Path) -> None:
    rewrite(saved, tensors=lambda tensors: tensors.update({"layer.7.keys.0.exact": torch.zeros(1)}))
    with pytest.raises(CacheFileError, match="layer.7.keys.0.exact, which belongs to nothing"):
        load_cache(saved)


@pytest.mark.parametrize("part", ["layer.0.keys.0.exact", "layer.1.values.1.scales", "codebook.0"])
def test_values_that_are_no_numbers(saved: Path, part: str) -> None:
    rewrite(saved, tensors=_changed(part, lambda x: x.fill_(float("nan") if x.is_floating_point() else 0x7F)))
    with pytest.raises(CacheFileError, match=f"{part} holds NaN"):
        load_cache(saved)


def test_the_caller_is_told_of_the_caller_s_mistakes(saved: Path) -> None:
    for device in ("gpu", "meta", "" if torch.cuda.is_available() else "cuda", 7.5):
        with pytest.raises(ConfigError, match="device is '.*', which cannot be used here"):
            load_cache(saved, device=device)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="backend is 'fast', but must be one of"):
        load_cache(saved, backend="fast")


def test_a_machine_that_lacks_the_backend(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_qvg.qvg import BackendError
    from comfyui_qvg.qvg.cache import kv_cache

    def require(backend: str) -> None:
        if backend == "triton":
            raise BackendError("attention", backend, "no Triton here")

    monkeypatch.setattr(kv_cache, "require_backend", require)
    rewrite(saved, state=_put("config", "backend", value="triton"))
    with pytest.raises(CacheFileError, match=r"saved with backend 'triton', which does not run here .* backend='auto'"):
        load_cache(saved)
    assert load_cache(saved, backend="auto").config.backend == "auto"


@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_run_comes_to_is_read(seed: int, tmp_path: Path) -> None:
    """Blocks of any sizes, sinks, windows and spans: what the checks of a state refuse, no cache comes to."""
    dice = random.Random(seed)
    loaded = 0
    while loaded < 12:
        chunk = dice.choice([1, 1, 2, 3])
        spec = CacheSpec(1, 1, 16, 2, chunk_frames=chunk)
        try:
            config = QVGConfig(
                codec=dice.choice(["none", "rtn", "kivi", "klt"]),
                clusters=1,
                group_size=16,
                sink_frames=dice.choice([0, 1, 2, 5]),
                recent_frames=dice.choice([0, 1, 3]),
                span_frames=dice.choice([1, 2, 5, "auto"]),
                window_frames=dice.choice([None, 6, 9, 14]),
                spans_per_codebook=dice.choice([1, 3]),
            )
            cache = KVCache(spec, config)
        except ConfigError:
            continue
        for _ in range(dice.randrange(0, 20)):
            tokens = 2 * dice.choice([chunk, chunk, dice.randrange(1, chunk + 1)])
            cache.layers[0].append(*torch.randn(2, 1, 1, tokens, 16, generator=torch.Generator().manual_seed(seed)))
            cache.commit()
        save_cache(cache, tmp_path / "cache")
        again = load_cache(tmp_path / "cache")
        assert (again.layout, again.frames_committed, again.spans_due) == (cache.layout, cache.frames_committed, cache.spans_due)
        loaded += 1


def test_codecs_to_compare_with_are_not_saved(tmp_path: Path) -> None:
    """Files have no format for their spans; and a file that says it holds some is refused before anything is made of it."""
    cache = KVCache(CacheSpec(1, 1, 16, 4), QVGConfig(codec="nvfp4", bits=4, span_frames=1, recent_frames=0))
    with pytest.raises(CacheFileError, match=r"codec 'nvfp4' is there to compare with, and files have no format for its spans"):
        save_cache(cache, tmp_path / "cache.safetensors")
    assert not list(tmp_path.iterdir())
