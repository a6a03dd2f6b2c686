"""Many spans of codes in one launch: every backend gives what decoding span by span gives, and writes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from comfyui_qvg.kernels import e4m3, reconstruct
from comfyui_qvg.kernels.code_spans import CodeTable, code_table, decode_code_spans, reference, transcode_code_spans
from comfyui_qvg.kernels.direct import Codes
from comfyui_qvg.kernels.packing import packed_width
from comfyui_qvg.kernels.projective import Projection
from comfyui_qvg.kernels.rotary import Angles
from comfyui_qvg.kernels.spans import Place, Tiles
from comfyui_qvg.kernels.transcode import Keys8, Values8
from comfyui_qvg.qvg.positions.rope import GridRope, geometric_frequencies
from torch import Tensor

from ..helpers import assert_close
from ..triton_interpreter import DEVICE

Load = Callable[[str], ModuleType]
BATCH, HEADS, CHANNELS = 2, 3, 64
ROPE = GridRope(3, 4, (geometric_frequencies(4, 4, 60), geometric_frequencies(12, 3, 60), geometric_frequencies(16, 3, 60)))
# A tile of everything, one that begins and ends within spans, one within one span, of some heads.
TILES = ((0, 170, 0, 3), (50, 131, 1, 2), (100, 110, 2, 3))
# Bits, group size, stages, zero points.
KINDS = ((2, 64, 1, False), (3, 16, 2, False), (2, 32, 1, True), (4, 16, 0, True))


def _spans(kind: tuple[int, int, int, bool], seed: int) -> list[Codes]:
    """Of 72, 33 and 65 tokens; all bytes random, scales below infinity."""
    bits, group, stages, zeros = kind
    generator = torch.Generator().manual_seed(seed)

    def bytes_(*shape: int, high: int = 256) -> Tensor:
        return torch.randint(0, high, shape, dtype=torch.uint8, generator=generator)

    spans = []
    for tokens, clusters in ((72, 7), (33, 3), (65, 5)):
        codes, ids = (
            bytes_(BATCH, HEADS, tokens, packed_width(CHANNELS, bits)),
            bytes_(BATCH, HEADS, stages, tokens, high=clusters),
        )
        scales, zero_points = (bytes_(BATCH, HEADS, CHANNELS // group, tokens, high=70) for _ in range(2))
        centroids = torch.randn(BATCH, HEADS, stages, clusters, CHANNELS, generator=generator).half()
        spans.append(Codes(codes, scales, zero_points if zeros else None, ids, centroids, bits, group))
    return spans


def _table(kind: tuple[int, int, int, bool]) -> CodeTable:
    """With a hidden beginning."""
    return code_table(_spans(kind, 1), _spans(kind, 2), (Place(-8, 8), Place(64), Place(97)))


def _moved(table: CodeTable) -> CodeTable:
    def moved(span: Codes) -> Codes:
        return Codes(*(x.to(DEVICE) if isinstance(x, Tensor) else x for x in span))

    return code_table([moved(x) for x in table.keys], [moved(x) for x in table.values], table.places)


def _empty(start: int, stop: int, heads: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    keys, values = (torch.full((BATCH, heads, stop - start, CHANNELS), torch.nan, device=device) for _ in range(2))
    return keys, values


def _turns(kind: str, start: int, stop: int, device: str = "cpu") -> Angles | Projection | None:
    generator = torch.Generator().manual_seed(5)
    if kind == "rotated":
        return ROPE.angles((torch.randn(20, 3, generator=generator) * 9).to(device)).tokens(start, stop)
    if kind == "projected":
        return Projection(torch.randn(20, 4, 4, generator=generator).to(device), 12, apart=True).tokens(start, stop)
    return None


def _assert_same(name: str, expected: Tensor, got: Tensor, accuracy: float) -> None:
    assert torch.equal(expected.isnan(), got.cpu().isnan()), f"{name}: other places were written"
    assert_close(name, expected.nan_to_num(0), got.cpu().nan_to_num(0), accuracy)


def test_the_reference_is_decoding_span_by_span() -> None:
    table, start, stop = _table(KINDS[0]), 30, 150
    tiles = _empty(start, stop, HEADS)
    decode_code_spans(table, (0, 3), Tiles(*tiles, start), None, "torch")
    for side, tile in zip((table.keys, table.values), tiles, strict=True):
        whole = torch.full((BATCH, HEADS, 170, CHANNELS), torch.nan)
        for span, place in zip(side, table.places, strict=True):
            out = reconstruct(*span, torch.empty(BATCH, HEADS, span.num_tokens, CHANNELS))
            whole[:, :, place.first + place.skip : place.first + span.num_tokens] = out[:, :, place.skip :]
        assert torch.equal(whole[:, :, start:stop].nan_to_num(0), tile.nan_to_num(0))


@pytest.mark.parametrize("turns", ["plain", "rotated", "projected"])
@pytest.mark.parametrize(
    ("kind", "tile"), list(zip(KINDS, (*TILES, TILES[1]), strict=True)), ids=lambda one: "_".join(map(str, one))
)
def test_spans_of_codes_in_triton(
    triton_kernel: Load, kind: tuple[int, int, int, bool], tile: tuple[int, int, int, int], turns: str
) -> None:
    (start, stop, first, last), table = tile, _table(kind)
    expected, got = _empty(start, stop, last - first), _empty(start, stop, last - first, DEVICE)
    reference.decode_code_spans(table, (0, 3), Tiles(*expected, start, first), _turns(turns, start, stop))
    triton_kernel("code_spans").decode_code_spans(
        _moved(table), (0, 3), Tiles(*got, start, first), _turns(turns, start, stop, DEVICE)
    )
    for name, one, other in zip(("keys", "values"), expected, got, strict=True):
        _assert_same(name, one, other, 1e-6)


@pytest.mark.parametrize("side", [0, 1], ids=["keys", "values"])
def test_one_side_of_some_spans(triton_kernel: Load, side: int) -> None:
    table, start, stop = _table(KINDS[0]), 60, 150
    expected, got = _empty(start, stop, HEADS), _empty(start, stop, HEADS, DEVICE)
    reference.decode_code_spans(table, (1, 3), Tiles(*expected, start), None)
    wanted = [tile if which == side else None for which, tile in enumerate(got)]
    triton_kernel("code_spans").decode_code_spans(_moved(table), (1, 3), Tiles(wanted[0], wanted[1], start), None)
    _assert_same("side", expected[side], got[side], 1e-6)
    assert got[1 - side].isnan().all()


def _eight_bits(tokens: int, eight: bool, device: str = "cpu") -> tuple[Keys8, Values8]:
    """Filled with what nothing writes."""
    keys = torch.full((BATCH, HEADS, tokens, CHANNELS), 99, dtype=torch.int8, device=device)
    scales = torch.full((BATCH, HEADS, tokens), -1.0, device=device)
    if not eight:
        return Keys8(keys, scales), Values8(torch.full(keys.shape, -1.0, dtype=torch.float16, device=device), None)
    values = torch.full((BATCH, HEADS, CHANNELS, tokens), 0x7F, dtype=torch.uint8, device=device)
    return Keys8(keys, scales), Values8(values, torch.full((BATCH, HEADS, CHANNELS), 0.1, device=device))


def test_eight_bits_are_what_is_decoded_first() -> None:
    """Keys within half a step; tokens that no span of these holds stay as they are."""
    table, start, tokens = _table(KINDS[0]), 40, 120
    turns, common = _turns("rotated", start, start + tokens), torch.randn(BATCH, HEADS, CHANNELS)
    keys, values = _eight_bits(tokens, eight=True)
    transcode_code_spans(table, (1, 3), start, common, turns, keys, values, "torch")
    k, v = _empty(start, start + tokens, HEADS)
    decode_code_spans(table, (1, 3), Tiles(k, v, start), turns, "torch")
    there = k[0, 0].isfinite().all(-1)
    assert there.tolist() == [64 <= start + n < 162 for n in range(tokens)]
    assert bool((keys.scales[:, :, ~there] == -1).all()) and bool((values.values[..., ~there] == 0x7F).all())
    back = keys.values.float() * keys.scales[..., None] + common[:, :, None]
    assert bool(((back - k).abs() <= 0.5001 * keys.scales[..., None])[:, :, there].all())
    assert torch.equal(values.values[..., there], e4m3.encode((v / 0.1).transpose(2, 3))[..., there])


@pytest.mark.parametrize(("kind", "turns", "eight"), [(0, "rotated", True), (1, "projected", True), (2, "plain", False)])
def test_eight_bits_in_triton(triton_kernel: Load, kind: int, turns: str, eight: bool) -> None:
    """But for roundings that another order of the same steps in float32 tips over."""
    table, start, tokens = _table(KINDS[kind]), 40, 120
    common = torch.randn(BATCH, HEADS, CHANNELS, generator=torch.Generator().manual_seed(3))
    expected, got = _eight_bits(tokens, eight), _eight_bits(tokens, eight, DEVICE)
    own = (_turns(turns, start, start + tokens), _turns(turns, start, start + tokens, DEVICE))
    reference.transcode_code_spans(table, (0, 3), start, common, own[0], *expected)
    triton_kernel("code_spans").transcode_code_spans(_moved(table), (0, 3), start, common.to(DEVICE), own[1], *got)
    assert_close("scales", expected[0].scales, got[0].scales.cpu(), 1e-6)
    steps = (expected[0].values.int() - got[0].values.cpu().int()).abs()
    assert steps.max() <= 1 and steps.float().mean() < 1e-3
    assert (expected[1].values != got[1].values.cpu()).float().mean() < 1e-3


def test_spans_of_two_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="same bits, group size, stages and zero points"):
        code_table(_spans(KINDS[0], 1), _spans(KINDS[1], 2), (Place(0), Place(72), Place(105)))
