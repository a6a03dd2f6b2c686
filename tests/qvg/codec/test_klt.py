"""Our codec: a codebook that grows without disturbing anyone, bits where the energy is, and less error than the published codec
in fewer bytes, with outlier tokens too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from comfyui_qvg.qvg import QVGConfig
from comfyui_qvg.qvg.bench.synthetic import make_keys_values
from comfyui_qvg.qvg.cache import CacheSpec, KVCache
from comfyui_qvg.qvg.codec import Codec, KLTCodec, make_codecs
from comfyui_qvg.qvg.codec.base import CodebookSize, EncodeHint, Room
from comfyui_qvg.qvg.codec.klt_basis import allocate_planes
from comfyui_qvg.qvg.codec.span import Span, TransformCodebook, TransformSpan, storage_bytes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ...helpers import relative_error

CONFIG = QVGConfig(codec="klt", clusters="auto", iterations=4)
SHARING = CONFIG.with_changes(spans_per_codebook=8, iterations=2)
TRANSFORMS = pytest.mark.parametrize("transform", ["klt", "hadamard"])


@cache
def _video(seed: int = 0) -> tuple[Tensor, Tensor]:
    return make_keys_values(seed)


def _decode(codec: Codec, span: Span, x: Tensor) -> Tensor:
    return codec.decode(span, slice(None), slice(None), torch.empty_like(x))


def _encode(codec: KLTCodec, x: Tensor, reuse: TransformCodebook | None = None, seed: int = 0) -> TransformSpan:
    span = codec.encode(x, EncodeHint(seed, reuse=reuse))
    assert isinstance(span, TransformSpan)
    return span


def _attention_error(q: Tensor, exact: tuple[Tensor, Tensor], estimate: tuple[Tensor, Tensor]) -> float:
    """Squared error of attention's output as a share of its energy."""
    wanted, got = (torch.nn.functional.scaled_dot_product_attention(q, *kv) for kv in (exact, estimate))
    return float((got - wanted).square().sum() / wanted.square().sum())


def _queries(keys: Tensor, seed: int = 0) -> Tensor:
    """Queries that look for some of the keys, half as much noise added."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, keys.shape[2], (256,), generator=generator)
    queries = (keys - keys.mean(2, keepdim=True))[:, :, chosen]
    return queries + 0.5 * queries.std() * torch.randn(queries.shape, generator=generator)


def _logit_slope(q: Tensor, keys: Tensor, estimate: Tensor) -> float:
    """Regression of the logits after coding on the exact ones; what all keys of a query share is no matter to softmax."""
    exact, coded = (q @ k.transpose(2, 3) for k in (keys, estimate))
    exact, coded = exact - exact.mean(-1, keepdim=True), coded - coded.mean(-1, keepdim=True)
    return float((exact * coded).sum() / exact.square().sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beats_qvg_in_fewer_bytes(seed: int) -> None:
    """Two bits each: at most 40 % of the error of keys and values and 40 % of the error of what attention makes of them."""
    kv = _video(seed)
    queries, errors, sizes, outputs = _queries(kv[0]), [], [], []
    for config in (CONFIG, QVGConfig()):
        codecs = make_codecs(config)
        spans = [codec.encode(x, EncodeHint()) for codec, x in zip(codecs, kv, strict=True)]
        restored = tuple(_decode(codec, span, x) for codec, span, x in zip(codecs, spans, kv, strict=True))
        errors.append([relative_error(x, estimate) for x, estimate in zip(kv, restored, strict=True)])
        sizes.append(sum(storage_bytes(spans).values()))
        outputs.append(_attention_error(queries, kv, (restored[0], restored[1])))
    assert sizes[0] < sizes[1]
    assert all(ours < 0.4 * theirs for ours, theirs in zip(*errors, strict=True)), errors
    assert outputs[0] < 0.4 * outputs[1], outputs


@TRANSFORMS
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_keys_do_not_shrink(seed: int, transform: str) -> None:
    """A basis of its own keeps the logits' slope to 1 %, twice as well as qvg; a Hadamard matrix is off by 1.1 to 1.3 % on these
    keys (seeds 0 to 2, CPU), no less than qvg's 1.0 to 1.7 %. Both keep the key's own length better than qvg, whose levels shrink
    it.
    """
    farthest = {"klt": 0.01, "hadamard": 0.015}[transform]
    keys = _video(seed)[0]
    queries, slopes, lengths = _queries(keys), [], []
    for config in (CONFIG.with_changes(transform=transform), QVGConfig()):
        codec = make_codecs(config).keys
        restored = _decode(codec, codec.encode(keys, EncodeHint()), keys)
        slopes.append(_logit_slope(queries, keys, restored))
        lengths.append(float((keys * restored).sum() / keys.square().sum()))
    assert slopes[0] == pytest.approx(1, abs=farthest), slopes
    assert transform == "hadamard" or abs(slopes[0] - 1) < abs(slopes[1] - 1) / 2, slopes
    assert lengths[0] == pytest.approx(1, abs=0.015) and abs(lengths[0] - 1) < abs(lengths[1] - 1) / 2, lengths


@pytest.mark.parametrize("share", [0.005, 0.02], ids=["half_a_percent", "two_percent"])
@pytest.mark.parametrize("which", [0, 1], ids=["keys", "values"])
@pytest.mark.parametrize("seed", [0, 1])
def test_outlier_tokens_do_not_harm_the_rest(seed: int, which: int, share: float) -> None:
    """Some tokens are three to eight times as long: the others' error grows by less than 15 % and stays below half of qvg's."""
    clean = _video(seed)[which]
    generator = torch.Generator().manual_seed(seed)
    long = torch.randperm(clean.shape[2], generator=generator)[: int(share * clean.shape[2])]
    x = clean.clone()
    x[:, :, long] *= 3 + 5 * torch.rand(len(long), 1, generator=generator)
    rest = torch.ones(x.shape[2], dtype=torch.bool).index_fill_(0, long, False)

    def error_of_rest(config: QVGConfig, tensor: Tensor) -> float:
        codec = make_codecs(config).keys
        return relative_error(tensor[:, :, rest], _decode(codec, codec.encode(tensor, EncodeHint()), tensor)[:, :, rest])

    ours, without, theirs = (error_of_rest(*case) for case in ((CONFIG, x), (CONFIG, clean), (QVGConfig(), x)))
    assert ours < 1.15 * without, (ours, without)
    assert ours < 0.5 * theirs, (ours, theirs)


def _group(codec: KLTCodec, parts: Sequence[Tensor], room: Room | None = None) -> list[TransformSpan]:
    """Spans encoded one after the other, each knowing the bases of those before it, as a cache does it."""
    spans: list[TransformSpan] = []
    for number, x in enumerate(parts):
        bases = tuple({id(span.codebook.basis): span.codebook.basis for span in spans}.values())
        hint = EncodeHint(number, reuse=spans[-1].codebook if spans else None, bases=bases, room=room)
        span = codec.encode(x, hint)
        assert isinstance(span, TransformSpan)
        spans.append(span)
    return spans


@TRANSFORMS
def test_a_codebook_grows_and_disturbs_no_one(transform: str) -> None:
    """First codewords stay byte for byte, earlier spans decode to the same bits with more, and bytes are those predicted."""
    codec = KLTCodec(SHARING.with_changes(transform=transform))
    parts = _video()[0].split(1560, 2)
    spans = _group(codec, parts)
    counts = [span.codebook.codewords.values.shape[2] for span in spans]
    assert counts == sorted(counts) and counts[0] < counts[-1] <= 256, counts
    last = spans[-1].codebook
    for x, span, count in zip(parts, spans, counts, strict=True):
        assert span.codebook.group is last.group
        assert torch.equal(span.codebook.codewords.values, last.codewords.values[:, :, :count])
        assert torch.equal(span.codebook.codewords.scales, last.codewords.scales[:, :, :count])
        assert int(span.ids.max()) < count
        assert torch.equal(_decode(codec, span, x), _decode(codec, span.with_codewords(last.codewords), x))
    counted = storage_bytes([span.with_codewords(last.codewords) for span in spans])
    bases = tuple({id(span.codebook.basis): span.codebook.basis.directions for span in spans}.values())
    predicted = codec.codebook_bytes((1, 1, 128), CodebookSize(counts[-1], bases))
    assert {name: counted[name] for name in predicted} == predicted, "codewords are counted once"
    assert sum(codec.predicted_bytes((1, 1, 1560, 128)).values()) * len(parts) == sum(counted.values()) - sum(predicted.values())


def test_tokens_that_are_alike_need_no_further_codebook() -> None:
    """The ordinary bytes: codewords that each span adds, and one basis."""
    codec = KLTCodec(SHARING)
    parts = torch.randn(1, 1, 4 * 1560, 128, generator=torch.Generator().manual_seed(0)).split(1560, 2)
    spans = _group(codec, parts)
    last = spans[-1].codebook
    assert all(span.codebook.basis is last.basis for span in spans)
    predicted = codec.predicted_codebook_bytes((1, 1, 128), [1560] * 4)
    full = codec.codebook_bytes((1, 1, 128), CodebookSize(last.codewords.values.shape[2], (last.basis.directions,)))
    assert full["centroids"] == predicted["centroids"]


def test_added_codewords_help_where_something_new_appears() -> None:
    old, new = (make_keys_values(seed, frames=2)[0] for seed in (0, 9))
    errors = []
    for added in (0, 64):
        codec = KLTCodec(SHARING.with_changes(clusters=64, clusters_added=added, transform="hadamard"))
        first = _encode(codec, old)
        second = _encode(codec, new, first.codebook)
        assert second.codebook.codewords.values.shape[2] == 64 + added
        errors.append(relative_error(new, _decode(codec, second, new)))
    assert errors[1] < 0.7 * errors[0], errors


@pytest.mark.parametrize(
    ("changes", "tokens", "codewords"),
    [
        ({}, [1560] * 3, [97, 97 + 18, 97 + 36]),
        ({}, [20_000] * 9, [128, 146, 164, 182, 200, 218, 236, 254, 256]),
        ({"spans_per_codebook": 1}, [20_000], [256]),
        ({"spans_per_codebook": 3}, [20_000, 20_000, 700, 9], [128, 192, 213, 213]),
        ({"clusters": 256}, [300, 300], [256, 256]),
        ({"clusters": 100, "clusters_added": 90}, [200, 200, 40, 200], [100, 190, 230, 256]),
        ({"clusters": 100}, [7, 33], [7, 8]),
        ({}, [1, 1], [1, 1]),
    ],
    ids=["one_for_16_tokens", "full", "alone", "short_spans", "nothing_left", "by_hand", "few_tokens", "one_token"],
)
def test_never_more_codewords_than_ids_can_name(changes: dict[str, int], tokens: list[int], codewords: list[int]) -> None:
    codec = KLTCodec(SHARING.with_changes(**changes, iterations=1))
    parts = [torch.randn(2, 3, count, 64, generator=torch.Generator().manual_seed(count)) for count in tokens]
    for number, count in enumerate(codewords, 1):
        predicted = codec.predicted_codebook_bytes((2, 3, 64), tokens[:number])
        assert predicted["centroids"] == 2 * 3 * count * (64 + 2), number
    for span in _group(codec, parts) if sum(tokens) < 2000 else ():
        codebook = span.codebook
        assert int(span.ids.max()) < codebook.codewords.values.shape[2] <= 256
        counted, size = storage_bytes([span]), CodebookSize(codebook.codewords.values.shape[2], (codebook.basis.directions,))
        sizes = codec.codebook_bytes((2, 3, 64), size)
        assert {name: counted[name] for name in sizes} == sizes


@given(
    st.sampled_from([64, 96, 128, 256]),
    st.integers(4, 96),
    st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=32, max_size=32),
)
def test_planes_spend_every_bit_and_nest(channels: int, sixteenths: int, steps: list[float]) -> None:
    total = sixteenths * channels // 128 * 8
    if total == 0:
        return
    variances = sorted((value for value in steps for _ in range(8)), reverse=True)[:channels]
    planes = allocate_planes(variances, total / channels, channels)
    assert sum(planes) == total and len(planes) <= 6
    assert list(planes) == sorted(planes, reverse=True) and all(size % 8 == 0 and 8 <= size <= channels for size in planes)


def test_bits_go_where_the_energy_is() -> None:
    """Equal variances get equal bits; half of the channels without energy leave theirs to the others; loud ones get more, at most
    three more than the average, and all of them where few directions are kept."""
    assert allocate_planes([1.0] * 64, 2, 64) == (64, 64)
    assert allocate_planes([1.0] * 32 + [0.0] * 32, 2, 64) == (32, 32, 32, 32)
    assert allocate_planes([1000.0] * 8 + [1.0] * 56, 1, 64)[:1] < (64,)
    loud = allocate_planes([1000.0] * 8 + [1.0] * 56, 2, 64)
    assert len(loud) == 5 and loud[-1] == 8
    assert allocate_planes([1.0] * 16, 1, 64) == (16, 16, 16, 16)


@pytest.mark.parametrize("noise", [1.0, 0.1, 0.01, 0.0])
def test_tensors_of_low_rank_get_all_bits_where_they_live(noise: float) -> None:
    """Sixteen directions in 128 channels: one bit per channel is three for each of them (0.035 of the variance is left); spread
    evenly it would leave 0.36 or more. However faint the rest is: what rounded directions leak into it must not set the scale."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 2000, 16, generator=generator) @ torch.randn(16, 128, generator=generator)
    x += noise * torch.randn(x.shape, generator=generator)
    codec = KLTCodec(CONFIG.with_changes(bits=1, clusters=1))
    span = _encode(codec, x)
    assert len(span.codebook.basis.planes[0]) <= 4 and span.codebook.basis.planes[0][2] >= 16
    beyond = 128 * noise**2 / (16 * 128)  # the noise's own share: no bits are left for it
    assert relative_error(x, _decode(codec, span, x)) < 0.035 + beyond


def test_one_basis_for_all_amplitudes() -> None:
    """Keys a thousand times as large or small come out as well: eight-bit rows carry their own scale."""
    keys = make_keys_values(frames=1)[0]
    codec = KLTCodec(CONFIG)
    errors = [relative_error(keys * size, _decode(codec, _encode(codec, keys * size), keys)) for size in (1e-3, 1.0, 1e3)]
    assert errors == pytest.approx([errors[1]] * 3, rel=0.05)


def test_heads_do_not_see_each_other() -> None:
    """A silent, a loud and an ordinary head share planes, nothing else."""
    keys = make_keys_values(frames=1, heads=3)[0]
    keys[:, 0], keys[:, 1] = 0, keys[:, 1] * 100
    codec = KLTCodec(CONFIG)
    restored = _decode(codec, _encode(codec, keys), keys)
    assert not restored[:, 0].any()
    assert all(relative_error(keys[:, head], restored[:, head]) < 0.05 for head in (1, 2))


@TRANSFORMS
def test_videos_of_a_batch_do_not_see_each_other(transform: str) -> None:
    """Two videos of different energy, coded together and each alone: the same codes, also when their codebooks grow."""
    codec = KLTCodec(SHARING.with_changes(transform=transform, clusters=20, clusters_added=10))
    keys, values = (x[:, :, :800] * size for x, size in zip(make_keys_values(frames=1, heads=2), (1.0, 30.0), strict=True))
    codebooks: list[TransformCodebook | None] = [None, None, None]
    for number, tokens in enumerate((slice(0, 400), slice(400, 800))):
        spans = []
        for which, x in enumerate((torch.cat([keys, values]), keys, values)):
            spans.append(_encode(codec, x[:, :, tokens], codebooks[which], seed=number))
            codebooks[which] = spans[-1].codebook
        both, *alone = spans
        for row, span in enumerate(alone):
            assert both.codebook.basis.planes[row] == span.codebook.basis.planes[0]
            assert torch.equal(both.ids[row], span.ids[0])
            differ = (both.codes[row] != span.codes[0]).float().mean()
            assert float(differ) < 0.01, "only ties may fall another way, where a product adds in another order"
        x = torch.cat([keys, values])[:, :, tokens]
        restored = _decode(codec, both, x)
        assert all(relative_error(x[row], restored[row]) < 0.2 for row in range(2))


@pytest.mark.parametrize("first", ["normal", "flat", "zero", "repeated"])
def test_a_codebook_that_began_with_a_dull_span_serves_the_next_one(first: str) -> None:
    """A basis learned from next to nothing must still fit what comes after: no gain saturates, no error beyond the signal."""
    generator = torch.Generator().manual_seed(3)
    normal, later = (torch.randn(1, 2, 1024, 128, generator=generator) for _ in range(2))
    spans = {"normal": normal, "flat": normal[:, :, :1].expand_as(normal), "zero": normal * 0}
    spans["repeated"] = normal[:, :, :64].repeat(1, 1, 16, 1)
    codec = KLTCodec(QVGConfig(codec="klt", bits=1.5, clusters="auto", spans_per_codebook=8))
    codebook = codec.encode(spans[first], EncodeHint()).codebook
    span = codec.encode(later, EncodeHint(reuse=codebook))
    decoded = codec.decode(span, slice(0, 1024), slice(0, 2), torch.empty_like(later))
    error = float((decoded - later).square().sum() / later.square().sum())
    assert error < (0.32 if first == "normal" else 0.5), error


# What tokens may be made of, span after span; the last part of each name is the span that is judged.
S, D = 1024, 128
_SPECTRUM = torch.logspace(0, -2, D)


def _tokens(seed: int, count: int = S, rank: int | None = None) -> Tensor:
    """Tokens of a falling spectrum, as networks make them, or of few directions."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(99)))[0]
    x = torch.randn(1, 1, count, D, generator=generator) * _SPECTRUM.sqrt()
    return (x if rank is None else x * (torch.arange(D) < rank)) @ turn


def _cauchy(seed: int) -> Tensor:
    chances = torch.rand(1, 1, S, D, generator=torch.Generator().manual_seed(seed)).clamp(1e-4, 1 - 1e-4)
    return torch.distributions.Cauchy(0.0, 1.0).icdf(chances)


def _loud(seed: int) -> Tensor:
    x = _tokens(seed)
    x[..., 5] = 1e4 * torch.randn(S, generator=torch.Generator().manual_seed(seed))
    return x


def _moving(spans: int, count: int) -> list[Tensor]:
    """Another channel is ten thousand times as loud as the rest in every span."""
    parts = [torch.randn(1, 1, count, D, generator=torch.Generator().manual_seed(seed)) for seed in range(spans)]
    for seed, x in enumerate(parts):
        x[..., 7 + 13 * seed] *= 1e4
    return parts


def _beyond_eight_bits(count: int) -> Tensor:
    """One channel of a million beside channels of a thousandth."""
    x = 1e-3 * torch.randn(1, 1, count, D, generator=torch.Generator().manual_seed(5))
    x[..., 7] *= 1e8
    return x.clamp(-1e6, 1e6)


HARD = {
    "one_direction_then_all": [_tokens(1, rank=1), _tokens(2)],
    "eight_directions_then_all": [_tokens(1, rank=8), _tokens(2), _tokens(3)],
    "zeros_then_all": [_tokens(1) * 0, _tokens(2)],
    "all_then_zeros": [_tokens(1), _tokens(1) * 0, _tokens(2)],
    "constant": [_tokens(1), _tokens(2)[:, :, :1].expand(-1, -1, S, -1).clone(), _tokens(3)],
    "repeated": [_tokens(1)[:, :, :64].repeat(1, 1, 16, 1), _tokens(2)],
    "heavy_tails": [_tokens(1), _cauchy(2), _tokens(3), _cauchy(4)],
    "a_thousandth_then_a_million_times": [_tokens(1) * 1e-3, _tokens(2) * 1e3, _tokens(3)],
    "one_direction_in_five_tokens": [_tokens(1, 5, rank=1), _tokens(2, 5)],
    "faint": [_tokens(seed) * size for seed, size in enumerate((1e-7, 1e-9, 1e-12, 1e-30, 1.0))],
    "faint_in_five_tokens": [_tokens(seed, 5) * size for seed, size in enumerate((1.0, 1e-9, 1e-20, 1.0))],
    "one_token_each": [_tokens(seed, 1) for seed in range(4)],
    "seven_tokens_each": [_tokens(seed, 7) for seed in range(5)],
}
SETTINGS: dict[str, QVGConfig] = {
    **{name: QVGConfig.preset(name) for name in ("balanced", "fewest-bytes", "near-exact")},
    "quarter_of_a_bit": QVGConfig.preset("balanced").with_changes(bits=0.25, bits_v=0.25),
    "hadamard_1_bit": QVGConfig.preset("balanced").with_changes(transform="hadamard", bits=1, bits_v=0.25),
    "mean_only": QVGConfig.preset("balanced").with_changes(clusters=1, clusters_added=0),
}


def _shares(config: QVGConfig, parts: Sequence[Tensor], *channels: list[int]) -> list[float]:
    """Of every span, the energy of its error as a share of its signal's, for keys and for values; over some channels, named for
    all spans or for each of them."""
    shares, named = [], list(channels or (list(range(D)),)) * (len(parts) // max(1, len(channels)))
    for codec in make_codecs(config):
        assert isinstance(codec, KLTCodec)
        for x, span, some in zip(parts, _group(codec, parts), named, strict=True):
            wanted, got = x[..., some].double(), _decode(codec, span, x)[..., some].double()
            error, signal = float((got - wanted).square().sum()), float(wanted.square().sum())
            shares.append(error / signal if signal else 2.0 * (error > 0))
    return shares


@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("name", SETTINGS)
def test_no_span_is_worse_than_nothing(name: str, hard: str) -> None:
    shares = _shares(SETTINGS[name], HARD[hard])
    assert max(shares) <= 1.0, shares


@pytest.mark.parametrize("name", SETTINGS)
def test_a_loud_channel_leaves_the_others_alone(name: str) -> None:
    """Ten thousand times as loud as the rest, from the second span on; the error is taken over the rest."""
    others = [channel for channel in range(D) if channel != 5]
    shares = _shares(SETTINGS[name], [_tokens(1), _loud(2), _loud(3)], others)
    assert max(shares) <= 1.0, shares


LOUD = {
    "moving_in_five_tokens": _moving(4, 5),
    "moving_in_forty_tokens": _moving(3, 40),
    "moving": _moving(3, S),
    "beyond_eight_bits": [_beyond_eight_bits(S), _beyond_eight_bits(S)],
    "beyond_eight_bits_in_five_tokens": [_beyond_eight_bits(5), _beyond_eight_bits(5)],
}


@pytest.mark.parametrize("loud", LOUD)
@pytest.mark.parametrize("name", SETTINGS)
def test_no_loud_channel_ruins_the_others(name: str, loud: str) -> None:
    """The error is taken over channels that are at most 16 times as loud as half of them."""
    parts = LOUD[loud]
    energies = [x.square().mean((0, 1, 2)) for x in parts]
    others = [(energy < 256 * energy.median()).nonzero().flatten().tolist() for energy in energies]
    assert all(len(some) == D - 1 for some in others)
    shares = _shares(SETTINGS[name], parts, *others)
    assert max(shares) <= 1.0, shares


@pytest.mark.parametrize("width", [80, 96])
def test_a_black_opening_needs_no_hadamard_matrix(width: int) -> None:
    """Openings that codewords describe completely, and loud channels, in heads of widths for which there is none."""
    spec = CacheSpec(layers=1, heads=2, head_dim=width, tokens_per_frame=40)
    config = QVGConfig.preset("balanced").with_changes(sink_frames=0, recent_frames=0, span_frames=1)
    loud = torch.randn(1, 2, 40, width, generator=torch.Generator().manual_seed(0))
    loud[..., 7] *= 1e4
    shares: list[float] = []

    def watch(span: Span, x: Tensor) -> None:
        if isinstance(span, TransformSpan):
            rest = torch.arange(width) != 7
            wanted, got = x[..., rest].double(), _decode(KLTCodec(config), span, x)[..., rest].double()
            shares.append(float((got - wanted).square().sum() / wanted.square().sum().clamp(min=1e-30)))

    with KVCache(spec, config) as cache:
        cache.observe(watch)
        for x in (torch.full_like(loud, 0.5), torch.zeros_like(loud), loud, loud.flip(2)):
            cache.layers[0].append(x, x)
            cache.commit()
            assert cache.nbytes() == spec.predict(config, cache.frames_committed, codebooks=cache.codebooks())
            assert cache.nbytes().total <= spec.predict(config, cache.frames_committed, codebooks="most").total
    assert len(shares) == 8 and max(shares) <= 1.0, shares


@pytest.mark.parametrize("opening", ["one_direction_then_all", "eight_directions_then_all", "zeros_then_all"])
def test_an_opening_costs_no_quality(opening: str) -> None:
    """What follows it comes out as if it had come first: within a tenth more error."""
    parts = HARD[opening]
    for name in ("balanced", "near-exact"):
        after, alone = (_shares(SETTINGS[name], some)[len(some) - 1] for some in (parts[:2], parts[1:2]))
        assert after < 1.1 * alone, (name, after, alone)


def test_a_scene_seen_before_takes_its_basis_again() -> None:
    """There and back between two kinds of tokens, with room for a basis each time: two bases for four spans."""
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(7)))[0]
    parts = [_tokens(1), _tokens(2) @ turn, _tokens(3), _tokens(4) @ turn]
    bases = [span.codebook.basis for span in _group(KLTCodec(QVGConfig.preset("balanced")), parts, Room(D, D))]
    assert bases[0] is bases[2] is not bases[1] and bases[1] is bases[3]


@pytest.mark.parametrize("name", ["balanced", "near-exact", "hadamard_1_bit"])
def test_the_same_bytes_with_one_thread_and_with_two(name: str) -> None:
    parts, threads = [_tokens(1), _tokens(2, rank=8), _tokens(3)], torch.get_num_threads()
    made = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            spans = [span for codec in make_codecs(SETTINGS[name]) for span in _group(codec, parts)]  # type: ignore[arg-type]
            made.append([tensor for span in spans for tensor in span.tensors().values()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*made, strict=True))
