"""Attention on transform coefficients: torch against the definition, Triton against torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from comfyui_qvg.kernels import Rows8, quantize_coefficients, quantize_rows
from comfyui_qvg.kernels.attention import merge_attention, nothing_seen
from comfyui_qvg.kernels.bitplanes import packed_width
from comfyui_qvg.kernels.direct.reference import rotated
from comfyui_qvg.kernels.direct_coefficients import TransformCodes, attend_coefficients, reference, table_of_one
from comfyui_qvg.kernels.errors import BackendError
from comfyui_qvg.kernels.launch import GpuKind, coefficient_tiles
from comfyui_qvg.qvg import QVGConfig
from comfyui_qvg.qvg.bench.synthetic import make_keys_values
from comfyui_qvg.qvg.codec import KLTCodec
from comfyui_qvg.qvg.codec.base import EncodeHint
from comfyui_qvg.qvg.codec.klt_basis import allocate_planes
from torch import Tensor

from ..helpers import assert_close
from ..rounding import UNIT, allowed, attend, lse, share
from ..triton_interpreter import DEVICE

Load = Callable[[str], ModuleType]
MIXED = (104, 80, 40, 8)  # channels of 4, 3, 2, 1 and 0 bits
Q = (1, 2, 5, 128)


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def _codebook(channels: int = 128, heads: int = 2, batch: int = 1, seed: int = 0, codewords: int = 7) -> tuple[Rows8, Rows8]:
    """Codewords, and a basis whose directions fall in length as those of a covariance do; its longest is not 1. Keys come out as
    large as normal ones, about: float16 costs a share of the logits, so what it costs of the output grows with them."""
    directions = torch.linalg.qr(_randn(batch, heads, channels, channels, seed=seed + 50).cpu())[0].to(DEVICE)
    lengths = 1.7 * torch.exp2(-4 * torch.arange(channels, device=DEVICE) / channels)
    return quantize_rows(_randn(batch, heads, codewords, channels, seed=seed + 60)), quantize_rows(directions * lengths[:, None])


def _kept(
    tokens: int,
    *planes: tuple[int, ...],
    channels: int = 128,
    heads: int = 2,
    seed: int = 0,
    hadamard: bool = False,
    codebook: tuple[Rows8, Rows8] | None = None,
) -> TransformCodes:
    """Random tokens, with `planes` for every batch row."""
    codewords, basis = codebook or _codebook(channels, heads, len(planes), seed)
    y = _randn(len(planes), heads, tokens, channels, seed=seed + 1) * torch.exp2(
        _randn(len(planes), heads, tokens, 1, seed=seed + 2) / 2
    )
    weights = basis.dequantize().square().sum(-1)
    parts = [quantize_coefficients(y[b : b + 1], weights[b : b + 1], row, "torch") for b, row in enumerate(planes)]
    codes, gains = (torch.cat(part) for part in zip(*parts, strict=True))
    generator = torch.Generator().manual_seed(seed + 3)
    ids = torch.randint(0, codewords.values.shape[2], gains.shape, dtype=torch.uint8, generator=generator).to(DEVICE)
    powers = torch.exp2(torch.randint(-3, 2, (len(planes), heads, channels), generator=generator)).half().to(DEVICE)
    directions, scales = (None, powers) if hadamard else basis
    return TransformCodes(codes, gains, ids, codewords, directions, scales, planes)


def _angles(tokens: int, channels: int = 128) -> tuple[Tensor, Tensor]:
    angles = _randn(tokens, channels // 2, seed=9) * 3
    return angles.cos(), angles.sin()


def _definition(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scores = q.double() @ k.double().transpose(2, 3) / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v.double(), scores.logsumexp(-1)


def _same(load: Load, q: Tensor, keys: TransformCodes, values: TransformCodes, rotation: tuple[Tensor, Tensor] | None) -> int:
    """Triton's parts, folded, are torch's result. Returns the number of parts."""
    expected = merge_attention(*reference.attend_spans(q, *table_of_one(keys, values, rotation), None), nothing_seen(q), "torch")
    parts = load("direct_coefficients").attend_spans(q, *table_of_one(keys, values, rotation), None)
    got = merge_attention(*parts, nothing_seen(q), "torch")
    bounds = _bounds(q, [keys], [values], rotation)
    assert_close("out", expected.out, got.out, bounds[0])
    assert_close("lse", expected.lse, got.lse, bounds[1])
    return len(parts[0])


def _bounds(
    q: Tensor, keys: list[TransformCodes], values: list[TransformCodes], rotation: tuple[Tensor, Tensor] | None
) -> tuple[float, float]:
    """What Triton's kernel may cost output and lse: it rounds to float16 scaled queries, levels of keys, keys; weights, codewords
    of values; levels times gains, their sums over tokens. All else is float32's."""
    once, twice, thrice = (share(torch.float16, times) for times in (1, 2, 3))
    (k_codewords, k_rest), (v_codewords, v_rest) = (
        (torch.cat(parts, 2) for parts in zip(*map(_codewords_and_rest, side), strict=True)) for side in (keys, values)
    )

    def rotate(codewords: Tensor, rest: Tensor) -> Tensor:
        return rotated(codewords + rest, None if rotation is None else tuple(part.double() for part in rotation))

    of_keys = ((q, once), (k_codewords, once), (k_rest, twice))
    out = allowed(lambda q, a, b, c, d: attend(q, rotate(a, b), c + d), *of_keys, (v_codewords, twice), (v_rest, thrice))
    floor = share(torch.float32, 2 * q.shape[-1], k_codewords.shape[2])
    # Weights that are almost equal are all rounded the same way.
    return out + UNIT[torch.float16] + floor, allowed(lambda q, a, b: lse(q, rotate(a, b)), *of_keys) + floor


def _codewords_and_rest(kept: TransformCodes) -> tuple[Tensor, Tensor]:
    """Decoded tokens [B, H, S, D] in two parts."""
    codewords = kept.codewords.dequantize()
    chosen = torch.gather(codewords, 2, kept.ids.long()[..., None].expand(*kept.ids.shape, codewords.shape[-1]))
    return chosen, reference.decoded(kept, slice(None), slice(None)) - chosen


@pytest.mark.parametrize("hadamard", [False, True], ids=["basis", "hadamard"])
def test_reference_is_the_definition(hadamard: bool) -> None:
    """Decoded by hand: codewords and levels through the synthesis matrix, one softmax; more than one tile of 1,024 tokens."""
    keys, values = (_kept(1100, MIXED, seed=seed, hadamard=hadamard) for seed in (0, 10))
    k, v = (reference.decoded(kept, slice(None), slice(None)) for kept in (keys, values))
    codewords = keys.codewords.dequantize()
    codeword = torch.gather(codewords, 2, keys.ids.long()[..., None].expand(*keys.ids.shape, 128))
    assert 0.1 < float((k - codeword).square().mean() / codeword.square().mean()) < 100, "neither part hides the other"
    got = attend_coefficients(_randn(*Q), keys, values, _angles(1100), "torch")
    for name, expected, part in zip(("out", "lse"), _definition(_randn(*Q), rotated(k, _angles(1100)), v), got, strict=True):
        assert_close(name, expected, part, 1e-5)


@pytest.mark.parametrize("hadamard", [False, True], ids=["basis", "hadamard"])
@pytest.mark.parametrize("quarters", range(2, 25), ids=lambda quarters: f"{quarters / 4}_bits")
def test_every_bit_split(triton_kernel: Load, quarters: int, hadamard: bool, poisoned_empty: None) -> None:
    """Half a bit to six in quarters, as the codec allocates them, every other one rotated; values get half a bit more."""
    variances = [2.0 ** (-channel / 16) for channel in range(128)]
    planes = [allocate_planes(variances, min(24, quarters + more) / 4, 128) for more in (0, 2)]
    assert [8 * packed_width(some) for some in planes] == [32 * quarters, 32 * min(24, quarters + 2)]
    keys, values = (_kept(70, some, seed=10 * i, hadamard=hadamard) for i, some in enumerate(planes))
    _same(triton_kernel, _randn(*Q, seed=5, dtype=torch.bfloat16), keys, values, _angles(70) if quarters % 2 else None)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 63, 64, 65, 200])
@pytest.mark.parametrize("channels", [64, 128, 256])
def test_lengths_and_widths(triton_kernel: Load, tokens: int, channels: int, poisoned_empty: None) -> None:
    planes = (channels, channels // 2, channels // 4)
    keys, values = (_kept(tokens, planes, channels=channels, seed=seed) for seed in (0, 10))
    _same(triton_kernel, _randn(1, 2, 3, channels), keys, values, _angles(tokens, channels))


@pytest.mark.parametrize("kind", [GpuKind(), GpuKind(fed_from_registers=True), GpuKind(amd=True, lanes=64), GpuKind(amd=True)])
@pytest.mark.parametrize("queries", [1, 17, 150])
def test_tiles_of_every_kind_of_card(
    triton_kernel: Load, queries: int, kind: GpuKind, poisoned_empty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same result with each card's tiles; 150 queries are three blocks, the last one partly empty."""
    module = triton_kernel("direct_coefficients")
    monkeypatch.setattr(module, "gpu_kind", lambda device: kind)
    keys, values = _kept(130, MIXED), _kept(130, (128, 128), seed=10)
    _same(triton_kernel, _randn(1, 2, queries, 128), keys, values, _angles(130))


def test_tiles_fit_their_queries() -> None:
    """Dots need 16 rows; nothing is larger than what the compile gate has seen."""
    for queries in (1, 16, 17, 64, 4680):
        for channels in (64, 128, 256):
            for kind in (GpuKind(), GpuKind(fed_from_registers=True), GpuKind(amd=True, lanes=64), GpuKind(amd=True)):
                block, tile = coefficient_tiles(queries, channels, kind)
                assert 16 <= block.rows <= 64 and 16 <= tile.keys <= 64 and block.rows * channels <= 64 * 128


def test_batches_have_planes_of_their_own_and_views_are_fine(triton_kernel: Load, poisoned_empty: None) -> None:
    """Two videos whose planes differ; tokens cut out of a longer span, heads out of a wider one, queries whose channels are not
    dense, float32."""
    planes = (MIXED, (112, 72, 48))
    whole = [_kept(120, *planes, heads=3, seed=seed) for seed in (0, 10)]
    cut, heads = slice(7, 96), slice(1, 3)

    def view(kept: TransformCodes) -> TransformCodes:
        assert kept.directions is not None
        codes, gains, ids = (part[:, heads, cut] for part in kept[:3])
        codewords = Rows8(*(part[:, heads] for part in kept.codewords))
        return TransformCodes(codes, gains, ids, codewords, kept.directions[:, heads], kept.scales[:, heads], planes)

    keys, values = map(view, whole)
    q = _randn(2, 5, 128, 2, seed=5).permute(0, 3, 1, 2)
    _same(triton_kernel, q, keys, values, tuple(part[cut] for part in _angles(120)))
    decoded = reference.decoded(whole[0], slice(None), slice(None))[:, heads, cut]
    # Some processors multiply matrices of other lengths in another order: float32 sums of 128 products.
    assert_close("decoded", decoded, reference.decoded(keys, slice(None), slice(None)), 1e-5)


def test_spans_that_share_a_growing_codebook(triton_kernel: Load, poisoned_empty: None) -> None:
    """Earlier spans read through the longer codebook give what they gave; one span of one token among them."""
    codewords, basis = _codebook(codewords=256)
    total, joined = nothing_seen(_randn(*Q)), []
    lengths, counts = (90, 1, 40), (9, 70, 256)
    for i, (tokens, count) in enumerate(zip(lengths, counts, strict=True)):
        codebook = (Rows8(codewords.values[:, :, :count], codewords.scales[:, :, :count]), basis)
        own = [_kept(tokens, (128, 128), seed=20 * i + 5 * which, codebook=codebook) for which in (0, 1)]
        grown = [kept._replace(codewords=codewords) for kept in own]
        _same(triton_kernel, _randn(*Q), *own, None)
        merge_attention(
            *triton_kernel("direct_coefficients").attend_spans(_randn(*Q), *table_of_one(*grown), None), total, "torch"
        )
        joined.append(grown)
    sides = [list(side) for side in zip(*joined, strict=True)]
    k, v = (torch.cat([reference.decoded(kept, slice(None), slice(None)) for kept in side], 2) for side in sides)
    expected, bounds = _definition(_randn(*Q), k, v), _bounds(_randn(*Q), *sides, None)
    assert_close("out", expected[0], total.out, bounds[0])
    assert_close("lse", expected[1], total.lse, bounds[1])


@pytest.mark.parametrize("transform", ["klt", "hadamard"])
@pytest.mark.parametrize("bits", [0.75, 2, 3.5])
def test_what_the_codec_makes(triton_kernel: Load, bits: float, transform: str) -> None:
    """Keys and values with the statistics of real ones, three spans of a growing codebook, against the codec's own decoder."""
    config = QVGConfig("klt", bits, clusters="auto", iterations=2, transform=transform, spans_per_codebook=3, backend="torch")
    codec, pair = KLTCodec(config), [x[:, :, :600].to(DEVICE) for x in make_keys_values(frames=1, heads=2)]
    q = pair[0][:, :, ::40] - pair[0].mean(2, keepdim=True)
    rotation, total, spans = _angles(600), nothing_seen(q), []
    for x in pair:
        spans.append([])
        for start in range(0, 600, 200):
            known = spans[-1][-1].codebook if start else None
            spans[-1].append(codec.encode(x[:, :, start : start + 200], EncodeHint(0, reuse=known)))
        assert spans[-1][0].codebook.codewords.scales.shape[2] < spans[-1][-1].codebook.codewords.scales.shape[2]
    decoded = [torch.cat([codec.decode(s, slice(None), slice(None), torch.empty_like(x[:, :, :200])) for s in each], 2)
               for each, x in zip(spans, pair, strict=True)]  # fmt: skip
    joined = []
    for i, (keys, values) in enumerate(zip(*spans, strict=True)):
        angles = tuple(part[200 * i : 200 * (i + 1)] for part in rotation)
        kept = [
            span.with_codewords(every[-1].codebook.codewords).kept() for span, every in zip((keys, values), spans, strict=True)
        ]
        joined.append(kept)
        merge_attention(*triton_kernel("direct_coefficients").attend_spans(q, *table_of_one(*kept, angles), None), total, "torch")
    expected = _definition(q, rotated(decoded[0], rotation), decoded[1])
    bounds = _bounds(q, *(list(side) for side in zip(*joined, strict=True)), rotation)
    assert_close("out", expected[0], total.out, bounds[0])
    assert_close("lse", expected[1], total.lse, bounds[1])


def test_many_keys_are_split_and_a_lost_tail_would_show(triton_kernel: Load) -> None:
    """More keys than one program takes alone: 1,100 tokens in four parts; the last codewords alone carry the answer."""
    keys, values = _kept(1100, MIXED, heads=1), _kept(1100, (128, 128), heads=1, seed=10)
    values.ids[..., -3:] = 6
    values.codewords.values[:, :, 6] = 127
    assert _same(triton_kernel, _randn(1, 1, 4, 128) / 50, keys, values, _angles(1100)) > 1


@pytest.mark.parametrize("size", [2.0**-9, 1.0, 400.0], ids=lambda size: f"size_{size:g}")
def test_amplitudes(triton_kernel: Load, size: float) -> None:
    """Tiny and huge values (E4M3's gains end at 2^-9 and 448), loud and silent tokens side by side: what is multiplied in
    float16 keeps its precision."""
    keys, values = _kept(90, (128, 128)), _kept(90, (128, 128), seed=10)
    codewords = Rows8(values.codewords.values, (values.codewords.scales * size).half())
    gains = torch.full_like(values.gains, {2.0**-9: 1, 1.0: 0x38, 400.0: 0x7D}[size])
    gains[..., ::2] = 0
    _same(triton_kernel, _randn(*Q), keys, values._replace(codewords=codewords, gains=gains), _angles(90))


def test_silent_tokens_are_their_codewords(triton_kernel: Load, poisoned_empty: None) -> None:
    """Gains of zero everywhere: the sum of coefficients vanishes, and nothing is divided by it."""
    keys, values = _kept(40, MIXED), _kept(40, MIXED, seed=10)
    values.gains.zero_()
    _same(triton_kernel, _randn(*Q), keys, values, None)


def test_strides_beyond_32_bits(triton_kernel: Load) -> None:
    """The second head's codes lie more than 2^31 bytes behind the first's, in memory that is reserved and never touched."""
    keys, values = _kept(40, MIXED), _kept(40, MIXED, seed=10)
    far, width = (1 << 31) + 64, keys.codes.shape[-1]
    try:
        pool = torch.empty(far + 40 * width, dtype=torch.uint8, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f"2 GiB cannot be reserved here: {error}")
    codes = pool.as_strided((1, 2, 40, width), (2 * far, far, width, 1))
    codes.copy_(keys.codes)
    _same(triton_kernel, _randn(*Q), keys._replace(codes=codes), values, _angles(40))


def test_keys_and_values_of_two_kinds(triton_kernel: Load) -> None:
    """One of them with the Hadamard matrix, the other with a basis: what openings leave behind."""
    for first, second in ((False, True), (True, False)):
        keys, values = _kept(70, MIXED, hadamard=first), _kept(70, MIXED, seed=10, hadamard=second)
        _same(triton_kernel, _randn(*Q), keys, values, _angles(70))


def test_refusals() -> None:
    q, keys = _randn(*Q), _kept(9, MIXED)
    with pytest.raises(ValueError, match=r"do not belong to 9 tokens"):
        attend_coefficients(q, keys, _kept(8, MIXED))
    with pytest.raises(ValueError, match=r"a rotation of .* does not belong to 9 keys of 128"):
        attend_coefficients(q, keys, keys, _angles(8))
    with pytest.raises(ValueError, match=r"are not \(1, 2, 9\) in planes"):
        attend_coefficients(q, keys, keys._replace(planes=((96, 64),)))
    with pytest.raises(ValueError, match="must be 1 to 6 multiples of 8"):
        attend_coefficients(q, keys, keys._replace(planes=((136, 96),)))
    if DEVICE == "cpu":
        with pytest.raises(BackendError, match="direct_coefficients.*our Triton kernels do not run on cpu tensors"):
            attend_coefficients(q, keys, keys, None, "triton")
