"""A session grows with its run, is whole at every checkpoint, and goes on bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, ConfigError, KVCache, QVGConfig, SessionError
from comfyui_qvg.qvg.codec.span import Span, TransformSpan
from comfyui_qvg.qvg.errors import SessionInUseError
from comfyui_qvg.qvg.files import force_all_to_disk
from comfyui_qvg.qvg.safetensors_writer import write_safetensors
from comfyui_qvg.qvg.session import Session, manifest, segment
from comfyui_qvg.qvg.session.session import DEFAULT_EVERY

from ...helpers import LiveBytes
from .test_cache_file import CONFIG, CONFIGS, ROPE, SPEC


def _block(cache: KVCache, frame: int) -> torch.Tensor:
    """One frame in every layer; what attention gives for it is its latent."""
    cache.place([(0.0, frame % 5 * 1.0, 1.0)])
    outs = []
    for layer in range(SPEC.layers):
        q, k, v = torch.randn(3, 1, 2, 6, 64, generator=torch.Generator().manual_seed((frame % 10) * 2 + layer))
        outs.append(cache.attend(layer, q, k, v))
    cache.commit()
    return torch.stack(outs, 1)


def _run(session: Session, cache: KVCache, frames: range) -> list[torch.Tensor]:
    made = []
    for frame in frames:
        made.append(_block(cache, frame))
        session.add(made[-1], [cache], frames=1, number=frame)
        if session.due:
            session.checkpoint([cache])
    return made


def _created(folder: Path, config: QVGConfig, every: int = 1) -> tuple[Session, KVCache]:
    return Session.create(folder, "test", {"weights": "none"}, {"seed": 1}, every=every), KVCache(SPEC, config, ROPE)


RESUMED = {
    "qvg": (CONFIG, 1),
    "qvg_bits_v": (CONFIGS["qvg_bits_v"], 4),
    "exact": (CONFIGS["exact"], 1),
    "exact_window": (QVGConfig(codec="none", window_frames=8), 4),
    "klt": (CONFIGS["klt"], 4),
    "klt_window": (CONFIGS["klt_window"], 1),
    "kivi": (CONFIGS["kivi"], 4),
    "merge": (QVGConfig(codec="klt", bits=2, clusters=4, span_frames=3, recent_frames=2, merge=0.99), 1),
    "sparse": (QVGConfig(codec="klt", bits=2, clusters=6, span_frames=3, recent_frames=2, sparse=0.5), 4),
}


@pytest.mark.parametrize(("config", "every"), RESUMED.values(), ids=RESUMED)
def test_resumed_equals_unbroken(config: QVGConfig, every: int, tmp_path: Path) -> None:
    """Left and gone on with twice, once in the middle of a codebook's spans."""
    unbroken = [_block(cache, frame) for cache in [KVCache(SPEC, config, ROPE)] for frame in range(22)]
    session, cache = _created(tmp_path / "a", config, every)
    with session:
        made = _run(session, cache, range(10))
    held = cache.nbytes()
    for first, last in ((10, 17), (17, 22)):
        with Session.open(tmp_path / "a", {"seed": 1}, {"weights": "none"}) as session:
            assert session.blocks == first == session.manifest.frames
            (cache,) = session.restore()
            assert cache.nbytes() == held
            made += _run(session, cache, range(first, last))
        held = cache.nbytes()
    assert all(torch.equal(one, other) for one, other in zip(made, unbroken, strict=True))
    kept = list(Session.look(tmp_path / "a").finished())
    assert [facts for _, facts in kept] == [{"number": frame, "frames": 1} for frame in range(22)]
    assert all(torch.equal(latent, one) for (latent, _), one in zip(kept, made, strict=True))


def _bytes(folder: Path) -> int:
    """All that is on disk but latents."""
    return sum(path.stat().st_size for path in folder.iterdir() if not path.name.startswith("blocks-"))


@pytest.mark.parametrize("every", [1, DEFAULT_EVERY])
@pytest.mark.parametrize("window", [None, 12])
def test_bytes_on_disk_are_those_in_memory(every: int, window: int | None, tmp_path: Path) -> None:
    """Heads and frames as large as the demo world's. On disk at any time at most a tenth more than in memory; written in all at
    most a tenth more than all spans with their codebooks, and the exact chunks that a checkpoint met."""
    spec = CacheSpec(layers=2, heads=2, head_dim=128, tokens_per_frame=64)
    config = QVGConfig.preset("balanced").with_changes(span_frames=4, window_frames=window, iterations=1)
    session, cache = Session.create(tmp_path / "a", "test", {}, {}, every=every), KVCache(spec, config)
    packed, met = [0], set[int]()
    cache.observe(lambda span, _: packed.append(0 if span.codec == "none" else _own_bytes(span)))
    tokens = 64 * 2 * 2 * 128 * 2 * 2  # bytes of a chunk, 16 bits per value
    for frame in range(24):
        x = torch.randn(2, 1, 2, 64, 128, generator=torch.Generator().manual_seed(frame // 3))
        for layer in range(2):
            cache.attend(layer, x[0], x[0], x[1])
        cache.commit()
        session.add(torch.zeros(1, 1, 3, 8, 8), [cache])
        if session.due:
            session.checkpoint([cache])
            assert _bytes(session.folder) <= 1.1 * cache.nbytes().total
            layout = cache.layout
            met |= set(range(sum(layout.sink))) | set(range(frame + 1 - sum(layout.tail), frame + 1))
    codebooks = cache.nbytes().centroids + cache.nbytes().basis if window is None else 2 * sum(packed)
    written = session.written_bytes - sum(path.stat().st_size for path in session.folder.glob("blocks-*"))
    assert written <= 1.1 * (sum(packed) + codebooks + tokens * len(met))
    session.close()


def _own_bytes(span: Span) -> int:
    shared = {} if span.codebook is None else span.codebook.tensors()
    return sum(tensor.nbytes for name, tensor in span.tensors().items() if name not in shared)


def test_a_checkpoint_takes_no_longer_at_the_end_of_a_long_run(tmp_path: Path) -> None:
    """Four hundred blocks: what is written by the last five checkpoints is what the second five wrote."""
    spec = CacheSpec(layers=1, heads=1, head_dim=64, tokens_per_frame=4)
    cache = KVCache(spec, QVGConfig(codec="rtn", span_frames=4, recent_frames=2))
    k = torch.randn(1, 1, 4, 64)
    layer = cache.layers[0]
    written, said = [], []
    with Session.create(tmp_path / "a", "test", {}, {}, every=20) as session:
        for _ in range(400):
            layer.append(k, k)
            cache.commit()
            session.add(torch.zeros(1, 1, 3, 2, 2), [cache])
            if session.due:
                before = session.manifest.index_bytes + session.written_bytes
                session.checkpoint([cache])
                written.append(session.manifest.index_bytes + session.written_bytes - before)
                said.append(len(session.manifest.text()))
    assert max(written[-5:]) <= max(written[5:10]) + 64 and max(said) - min(said[5:]) <= 64


def test_what_is_asked_for_must_be_what_was_made(tmp_path: Path) -> None:
    session, cache = _created(tmp_path / "a", CONFIG)
    with session:
        _run(session, cache, range(3))
        with pytest.raises(SessionInUseError, match="another run writes to"):
            Session.open(tmp_path / "a")
        with Session.branch(tmp_path / "a", tmp_path / "early") as early:
            assert early.blocks == 3
    with pytest.raises(SessionError, match="was made with seed 1 and not 2, so what came next would be another video"):
        Session.open(tmp_path / "a", {"seed": 2})
    with pytest.raises(SessionError, match='weights "none" and not "others"; seed 1 and not null'):
        Session.open(tmp_path / "a", {}, {"weights": "others"})
    with pytest.raises(ConfigError, match="has something in it; name another folder"):
        Session.create(tmp_path / "a", "test", {}, {})
    with pytest.raises(SessionError, match="holds no session"):
        Session.open(tmp_path)
    Session.open(tmp_path / "a").close()


def test_a_branch_shares_what_was_and_goes_its_own_way(tmp_path: Path) -> None:
    session, cache = _created(tmp_path / "a", CONFIGS["klt"])
    with session:
        _run(session, cache, range(9))
    with Session.branch(tmp_path / "a", tmp_path / "b") as branch:
        assert branch.manifest.parent == {"id": session.manifest.id, "name": "a", "blocks": 9}
        shared = list(branch.folder.glob("*.safetensors"))
        assert shared and all(path.samefile(tmp_path / "a" / path.name) for path in shared)
        left = _run(branch, branch.restore()[0], range(9, 14))
    with Session.open(tmp_path / "a") as session:
        right = _run(session, session.restore()[0], range(20, 25))
    assert not torch.equal(left[-1], right[-1])
    unbroken = [_block(cache, frame) for cache in [KVCache(SPEC, CONFIGS["klt"], ROPE)] for frame in [*range(9), *range(20, 25)]]
    for path in list((tmp_path / "b").iterdir()):
        path.unlink()
    with Session.open(tmp_path / "a") as session:
        session.restore()
        assert all(torch.equal(one, latent) for one, (latent, _) in zip(unbroken, session.finished(), strict=True))


def _full_after(calls: int, function: Callable[..., None]) -> Callable[..., None]:
    left = iter(range(calls))

    def called(*arguments: Any, **named: Any) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        function(*arguments, **named)

    return called


def test_a_checkpoint_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses at one file after the other; then it has room again."""
    unbroken = [_block(cache, frame) for cache in [KVCache(SPEC, CONFIGS["klt"], ROPE)] for frame in range(12)]
    session, cache = _created(tmp_path / "a", CONFIGS["klt"], every=100)
    made = _run(session, cache, range(6))
    session.checkpoint([cache])
    made += _run(session, cache, range(6, 10))
    for files in range(5):
        with monkeypatch.context() as patch:
            patch.setattr(segment, "write_safetensors", _full_after(files, write_safetensors))
            patch.setattr(manifest, "force_all_to_disk", _full_after(0, force_all_to_disk))
            with pytest.raises(OSError, match="No space left"):
                session.checkpoint([cache])
        looked = Session.look(tmp_path / "a")
        assert looked.blocks == 6 and looked.restore()[0].frames_committed == 6
    made += _run(session, cache, range(10, 12))
    session.checkpoint([cache])
    session.close()
    assert all(
        torch.equal(one, latent) for one, (latent, _) in zip(unbroken, Session.look(tmp_path / "a").finished(), strict=True)
    )
    names = {path.stem for path in (tmp_path / "a").glob("*.safetensors")}
    with Session.open(tmp_path / "a") as session:
        assert {path.stem for path in (tmp_path / "a").glob("*.safetensors")} == set(session.index.segments) <= names
        assert session.restore()[0].nbytes() == cache.nbytes()


def test_another_cache_in_the_place_of_one_is_written_anew(tmp_path: Path) -> None:
    """A prompt that changes makes all that is remembered anew."""
    session, cache = _created(tmp_path / "a", CONFIG)
    with session:
        _run(session, cache, range(8))
        cache.reset()
        made = _run(session, cache, range(20, 28))
        names = list(session.index.segments)
    assert not any(name.startswith("c0-0-") for name in names)
    assert torch.equal(made[-1], [latent for latent, _ in Session.look(tmp_path / "a").finished()][-1])
    with Session.open(tmp_path / "a") as session:
        assert torch.equal(_block(session.restore()[0], 28), _block(cache, 28))


def test_a_run_that_was_ended_before_its_first_checkpoint(tmp_path: Path) -> None:
    """And one that was ended while it was made: the folder is taken again."""
    _created(tmp_path / "a", CONFIG)[0].close()
    with Session.open(tmp_path / "a") as session, Session.branch(tmp_path / "a", tmp_path / "b") as branch:
        assert session.restore() == branch.restore() == [] and session.blocks == branch.blocks == 0
    with Session.create(tmp_path / "c", "test", {}, {}, tensors={"image": torch.ones(2)}) as session:
        (session.folder / "session.json").unlink()
    with Session.create(tmp_path / "c", "test", {}, {}) as session:
        assert session.start() == {}


def test_memory_that_changes_long_after_has_no_session(tmp_path: Path) -> None:
    with Session.create(tmp_path / "a", "test", {}, {}) as session, pytest.raises(ConfigError, match="codec 'none' changes what"):
        session.checkpoint([KVCache(SPEC, QVGConfig(codec="none", merge=0.99), ROPE)])


@pytest.mark.parametrize("offload", ["gpu", "cpu"])
def test_opening_takes_what_is_kept_and_one_segment(offload: str, tmp_path: Path) -> None:
    """Nothing is there twice. Spans that are to be at home in CPU memory anyway stay on the disk until they are looked at."""
    config = CONFIGS["klt"].with_changes(offload=offload)
    session, cache = _created(tmp_path / "a", config)
    with session:
        _run(session, cache, range(17))
    looked, held = Session.look(tmp_path / "a"), cache.nbytes()
    largest = max(each.nbytes for name, each in looked.index.segments.items() if name.startswith("c0-"))
    with LiveBytes() as live:
        (opened,) = looked.restore()
    assert opened.nbytes().codes == held.codes if offload == "gpu" else opened.nbytes().exact == held.exact
    if offload == "gpu":
        assert held.total <= live.peak <= held.total + largest
    else:
        assert live.peak <= held.total - held.codes + largest  # what is mapped was never made
        span = opened.layers[0].state.spans[0].keys
        assert isinstance(span, TransformSpan) and torch.equal(span.codes, cache.layers[0].state.spans[0].keys.tensors()["codes"])
    assert torch.equal(_block(opened, 17), _block(cache, 17))
