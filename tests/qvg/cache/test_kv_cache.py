"""The life of a chunk: overwritten while denoised, committed, encoded once, evicted by spans, gone after reset."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable

import pytest
import torch
from comfyui_qvg.qvg import PRESETS, BackendError, CacheError, CacheSpec, KVCache, NonFiniteError, QuantizedSpan, QVGConfig
from comfyui_qvg.qvg.cache.codebooks import codebooks_text
from comfyui_qvg.qvg.codec import KeyValueCodecs
from comfyui_qvg.qvg.codec.klt_sizes import added_codewords, first_codewords
from comfyui_qvg.qvg.codec.qvg import QVGCodec
from comfyui_qvg.qvg.codec.span import TransformCodebook
from comfyui_qvg.qvg.positions.rope import wan_rope
from torch import Tensor

SPEC = CacheSpec(layers=2, heads=2, head_dim=64, tokens_per_frame=6)
CONFIG = QVGConfig(clusters=4, span_frames=3, sink_frames=1, recent_frames=2)


def _block(seed: int, frames: int = 1) -> list[Tensor]:
    return list(torch.randn(3, 1, 2, 6 * frames, 64, generator=torch.Generator().manual_seed(seed)))


def _commit(cache: KVCache, frames: int, start: int = 0) -> None:
    for frame in range(start, start + frames):
        for layer in range(cache.spec.layers):
            cache.attend(layer, *_block(frame * 10 + layer))
        cache.commit()


def test_a_rewrite_of_the_current_block_overwrites() -> None:
    once, twice = KVCache(SPEC, CONFIG), KVCache(SPEC, CONFIG)
    for cache in (once, twice):
        _commit(cache, 7)
    for layer in range(2):
        twice.attend(layer, *_block(99))  # an earlier denoise step
    outs = [[cache.attend(layer, *_block(70 + layer)) for layer in range(2)] for cache in (once, twice)]
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
    once.commit(), twice.commit()
    assert once.nbytes() == twice.nbytes()
    assert torch.equal(once.attend(0, *_block(5)), twice.attend(0, *_block(5)))


def test_each_span_is_encoded_once_at_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    encode = QVGCodec.encode

    def watched(self: QVGCodec, x: Tensor, hint: object) -> object:
        seen.append(tuple(x.shape))
        return encode(self, x, hint)  # type: ignore[arg-type]

    monkeypatch.setattr(QVGCodec, "encode", watched)
    cache = KVCache(SPEC, CONFIG)
    _commit(cache, 5)
    assert not seen
    _commit(cache, 1, start=5)  # 1 sink + 3 due + 2 recent
    assert seen == [(1, 2, 18, 64)] * 4
    cache.attend(0, *_block(0))
    assert len(seen) == 4, "reading must not encode"
    _commit(cache, 7, start=6)
    assert len(seen) == 4 * 3
    cache.verify_encoded()


def test_sink_and_tail_are_kept_exactly() -> None:
    cache = KVCache(SPEC, CONFIG)
    _commit(cache, 12)
    state = cache.layers[1].state
    assert torch.equal(state.sink[0].keys.tensors()["exact"], _block(1)[1].bfloat16())
    assert torch.equal(state.tail[-1].values.tensors()["exact"], _block(111)[2].bfloat16())
    assert all(isinstance(span, QuantizedSpan) for pair in state.spans for span in pair)


def test_codebooks_are_shared_by_a_group_and_not_beyond() -> None:
    cache = KVCache(SPEC, CONFIG.with_changes(spans_per_codebook=2))
    _commit(cache, 1 + 4 * 3 + 2)
    codebooks = [pair.keys.codebook for pair in cache.layers[0].state.spans]  # type: ignore[union-attr]
    assert codebooks[0] is codebooks[1] and codebooks[2] is codebooks[3] and codebooks[1] is not codebooks[2]


def test_window_forgets_the_oldest_spans() -> None:
    cache = KVCache(SPEC, CONFIG.with_changes(window_frames=9))
    _commit(cache, 30)
    assert cache.layout.frames <= 8
    newest = cache.layers[0].state.tail[-1].keys.tensors()["exact"]
    assert torch.equal(newest, _block(290)[1].bfloat16())
    assert torch.equal(cache.layers[0].state.sink[0].keys.tensors()["exact"], _block(0)[1].bfloat16())


def test_random_runs_equal_an_exact_cache_that_holds_the_same_tokens() -> None:
    """Window, spans and sink with codec none: attention must equal one over the frames that the layout names."""
    config = QVGConfig(codec="none", span_frames=3, sink_frames=2, recent_frames=2, window_frames=11)
    cache = KVCache(CacheSpec(1, 2, 64, 6, dtype=torch.float32), config)
    kept: list[int] = []
    for frame in range(40):
        q, k, v = _block(frame)
        keys, values = (torch.cat([_block(past)[which] for past in [*kept, frame]], 2) for which in (1, 2))
        expected = torch.nn.functional.scaled_dot_product_attention(q, keys, values)
        assert torch.allclose(cache.attend(0, q, k, v), expected, atol=1e-5), frame
        cache.commit()
        kept.append(frame)
        del kept[2 : 2 + len(kept) - cache.layout.frames]


def test_reset_equals_birth() -> None:
    used, born = KVCache(SPEC, CONFIG), KVCache(SPEC, CONFIG)
    _commit(used, 9)
    used.reset()
    assert used.nbytes().total == 0 and used.workspace.nbytes == 0 and used.frames_committed == 0
    assert vars(used.layers[0].state) == vars(born.layers[0].state)
    for cache in (used, born):
        _commit(cache, 8)
    assert used.nbytes() == born.nbytes()
    assert torch.equal(used.attend(1, *_block(3)), born.attend(1, *_block(3)))


@pytest.mark.parametrize("ending", [None, RuntimeError, KeyboardInterrupt], ids=["done", "failed", "interrupted"])
def test_memory_is_freed_however_a_run_ends(ending: type[BaseException] | None) -> None:
    held: list[weakref.ref[object]] = []

    def run() -> None:
        with KVCache(SPEC, CONFIG) as cache:
            _commit(cache, 9)
            held.extend(weakref.ref(pair.keys) for pair in cache.layers[0].state.history)
            if ending is not None:
                raise ending

    if ending is None:
        run()
    else:
        with pytest.raises(ending):
            run()
    assert held and all(reference() is None for reference in held)


@pytest.mark.parametrize(("which", "name"), [(1, "keys"), (2, "values")])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=["nan", "infinity"])
def test_poison_names_layer_and_frame_and_commits_nothing(poison: float, which: int, name: str) -> None:
    spec = CacheSpec(layers=2, heads=2, head_dim=64, tokens_per_frame=6, chunk_frames=3)
    cache = KVCache(spec, CONFIG)
    for layer in range(2):
        cache.attend(layer, *_block(layer, 3))
    cache.commit()
    before = cache.nbytes()
    for layer in range(2):
        block = _block(layer, 3)
        if layer == 1:
            block[which][0, 1, 13, 7] = poison
        cache.attend(layer, *block)
    with pytest.raises(NonFiniteError, match=f"{name} of layer 1 hold NaN or infinity in latent frame 5") as caught:
        cache.commit()
    assert (caught.value.layer, caught.value.frame) == (1, 5)
    assert cache.nbytes() == before and cache.frames_committed == 3
    for layer in range(2):
        cache.attend(layer, *_block(layer, 3))
    cache.commit()


CODECS = {
    "exact": CONFIG.with_changes(codec="none"),
    "qvg": CONFIG,
    "klt": CONFIG.with_changes(codec="klt", bits=1.5, spans_per_codebook=3),
    "klt_hadamard": CONFIG.with_changes(codec="klt", transform="hadamard"),
    **{codec: CONFIG.with_changes(codec=codec) for codec in ("rtn", "kivi", "quarot")},
}


@pytest.mark.parametrize("which", [1, 2], ids=["keys", "values"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=["nan", "infinity", "minus_infinity"])
@pytest.mark.parametrize("name", CODECS)
def test_every_codec_is_spared_poison_and_goes_on(name: str, poison: float, which: int) -> None:
    """Refused at the commit that would have encoded a span; the same commit with sound numbers is as if nothing had been."""
    cache, healthy = KVCache(SPEC, CODECS[name]), KVCache(SPEC, CODECS[name])
    for one in (cache, healthy):
        _commit(one, 5)
    bad = _block(50)
    bad[which][0, 1, 3, 7] = poison
    cache.attend(0, *bad), cache.attend(1, *_block(51))
    with pytest.raises(
        NonFiniteError,
        match="layer 0 hold NaN or infinity in latent frame 5; the frame was not committed and the cache is as it was",
    ):
        cache.commit()
    for one in (cache, healthy):
        _commit(one, 8, start=5)
        one.verify_encoded()
    assert torch.equal(cache.attend(0, *_block(3)), healthy.attend(0, *_block(3))) and cache.nbytes() == healthy.nbytes()


@pytest.mark.parametrize("window", [None, 14], ids=["all", "window"])
@pytest.mark.parametrize("shared", [1, 3, 8])
def test_a_growing_codebook_is_in_memory_once(shared: int, window: int | None) -> None:
    """All spans of a group hold the longest codebook, and what earlier frames decode to never changes as it grows."""
    config = CONFIG.with_changes(codec="klt", clusters_added=3, spans_per_codebook=shared, window_frames=window)
    cache = KVCache(SPEC, config)
    seen: dict[int, Tensor] = {}
    for frame in range(34):
        _commit(cache, 1, start=frame)
        layer = cache.layers[1]
        first = layer.state.spans_encoded - len(layer.state.spans)
        for number, pair in enumerate(layer.state.spans, first):
            for keys, span in ((0, pair.values), (1, pair.keys)):
                decoded = layer.codecs.keys.decode(span, slice(None), slice(None), torch.empty(1, 2, 18, 64))
                assert torch.equal(decoded, seen.setdefault(2 * number + keys, decoded)), (frame, number)
            codebook = pair.keys.codebook
            newest = min(first + len(layer.state.spans), (number // shared + 1) * shared) - 1
            longest = layer.state.spans[newest - first].keys.codebook
            assert (
                isinstance(codebook, TransformCodebook)
                and isinstance(longest, TransformCodebook)
                and codebook.codewords is longest.codewords
            )
            assert codebook.codewords.values.shape[2] == 4 + 3 * (newest % shared)
        assert cache.nbytes() == SPEC.predict(config, frame + 1, codebooks=cache.codebooks()), frame
    cache.verify_encoded()
    assert len(seen) == 2 * layer.state.spans_encoded >= 20


@pytest.mark.parametrize("name", CODECS)
def test_reset_and_a_second_run_equal_the_first(name: str) -> None:
    used, born = KVCache(SPEC, CODECS[name]), KVCache(SPEC, CODECS[name])
    _commit(used, 13)
    used.reset()
    for cache in (used, born):
        _commit(cache, 16)
    assert used.nbytes() == born.nbytes() and torch.equal(used.attend(1, *_block(3)), born.attend(1, *_block(3)))


def test_a_run_that_never_encoded_fails() -> None:
    cache = KVCache(SPEC, CONFIG)
    _commit(cache, 5)
    with pytest.raises(CacheError, match="nothing was encoded in 5 frames.*generate at least 6 frames"):
        cache.verify_encoded()


def test_a_codec_that_was_bypassed_fails() -> None:
    cache = KVCache(SPEC, CONFIG)
    cache.layers[1].codecs = KeyValueCodecs(cache.layers[1].exact, cache.layers[1].exact)
    _commit(cache, 9)
    with pytest.raises(CacheError, match="left \\['none', 'qvg'\\] spans"):
        cache.verify_encoded()


def test_encoding_an_encoded_span_fails() -> None:
    cache = KVCache(SPEC, CONFIG)
    _commit(cache, 9)
    state = cache.layers[0].state
    state.tail[0] = state.spans[0]
    with pytest.raises(CacheError, match="already encoded came up for encoding again"):
        _commit(cache, 3, start=9)
    with pytest.raises(CacheError, match=r"call reset\(\)"):
        cache.attend(0, *_block(0))


def test_blocks_that_do_not_fit_get_a_sentence() -> None:
    cache = KVCache(SPEC, CONFIG)
    with pytest.raises(CacheError, match="a block of 3 frames, but this cache is made for chunks of 1"):
        cache.attend(0, *_block(0, 3))
    with pytest.raises(CacheError, match=r"got queries \(1, 3, 6, 64\)"):
        cache.attend(0, torch.zeros(1, 3, 6, 64), *_block(0)[1:])
    with pytest.raises(CacheError, match="whole frames of 6"):
        cache.attend(0, *torch.zeros(3, 1, 2, 0, 64))
    uneven = KVCache(CacheSpec(2, 2, 64, 6, chunk_frames=3), CONFIG)
    uneven.attend(0, *_block(0, 3)), uneven.attend(1, *_block(0, 1))
    with pytest.raises(CacheError, match=r"blocks of \[6, 18\] tokens; every layer must see the same block"):
        uneven.commit()


def test_a_short_first_block_is_fine() -> None:
    """Image-to-video models commit one frame first, then chunks."""
    cache = KVCache(CacheSpec(2, 2, 64, 6, chunk_frames=3), CONFIG)
    for frames in (1, 3, 3, 3, 3):
        for layer in range(2):
            cache.attend(layer, *_block(frames + layer, frames))
        cache.commit()
    cache.verify_encoded()
    assert cache.frames_committed == 13


def test_inputs_with_gradients_are_taken_as_they_are() -> None:
    cache = KVCache(SPEC, CONFIG)
    for layer in range(2):
        assert not cache.attend(layer, *(part.requires_grad_() for part in _block(layer))).requires_grad
    cache.commit()


def test_a_forced_backend_is_asked_when_the_cache_is_made() -> None:
    with pytest.raises(BackendError, match="'triton' was forced"):
        KVCache(SPEC, CONFIG.with_changes(backend="triton"))


def test_out_of_order_use_gets_a_sentence() -> None:
    cache = KVCache(SPEC, CONFIG)
    with pytest.raises(CacheError, match="layer 0 has no current block"):
        cache.commit()
    cache.attend(0, *_block(0))
    with pytest.raises(CacheError, match="layer 1 has no current block"):
        cache.commit()
    with pytest.raises(CacheError, match=r"this cache holds \[B, H, S, D\] = \[1, 2, whole frames of 6, 64\]"):
        cache.attend(0, *torch.zeros(3, 1, 2, 7, 64))


@pytest.mark.parametrize("name", CODECS)
def test_committing_layer_by_layer_equals_committing_at_once(name: str) -> None:
    at_once, one_by_one = KVCache(SPEC, CODECS[name]), KVCache(SPEC, CODECS[name])
    for frame in range(9):
        blocks = [_block(frame * 10 + layer) for layer in range(SPEC.layers)]
        expected = [at_once.attend(layer, *block) for layer, block in enumerate(blocks)]
        for layer, block in enumerate(blocks):  # a denoise step, of which nothing is to stay
            one_by_one.attend(layer, *(2 * x for x in block))
            one_by_one.release(layer)
        assert all(layer.state.current is None for layer in one_by_one.layers)
        for layer, block in enumerate(blocks):
            assert torch.equal(one_by_one.attend(layer, *block), expected[layer])
            one_by_one.commit_layer(layer)
        at_once.commit()
        assert one_by_one.layout == at_once.layout and one_by_one.nbytes() == at_once.nbytes()
    assert one_by_one.frames_committed == 9
    if name != "exact":
        one_by_one.verify_encoded()
    assert one_by_one.nbytes() == SPEC.predict(CODECS[name], 9, codebooks=one_by_one.codebooks())


def test_layers_commit_in_order_and_a_commit_cut_off_is_noticed() -> None:
    spec = CacheSpec(layers=2, heads=1, head_dim=32, tokens_per_frame=8)
    cache, block = KVCache(spec, QVGConfig(codec="none")), [torch.randn(1, 1, 8, 32) for _ in range(3)]
    with pytest.raises(CacheError, match="layer 0 came up for commit, but layer 0 is next and must have attended"):
        cache.commit_layer(0)
    cache.attend(0, *block)
    cache.attend(1, *block)
    with pytest.raises(CacheError, match="layer 1 came up for commit, but layer 0 is next"):
        cache.commit_layer(1)
    cache.commit_layer(0)
    cache.attend(1, *block)
    for use in (cache.commit, lambda: cache.attend(0, *block), lambda: cache.commit_layer(0), cache.check_usable):
        with pytest.raises(CacheError, match="layers disagree about history; call reset"):
            use()
    cache.commit_layer(1)
    cache.check_usable()
    assert cache.frames_committed == 1
    poisoned = [block[0], block[1], torch.full_like(block[2], float("nan"))]
    cache.attend(0, *block)
    cache.commit_layer(0)
    cache.attend(1, *poisoned)
    with pytest.raises(NonFiniteError, match="layer 1 .* layers before it have committed the block, so this run is over"):
        cache.commit_layer(1)
    with pytest.raises(CacheError, match="layers disagree"):
        cache.commit()
    cache.reset()
    cache.attend(0, *block)
    cache.commit_layer(0)


ROPE = wan_rope(2, 3, 64)


def _placed(cache: KVCache, frames: range, at: int = 0) -> list[Tensor]:
    outs = []
    for frame in frames:
        cache.place([(float(frame + at), 0.0, 0.0)])
        outs += [cache.attend(layer, *_block(frame * 10 + layer)) for layer in range(2)]
        cache.commit()
    return outs


@pytest.mark.parametrize("name", CODECS)
def test_replaced_positions_are_those_that_frames_might_have_had(name: str) -> None:
    """A cache whose frames were placed elsewhere from the beginning attends alike: keys are kept before they are rotated."""
    config = CODECS[name].with_changes(window_frames=11)
    moved, born = KVCache(SPEC, config, ROPE), KVCache(SPEC, config, ROPE)
    _placed(moved, range(13), at=300)
    _placed(born, range(13))
    moved.place([(313.0, 0.0, 0.0)])
    before = moved.attend(1, *_block(5))
    moved.replace_origins(born.origins)
    assert moved.origins == born.origins and len(born.origins) == born.layout.frames < 13
    for cache in (moved, born):
        cache.place([(13.0, 0.0, 0.0)])
    out = moved.attend(1, *_block(5))
    assert torch.equal(out, born.attend(1, *_block(5))) and moved.nbytes() == born.nbytes()
    # RoPE is relative: all moved alike is as before, to rounding; a new distance is another result.
    assert torch.allclose(before, out, atol=1e-3)
    moved.replace_origins([(float(frame), 0.0, 0.0) for frame in range(moved.layout.frames)])
    assert not torch.allclose(moved.attend(1, *_block(5)), out, atol=1e-3)


def test_positions_are_replaced_one_for_each_frame_and_where_keys_are_not_rotated_yet() -> None:
    cache = KVCache(SPEC, CONFIG, ROPE)
    _placed(cache, range(3))
    with pytest.raises(CacheError, match="2 positions were given for 3 frames in memory"):
        cache.replace_origins([(0.0, 0.0, 0.0)] * 2)
    assert cache.origins == [(float(frame), 0.0, 0.0) for frame in range(3)]
    for turned in (KVCache(SPEC, CONFIG), KVCache(SPEC, CONFIG.with_changes(keys="after_rope"), ROPE)):
        with pytest.raises(CacheError, match="keeps keys as they were rotated"):
            turned.replace_origins([])
    for layer in range(2):
        cache.place([(3.0, 0.0, 0.0)])
        cache.attend(layer, *_block(30 + layer))
    cache.commit_layer(0)
    with pytest.raises(CacheError, match="failed half-way"):
        cache.replace_origins([(0.0, 0.0, 0.0)] * 3)


def _rows_begun(preset: str, spans: int, louder: float = 1.0) -> tuple[int, int]:
    """Rows of codebooks after so many spans whose directions change from span to span, and those of one whole basis per group."""
    config = PRESETS[preset].with_changes(span_frames=8, sink_frames=1, recent_frames=1)
    spec = CacheSpec(layers=4, heads=1, head_dim=64, tokens_per_frame=64, chunk_frames=1)
    generator = torch.Generator().manual_seed(5)
    places = 3 * torch.randn(24, 64, generator=generator)
    with KVCache(spec, config) as cache:
        for frame in range(1 + 8 * spans + 1):
            span = max(0, frame - 1) // 8
            for layer in range(spec.layers):
                spread = torch.linspace(0.3, 1.2, 64).roll(7 * span * (layer + 1)) * (louder if span else 1.0)
                which = torch.randint(24, (64,), generator=generator)
                k, v = (places[which] + spread * torch.randn(1, 1, 64, 64, generator=generator) for _ in range(2))
                cache.attend(layer, k[:, :, :1], k, v)
            cache.commit()
        found = cache.codebooks()
        assert found is not None and cache.nbytes() == spec.predict(config, 2 + 8 * spans, codebooks=found)
    rows = sum(size.codewords + sum(size.bases) for layer in found for sizes in layer for size in sizes)
    codewords = first_codewords(config, 512)
    for _ in range(spans - 1):
        codewords += added_codewords(config, codewords, 512)
    return rows, 2 * spec.layers * (codewords + 64)


@pytest.mark.parametrize("preset", ["fewest-bytes", "balanced", "near-exact"])
def test_without_a_cut_codebooks_take_no_more_than_one_whole_basis_per_group(preset: str) -> None:
    """Directions that a basis leaves out and codewords that a span does not add are room for bases of later spans and layers."""
    rows, whole = _rows_begun(preset, 5)
    assert rows <= whole, (rows, whole)


def test_a_louder_scene_may_take_more() -> None:
    rows, whole = _rows_begun("near-exact", 2, louder=4.0)
    quiet, _ = _rows_begun("near-exact", 2)
    assert quiet <= whole < rows, (quiet, rows, whole)


def _another_scene(generator: torch.Generator, span: int) -> Tensor:
    """Louder than the span before, and in need of all its directions."""
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(span)))[0]
    return torch.randn(1, 1, 64, 64, generator=generator) * torch.linspace(0.01, 4, 64) * 3.0**span @ turn


def _noise(generator: torch.Generator, span: int) -> Tensor:
    """Every direction gets bits, so bases keep more of them than usual."""
    return torch.randn(1, 1, 64, 64, generator=generator)


@pytest.mark.parametrize("preset", ["fewest-bytes", "balanced", "near-exact"])
@pytest.mark.parametrize(("scene", "span_frames", "begun"), [(_another_scene, 8, 5), (_noise, 4, 4)])
def test_never_more_bytes_than_the_bound(
    preset: str, scene: Callable[[torch.Generator, int], Tensor], span_frames: int, begun: int
) -> None:
    config = PRESETS[preset].with_changes(span_frames=span_frames, sink_frames=1, recent_frames=1)
    spec = CacheSpec(layers=2, heads=1, head_dim=64, tokens_per_frame=64, chunk_frames=1)
    generator = torch.Generator().manual_seed(5)
    with KVCache(spec, config) as cache:
        for frame in range(42):
            for layer in range(spec.layers):
                k, v = (scene(generator, max(0, frame - 1) // span_frames) for _ in "kv")
                cache.attend(layer, k[:, :, :1], k, v)
            cache.commit()
            counted = cache.nbytes().total
            assert counted <= spec.predict(config, frame + 1, codebooks="most").total
            assert counted == spec.predict(config, frame + 1, codebooks=cache.codebooks()).total
        assert counted > spec.predict(config, 42).total
        bases = sum(len(size.bases) for layer in cache.codebooks() or () for sizes in layer for size in sizes)
        assert bases >= begun


def test_the_report_counts_codebooks_of_a_window_as_they_are() -> None:
    """Spans too short to begin a further codebook: as many as a video without cuts has, whatever the window leaves of a group."""
    config = CONFIG.with_changes(codec="klt", clusters_added=3, spans_per_codebook=3, window_frames=14)
    cache = KVCache(SPEC, config)
    for frame in range(34):
        _commit(cache, 1, start=frame)
        text = codebooks_text(cache)
        if text:
            begun, usual = (int(number) for number in re.findall(r"(\d+) bases \(a video without cuts has (\d+)\)", text)[0])
            groups = {id(pair.keys.codebook.group) for pair in cache.layers[0].state.spans}  # type: ignore[union-attr]
            assert begun >= usual == 2 * SPEC.layers * len(groups), (frame, text)
