"""Tokens that look like the row kept at their place are counted, not stored: what attention sees, what is kept, what it takes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from comfyui_qvg.kernels.attention.library import AttentionOp, choose_attention
from comfyui_qvg.qvg import CacheError, CacheSpec, ConfigError, GridRope, KVCache, QVGConfig
from comfyui_qvg.qvg.bench.cache_watch import CacheWatch
from comfyui_qvg.qvg.cache.merge_peak import merged_peaks
from comfyui_qvg.qvg.cache.rows import MOST_COUNT
from comfyui_qvg.qvg.codec.span import ExactSpan
from comfyui_qvg.qvg.positions.projective import Projector
from comfyui_qvg.qvg.positions.rope import Rotation, geometric_frequencies, rotate
from torch import Tensor

from ...helpers import assert_close

ROPE = GridRope(3, 4, ((), geometric_frequencies(16, 3, 60), geometric_frequencies(16, 3, 60)))
SPEC = CacheSpec(2, 2, 64, 12, dtype=torch.float32)
EXACT = QVGConfig(codec="none", span_frames=2, merge=0.99)
CODECS = {
    "none": EXACT,
    "qvg": QVGConfig(clusters=8, span_frames=2, merge=0.97, bits=4),
    "qvg_shared": QVGConfig(clusters=8, span_frames=2, spans_per_codebook=2, symmetric=False, merge=0.99, bits=8),
    "klt": QVGConfig(codec="klt", bits=5, clusters="auto", span_frames=3, spans_per_codebook=2, merge=0.98),
    "klt_hadamard": QVGConfig(
        codec="klt", transform="hadamard", bits=5, clusters=6, span_frames=2, spans_per_codebook=3, merge=0.98
    ),
    "rtn": QVGConfig(codec="rtn", bits=8, span_frames=2, merge=0.98),
    "kivi": QVGConfig(codec="kivi", bits=8, span_frames=3, group_size=16, merge=0.98),
    "quarot": QVGConfig(codec="quarot", bits=8, span_frames=2, merge=0.98),
}
# There and back, with half tokens: 12 tokens of which most have been seen.
PATH = [0.0, 0.0, 1.0, 2.0, 2.5, 3.0, 2.0, 1.0, 0.0, 4.0, 5.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]


def world(places: Sequence[float], layer: int, noise: float = 0.0, spec: CacheSpec = SPEC) -> tuple[Tensor, Tensor]:
    """Keys and values [1, H, S, D] of frames at these columns: what stands at a place looks the same whenever it is seen."""
    parts = []
    for at in places:
        for row in range(3):
            for column in range(4):
                generator = torch.Generator().manual_seed(int(1000 * (10 * row + column + at)) + 7 * layer)
                parts.append(torch.randn(2, 1, spec.heads, 1, spec.head_dim, generator=generator))
    keys, values = torch.cat(parts, 3)
    if noise:
        generator = torch.Generator().manual_seed(int(1000 * sum(places)) + 1)
        keys = keys + noise * torch.randn(keys.shape, generator=generator)
    return keys, values


def walk(cache: KVCache, path: Sequence[float], noise: float = 0.0, first: int = 0, by_layer: bool = False) -> list[Tensor]:
    """What every layer saw in every block."""
    seen = []
    chunk = cache.spec.chunk_frames
    for at in range(0, len(path), chunk):
        places = path[at : at + chunk]
        cache.place([(float(first + at + number), 0.0, place) for number, place in enumerate(places)])
        for layer in range(cache.spec.layers):
            keys, values = world(places, layer, noise * (1 + at % 3), cache.spec)
            seen.append(cache.attend(layer, keys, keys, values))
            if by_layer:
                cache.commit_layer(layer)
        if not by_layer:
            cache.commit()
    return seen


def asked(cache: KVCache, at: float = 1.0, seed: int = 0) -> Tensor:
    """What some queries see. [layers, H, S, D]"""
    cache.place([(float(cache.frames_committed), 0.0, at)])
    generator = torch.Generator().manual_seed(seed)
    seen = []
    for layer in range(cache.spec.layers):
        keys, values = world([at], layer, spec=cache.spec)
        seen.append(cache.attend(layer, torch.randn(keys.shape, generator=generator), keys, values))
    return torch.cat(seen)


@pytest.mark.parametrize("key", ["mean", "last", "first"])
@pytest.mark.parametrize("read", ["exact", "direct", "fast"])
def test_what_is_there_already_is_counted_and_attention_does_not_notice(read: str, key: str) -> None:
    """Equal keys and values: softmax over a row with log m is softmax over its m tokens, to float32's rounding (in eight bits, to
    what these cost: 1 % to 4 % of attention with equal weights each way)."""
    configs = (EXACT.with_changes(merge=0.0), EXACT.with_changes(read=read, merge_key=key))
    full, merged = (KVCache(SPEC, config, ROPE) for config in configs)
    for cache in (full, merged):
        walk(cache, PATH)
    assert_close("attention", asked(full), asked(merged), 0.05 if read == "fast" else 2e-5)
    assert merged.merger is not None and full.merger is None
    rows = merged.merger.rows
    assert rows.counted == 12 * merged.layout.merged == 12 * 13
    # Columns 0 to 8, and one frame of half columns: as many places as were seen.
    assert merged.merged_rows == 3 * (9 + 4)
    assert merged.nbytes().exact == 2 * SPEC.layers * SPEC.heads * 64 * 4 * (39 + 12 * 4)


def test_a_library_without_a_bias_reads_what_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the report says what reads the rest."""
    counted: list[int] = []

    def choose(q: Tensor, needs_lse: bool, backend: str = "auto", biased: bool = False) -> AttentionOp:
        op = choose_attention(q, needs_lse, backend, biased)

        def plain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
            counted.append(k.shape[2])
            return op.call(q, k, v)

        return op if biased else AttentionOp("a library", plain)

    monkeypatch.setattr("comfyui_qvg.qvg.attention.exact.choose_attention", choose)
    monkeypatch.setattr("comfyui_qvg.qvg.attention.exact._CPU_TILE_BYTES", 90_000)
    full, merged = (KVCache(SPEC, config, ROPE) for config in (EXACT.with_changes(merge=0.0), EXACT))
    for cache in (full, merged):
        walk(cache, PATH)
    counted.clear()
    seen = asked(merged)
    everything = 39 + 12 * (1 + 3 + 1)
    assert 0 < sum(counted) < SPEC.layers * SPEC.heads * (everything - 39), "of tiles, those in which every key counts once"
    assert_close("attention", asked(full), seen, 2e-5)
    (line,) = {text.split(", attention by ")[1].split(",")[0] for text in merged.explain()}
    assert line == "a library" and "where keys count more than once, by aten._scaled_dot_product" in merged.explain()[0]


def test_without_counts_attention_would_notice() -> None:
    full, merged = (KVCache(SPEC, config, ROPE) for config in (EXACT.with_changes(merge=0.0), EXACT))
    for cache in (full, merged):
        walk(cache, PATH)
    assert merged.merger is not None
    wanted = asked(full)
    merged.merger._counts = None
    assert float((asked(merged) - wanted).abs().max()) > 1e-3


def test_rows_are_where_their_tokens_are() -> None:
    """Against the definition, from the rows themselves: positions, counts, float64."""
    cache = KVCache(SPEC, EXACT, ROPE)
    walk(cache, PATH, noise=0.02)
    assert cache.merger is not None
    rows, state = cache.merger.rows, cache.layers[0].state
    held = [
        torch.cat([span.values for span in stretch if isinstance(span, ExactSpan)], 2)
        for stretch in zip(*state.history, strict=True)
    ]
    origins = torch.tensor(cache.origins)
    sink, tail = ROPE.rotation(origins[:1]), ROPE.rotation(origins[-3:])
    middle = Rotation(*ROPE.angles_at(rows.positions(cache.origins)).spread())
    turn = [torch.cat(parts) for parts in zip(sink, middle, tail, strict=True)]
    current = world([1.0], 0)
    here = ROPE.rotation(torch.tensor([(17.0, 0.0, 1.0)]))
    q = torch.randn(current[0].shape, generator=torch.Generator().manual_seed(0))
    keys = torch.cat([rotate(held[0], Rotation(*turn)), rotate(current[0], here)], 2).double()
    bias = torch.nn.functional.pad(rows.counts.to(torch.float64).log(), (12, 4 * 12))
    scores = rotate(q, here).double() @ keys.mT / 8 + bias
    wanted = scores.softmax(-1) @ torch.cat([held[1], current[1]], 2).double()
    assert_close("attention", wanted, asked(cache)[:1], 2e-5)


def test_waiting_rows_become_the_mean_the_last_or_stay_the_first() -> None:
    keys = [world([0.0], 0, noise)[0] for noise in (0.0, 0.01, 0.02)]
    values = torch.randn(3, 1, 2, 12, 64)
    wanted = {"mean": sum(keys) / 3, "last": keys[-1], "first": keys[0]}
    for key, kept in wanted.items():
        cache = KVCache(
            CacheSpec(1, 2, 64, 12, dtype=torch.float32),
            QVGConfig(codec="none", merge=0.99, merge_key=key, sink_frames=0, recent_frames=1),
            ROPE,
        )
        for frame in range(4):
            cache.place([(float(frame), 0.0, 0.0)])
            cache.layers[0].append(keys[min(frame, 2)], values[min(frame, 2)])
            cache.commit()
        waiting = cache.layers[0].state.waiting
        assert waiting is not None and isinstance(waiting.keys, ExactSpan) and isinstance(waiting.values, ExactSpan)
        assert_close(key, kept, waiting.keys.values, 1e-6)
        assert_close("values", values.mean(0), waiting.values.values, 1e-6)
        assert cache.merger is not None and cache.merger.rows.counts.tolist() == [3] * 12
        # The time of the newest token, or of the first.
        times = cache.merger.rows.positions(cache.origins)[:, 0]
        assert times.tolist() == [0.0 if key == "first" else 2.0] * 12


def test_the_worst_head_of_all_layers_decides() -> None:
    cache = KVCache(SPEC, EXACT.with_changes(sink_frames=0, recent_frames=1), ROPE)
    for frame in range(3):
        cache.place([(float(frame), 0.0, 0.0)])
        for layer in cache.layers:
            keys, values = world([0.0], layer.layer)
            if frame == 1 and layer.layer == 1:
                keys[0, 1, 5] = torch.randn(64)  # one token, in one head of one layer
            layer.append(keys, values)
        cache.commit()
    assert cache.merger is not None and cache.merger.rows.counts.tolist() == [2] * 5 + [1] + [2] * 6 + [1]
    assert [layer.state.waiting.keys.num_tokens for layer in cache.layers if layer.state.waiting] == [13, 13]


def test_half_a_token_away_is_another_place() -> None:
    cache = KVCache(SPEC, EXACT.with_changes(sink_frames=0, recent_frames=1), ROPE)
    keys, values = world([0.0], 0)
    for frame, column in enumerate((0.0, 0.5, 0.0, 0.5, 9.0)):
        cache.place([(float(frame), 0.0, column)])
        for layer in cache.layers:
            layer.append(keys, values)
        cache.commit()
    assert cache.merged_rows == 24


def test_a_full_row_begins_another() -> None:
    cache = KVCache(SPEC, EXACT.with_changes(sink_frames=0, recent_frames=1), ROPE)
    walk(cache, [0.0, 0.0, 0.0])
    assert cache.merger is not None and cache.merged_rows == 12
    cache.merger.rows.counts = torch.tensor([MOST_COUNT - 1, *[2] * 11], dtype=torch.int32).to(torch.uint16)
    walk(cache, [0.0, 0.0], first=3)
    assert cache.merger.rows.counts.tolist() == [MOST_COUNT, *[4] * 11, 1]
    walk(cache, [0.0], first=5)
    assert cache.merger.rows.counts.tolist() == [MOST_COUNT, *[5] * 11, 2]


@pytest.mark.parametrize("chunk_frames", [1, 3], ids=["chunk_1", "chunk_3"])
@pytest.mark.parametrize("name", CODECS)
def test_bytes_are_those_of_the_rows_and_at_most_what_was_predicted(name: str, chunk_frames: int) -> None:
    """Long stretches of new country and places seen again; every number against `predict` and `peaks`, at every chunk."""
    spec = CacheSpec(2, 2, 64, 12, chunk_frames, dtype=torch.bfloat16)
    path = [0.0, 4.0, 8.0, 12.0, 8.0, 0.0, 16.0, 20.0, 24.0, 0.0, 12.0, 28.0, 32.0, 36.0, 4.0, 4.0, 40.0, 44.0]
    config = CODECS[name]
    peaks = list(merged_peaks(spec, config, [chunk_frames] * (len(path) // chunk_frames), torch.float32))
    with KVCache(spec, config, ROPE) as cache:
        watch = CacheWatch(cache)
        for number, at in enumerate(range(0, len(path), chunk_frames)):
            walk(cache, path[at : at + chunk_frames], first=at, by_layer=True)
            frames, counted = cache.frames_committed, cache.nbytes()
            assert counted == spec.predict(config, frames, codebooks=cache.codebooks(), rows=cache.merged_rows)
            assert counted.total <= spec.predict(config, frames, codebooks="most").total
            assert watch.now() == counted.total
            assert watch.most <= peaks[number].peak_bytes and counted.total <= peaks[number].now_bytes
        assert cache.merger is not None and cache.merged_rows is not None
        assert cache.merged_rows < 0.85 * 12 * cache.layout.merged
        assert len(cache.layers[0].state.spans) == cache.spans_due == cache.merged_rows // spec.span_tokens(config) > 1
        if name != "none":
            cache.verify_encoded()


@pytest.mark.parametrize("name", CODECS)
def test_encoded_rows_are_frozen_and_counted(name: str) -> None:
    if name == "none":
        pytest.skip("rows in 16 bits go on being averaged")
    cache = KVCache(SPEC, CODECS[name].with_changes(recent_frames=1), ROPE)
    walk(cache, [0.0, 4.0, 8.0, 12.0, 16.0, 20.0])
    first = cache.layers[1].state.spans[0]
    before = {part: tensor.clone() for part, tensor in first.keys.tensors().items() if not part.startswith(("centroid", "basis"))}
    assert cache.merger is not None and cache.merger.rows.counts.tolist() == [1] * 48
    walk(cache, [4.0, 4.0, 8.0, 30.0], first=6)
    assert cache.merger.rows.counts.tolist() == [3] * 12 + [2] * 12 + [1] * 36
    again = cache.layers[1].state.spans[0].keys.tensors()
    assert all(torch.equal(again[part], tensor) for part, tensor in before.items())


@pytest.mark.parametrize("name", CODECS)
def test_layer_by_layer_and_from_home_it_is_the_same(name: str) -> None:
    at_once, by_layer, from_home = (
        KVCache(SPEC, config, ROPE) for config in (CODECS[name], CODECS[name], CODECS[name].with_changes(offload="cpu"))
    )
    seen = [walk(cache, PATH, 0.01, by_layer=cache is by_layer) for cache in (at_once, by_layer, from_home)]
    for number, other in enumerate((by_layer, from_home), 1):
        assert torch.equal(asked(at_once), asked(other)) and at_once.nbytes() == other.nbytes()
        # A layer that has yet to commit attends to what it was before the others did.
        assert all(map(torch.equal, seen[0], seen[number]))


def test_no_recent_frames_at_all() -> None:
    """Even the newest block becomes rows, when every layer has it."""
    cache = KVCache(SPEC, EXACT.with_changes(sink_frames=0, recent_frames=0), ROPE)
    walk(cache, [0.0, 0.0, 4.0, 0.0], by_layer=True)
    assert cache.merger is not None and cache.merger.rows.counts.tolist() == [3] * 12 + [1] * 12
    assert cache.layout.merged == 4 and not cache.layout.tail


def test_frames_of_one_chunk_meet_each_other() -> None:
    """A chunk of three frames that stand still takes the rows of one."""
    spec = CacheSpec(2, 2, 64, 12, 3, dtype=torch.float32)
    cache = KVCache(spec, EXACT.with_changes(sink_frames=0, recent_frames=3), ROPE)
    walk(cache, [0.0] * 12)
    assert cache.merger is not None and cache.merger.rows.counts.tolist() == [9] * 12


def test_reset_forgets_all_rows() -> None:
    cache = KVCache(SPEC, EXACT, ROPE)
    walk(cache, PATH)
    once = asked(cache)
    cache.reset()
    assert cache.merged_rows == 0 and cache.nbytes().total == 0
    walk(cache, PATH)
    assert torch.equal(once, asked(cache))


@pytest.mark.parametrize("merge", [-1, 0.3, 0.4999, 1.001, 2, True, "0.9", float("nan"), None])
def test_thresholds_that_are_none(merge: object) -> None:
    with pytest.raises(ConfigError, match=r"merge is .* must be 0 \(off\) or a cosine from 0.5 to 1; start with 0.99"):
        QVGConfig(merge=merge)  # type: ignore[arg-type]


def test_what_merging_does_not_go_with() -> None:
    for changes, reason in (
        ({"window_frames": 30}, "leave a window at different times; leave out window_frames, or merge 0"),
        ({"keys": "after_rope"}, "use 'before_rope', or merge 0"),
        ({"merge_key": "middle"}, "merge_key is 'middle', but must be one of 'mean', 'last', 'first'"),
    ):
        with pytest.raises(ConfigError, match=reason):
            QVGConfig(merge=0.99).with_changes(**changes)
    with pytest.raises(ConfigError, match="does not go with a batch of 2: what is kept of one video would depend on the others"):
        KVCache(CacheSpec(1, 2, 64, 12, batch=2), EXACT, ROPE)
    with pytest.raises(ConfigError, match="no rope that says where they are; use merge 0"):
        KVCache(SPEC, EXACT)
    cache = KVCache(SPEC, EXACT, ROPE)
    walk(cache, PATH)
    with pytest.raises(CacheError, match="frames cannot be moved apart from each other; use merge 0"):
        cache.replace_origins([(0.0, 0.0, 0.0)] * 17)
    eye = torch.eye(4).expand(18, 4, 4)
    keys, values = world([0.0], 0)
    with pytest.raises(CacheError, match="cameras take a token as it was seen by its own frame's; use merge 0"):
        cache.attend_projected(0, keys, keys, values, Projector(eye[:1], eye, 12))
