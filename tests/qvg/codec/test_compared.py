"""What others ship and what the study's cores are: bits, bytes, arithmetic by hand, round trips through the cache."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from comfyui_qvg.kernels import e4m3
from comfyui_qvg.qvg import CacheSpec, ConfigError, KVCache, QVGConfig
from comfyui_qvg.qvg.bench.synthetic import make_keys_values
from comfyui_qvg.qvg.codec import make_codecs
from comfyui_qvg.qvg.codec.base import EncodeHint
from comfyui_qvg.qvg.codec.compared import make_core
from comfyui_qvg.qvg.codec.core import CoreCodec
from comfyui_qvg.qvg.codec.grid import Grid
from comfyui_qvg.qvg.codec.span import storage_bytes
from comfyui_qvg.qvg.config import COMPARED
from comfyui_qvg.qvg.positions.rope import wan_rope
from torch import Tensor

from ...helpers import relative_error
from ...rounding import share

EVERY = [(codec, bits) for codec, widths in COMPARED.items() for bits in widths]
NAMES = [f"{codec}_{bits}_bits" for codec, bits in EVERY]
ALL = pytest.mark.parametrize(("codec", "bits"), EVERY, ids=NAMES)


def _config(codec: str, bits: int, **changes: object) -> QVGConfig:
    group = 16 if codec.startswith("study-") else 128 if codec == "pca" else 64
    return QVGConfig(codec=codec, bits=bits, group_size=group).with_changes(**changes)


def _restored(config: QVGConfig, which: int, x: Tensor) -> Tensor:
    codec = make_codecs(config)[which]
    return codec.decode(codec.encode(x, EncodeHint()), slice(None), slice(None), torch.empty_like(x))


def _few(tokens: int, heads: int) -> tuple[Tensor, Tensor]:
    return tuple(x[:, :, :tokens] for x in make_keys_values(frames=4, rows=8, cols=10, heads=heads))  # type: ignore[return-value]


@ALL
@pytest.mark.parametrize("tokens", [1, 7, 33, 257], ids=lambda s: f"{s}_tokens")
def test_bytes_and_slices(codec: str, bits: int, tokens: int, poisoned_empty: None) -> None:
    """Predicted bytes are those of the storages; some tokens of some heads are what the whole says of them."""
    for which, x in enumerate(_few(tokens, 3)):
        method = make_codecs(_config(codec, bits))[which]
        span = method.encode(x, EncodeHint())
        assert storage_bytes([span]) == method.predicted_bytes((1, 3, tokens, 128))
        assert span.codec == method.name == codec and span.num_tokens == tokens
        whole = method.decode(span, slice(None), slice(None), torch.empty_like(x))
        assert whole.isfinite().all()
        # Either codec decodes the spans of both.
        other = make_codecs(_config(codec, bits))[1 - which]
        assert torch.equal(other.decode(span, slice(None), slice(None), torch.empty_like(x)), whole)
        order = share(torch.float32, 2 * x.shape[-1]) * float(whole.norm(dim=-1).max())
        turns = codec in ("study-quarot", "pca")
        for part in (slice(tokens // 3, tokens // 3 + 1 + tokens // 2), slice(tokens - 1, tokens), slice(0, 1)):
            out = torch.empty_like(x[:, 1:3, part])
            cut = method.decode(span, part, slice(1, 3), out)
            assert torch.allclose(cut, whole[:, 1:3, part], atol=order if turns else 0, rtol=0)


# Of keys and of values, for 12 heads of 128 channels; from the papers, the study's sheet and counted by hand. S divides by 128.
BITS_PER_VALUE = {
    "fp8_8_bits": (8 + 32 / (1280 * 128),) * 2,
    "nvfp4_4_bits": (4.5 + 32 / (1280 * 128 * 12),) * 2,
    "bf16-int8_8_bits": (16, 8 + 16 / 128),
    "pca_2_bits": (2 + 16 / 128 + 3 / 16 + 88 / 1280,) * 2,
    "lightx2v-kivi_2_bits": (3.0, 3.0),
    "lightx2v-kivi_4_bits": (5.0, 5.0),
    "lightx2v-kivi_8_bits": (9.0, 9.0),
    "study-rtn_2_bits": (3, 3),
    "study-rtn_4_bits": (5, 5),
    "study-kivi_2_bits": (4, 2 + 32 / 1536),
    "study-kivi_4_bits": (6, 4 + 32 / 1536),
    "study-quarot_2_bits": (3, 3),
    "study-quarot_4_bits": (5, 5),
    "study-prq_2_bits": (8, 8),
    "study-prq_4_bits": (10, 10),
    "study-qaq_2_bits": (4 + 48 * 260 / 163840, 2 + 32 / 1536 + 48 * 260 / 163840),
    "study-qaq_4_bits": (6 + 48 * 260 / 163840, 4 + 32 / 1536 + 48 * 260 / 163840),
    "study-tptq_2_bits": (6 + 48 * 163 / 163840, 6),
}


@ALL
def test_bits_per_value(codec: str, bits: int) -> None:
    for method, expected in zip(make_codecs(_config(codec, bits)), BITS_PER_VALUE[f"{codec}_{bits}_bits"], strict=True):
        size = sum(method.predicted_bytes((1, 12, 1280, 128)).values())
        assert 8 * size / (12 * 1280 * 128) == pytest.approx(expected, rel=1e-9)


def test_budget_pca_takes_what_is_published() -> None:
    """2.3195 bits per value on LongCat's chunk of 29,640 tokens, 2.3256 on HY-WorldPlay's of 7,040."""
    for tokens, expected, within in ((29_640, 2.3195, 5e-5), (7_040, 2.3256, 1e-3)):
        size = sum(make_codecs(_config("pca", 2)).keys.predicted_bytes((1, 1, tokens, 128)).values())
        assert 8 * size / (tokens * 128) == pytest.approx(expected, abs=within)


@pytest.mark.parametrize("codec", ["lightx2v-kivi", "study-rtn", "study-kivi", "study-quarot", "study-prq", "study-qaq"])
def test_more_bits_are_better(codec: str) -> None:
    for which, x in enumerate(make_keys_values(frames=2)):
        errors = [relative_error(x, _restored(_config(codec, bits), which, x)) for bits in COMPARED[codec]]
        assert all(more < fewer / 2 for fewer, more in pairwise(errors)), errors


def test_cores_stand_as_their_arithmetic_says() -> None:
    """Keys with contrast between channels and offsets, as real ones: KIVI's grid beats RTN's, PRQ's two grids beat one."""
    keys, values = make_keys_values(frames=2)
    error = {codec: relative_error(keys, _restored(_config(codec, 2), 0, keys)) for codec in COMPARED if 2 in COMPARED[codec]}
    assert error["study-kivi"] < error["study-rtn"] / 2
    assert error["study-prq"] < error["study-tptq"] < error["study-rtn"]
    assert error["study-qaq"] <= error["study-kivi"] * 1.02
    assert error["pca"] < error["lightx2v-kivi"]
    formats = (("fp8", 8), ("nvfp4", 4), ("lightx2v-kivi", 2))
    errors = [relative_error(values, _restored(_config(codec, bits), 1, values)) for codec, bits in formats]
    assert errors == sorted(errors), errors


def _by_hand(x: Tensor, bits: int, clamped: bool) -> Tensor:
    """A channel of 16 tokens from its lowest to its highest value, in float64; `clamped`: with a zero point that is a code."""
    groups = x.double().unflatten(2, (-1, 16))
    low, high = groups.amin(3, keepdim=True), groups.amax(3, keepdim=True)
    top = 2**bits - 1
    if not clamped:
        low = low.half().double()
    scale = (high - low) / top
    zero = torch.round(-low / scale).clamp(0, top)
    if clamped:
        return ((torch.round(groups / scale + zero).clamp(0, top) - zero) * scale.half()).flatten(2, 3)
    scale = scale.half().double()
    return (low + torch.round((groups - low) / scale).clamp(0, top) * scale).flatten(2, 3)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_clamped_zero_point_is_there_as_published_and_gone_as_corrected(bits: int) -> None:
    """The study's finding that KIVI is worst is this clamp: its keys, far from zero, lose what groups do not straddle."""
    keys = make_keys_values(frames=1)[0][:, :, :160]
    found = {}
    for published in (True, False):
        codec = CoreCodec("study-kivi", make_core("study-kivi", bits, 16, 0, published))
        found[published] = codec.decode(codec.encode(keys, EncodeHint()), slice(None), slice(None), torch.empty_like(keys))
        by_hand = _by_hand(keys, bits, published)
        # A value on the edge between two levels may fall on either side.
        assert float(((found[published] - by_hand).abs() > 1e-3).float().mean()) < 1e-3
    assert relative_error(keys, found[True]) > 3 * relative_error(keys, found[False])


def test_published_groups_are_filled_with_zeros() -> None:
    """17 tokens: the last group is one token and 15 zeros, so an asymmetric grid has to reach zero; ours repeats the token."""
    x = torch.full((1, 1, 17, 8), 5.0)
    x[:, :, 16] = 5.3
    error = []
    for published in (False, True):
        codec = CoreCodec("study-kivi", make_core("study-kivi", 2, 16, 0, published))
        last = codec.decode(codec.encode(x, EncodeHint()), slice(16, 17), slice(None), x.new_empty(1, 1, 1, 8))
        error.append(float((last - 5.3).abs().max()))
    assert error[0] < 5.3 * 2**-11 and torch.isclose(torch.tensor(error[1]), torch.tensor(0.0), atol=5.3 * 2**-10)
    symmetric = Grid(2, True, published=True)
    codes, scales, _ = symmetric.quantize(torch.tensor([[5.3] + [0.0] * 15]))
    assert codes.tolist() == [[2] + [1] * 15] and scales.tolist() == [pytest.approx(5.3, rel=2**-11)]


def test_outliers_are_exact_and_their_number_is_fixed() -> None:
    keys, _ = make_keys_values(frames=1)
    keys = keys[:, :, :640].clone()
    keys[0, 0, 100, 7] = 500.0
    span = make_codecs(_config("study-qaq", 2)).keys.encode(keys, EncodeHint())
    assert span.tensors()["outlier_places"].shape == (1, 1, 640 * 128 // 630)
    restored = _restored(_config("study-qaq", 2), 0, keys)
    assert float(restored[0, 0, 100, 7]) == 500.0
    kivi = _restored(_config("study-kivi", 2), 0, keys)
    # Without that, the group's other fifteen tokens share the lowest of four levels.
    rest = torch.arange(96, 112) != 100
    levels = [len(x[0, 0, 96:112, 7][rest].unique()) for x in (restored, kivi)]
    assert levels[0] > 1 and levels[1] == 1, levels


def test_nvfp4_by_hand() -> None:
    """One group of 16 whose largest value is 6 in units of an E4M3 scale: values of E2M1 come back as they are."""
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 6])
    x = (levels * 3.5).repeat(1, 1, 2, 2)
    x[:, :, 0, 16:] /= 64
    restored = _restored(_config("nvfp4", 4), 0, x)
    # The tensor's largest value is 6 * 448 scales, so 3.5 is E4M3's largest; a 64th of it is E4M3, too.
    assert torch.allclose(restored, x, rtol=1e-6, atol=0)


def test_fp8_by_hand() -> None:
    x = torch.tensor([1.0, -0.37, 0.004, 0.0]).repeat(1, 2, 3, 2)
    restored = _restored(_config("fp8", 8), 0, x)
    assert torch.equal(restored, e4m3.decode(e4m3.encode(x * 448)) * (torch.tensor(1.0) / 448))


@ALL
def test_read_through_the_cache(codec: str, bits: int) -> None:
    """Appended, committed, encoded, rotated and attended like any codec; the count is the prediction; every call is counted."""
    rope = wan_rope(4, 4)
    spec = CacheSpec(2, 2, 128, 16)
    config = _config(codec, bits, span_frames=4, recent_frames=1)
    generator = torch.Generator().manual_seed(3)
    with KVCache(spec, config, rope) as cache, KVCache(spec, QVGConfig.preset("exact"), rope) as exact:
        keys, values = (x.view(1, 2, 12, 16, 128) for x in make_keys_values(frames=12, rows=4, cols=4, heads=2))
        for frame in range(12):
            outputs = []
            q = torch.randn(1, 2, 16, 128, generator=generator)
            for memory in (cache, exact):
                memory.place([(frame, 0, 0)])
                outputs.append([memory.attend(layer, q, keys[:, :, frame], values[:, :, frame]) for layer in range(2)])
                memory.commit()
        cache.verify_encoded()
        assert cache.nbytes() == spec.predict(config, 12)
        assert relative_error(outputs[1][0], outputs[0][0]) < 0.5 and torch.equal(outputs[0][0], outputs[0][1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "fp8", "bits": 4}, "bits is 4, but codec 'fp8' has 8 bits"),
        ({"codec": "nvfp4", "bits": 8}, "bits is 8, but codec 'nvfp4' has 4 bits"),
        ({"codec": "study-rtn", "bits": 3}, "bits is 3, but codec 'study-rtn' has 2 or 4 bits"),
        ({"codec": "lightx2v-kivi", "bits": 3}, "bits is 3, but codec 'lightx2v-kivi' has 2, 4 or 8 bits"),
        ({"codec": "study-kivi", "bits": 2, "bits_v": 8}, "bits_v is 8"),
        ({"codec": "study-tptq", "bits": 4}, "has 2 bits"),
        ({"codec": "study-kivi", "bits": True}, "bits is True"),
    ],
)
def test_widths_that_a_codec_lacks(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        QVGConfig().with_changes(**changes)


@pytest.mark.parametrize(
    ("codec", "bits", "channels", "message"),
    [
        ("study-quarot", 2, 96, "head_dim 96 is not a power of two, which codec 'study-quarot' needs; use 'study-rtn'"),
        ("nvfp4", 4, 24, "head_dim 24 is not a multiple of 16"),
    ],
)
def test_heads_that_do_not_fit(codec: str, bits: int, channels: int, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        CacheSpec(1, 1, channels, 16).check(_config(codec, bits))
    CacheSpec(1, 1, 96, 16).check(_config("study-kivi", 2))
