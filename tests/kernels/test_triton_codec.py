"""Every Triton kernel of the codecs against its reference: interpreted without a GPU, compiled with one.

Memory that nobody may read is poisoned: outputs start as NaN, and inputs are cut out of tensors that hold NaN or 255 around them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from comfyui_qvg.kernels import e4m3, packing
from comfyui_qvg.kernels.coefficients import reference as coefficients_reference
from comfyui_qvg.kernels.kmeans import reference as kmeans_reference
from comfyui_qvg.kernels.launch import GpuKind
from comfyui_qvg.kernels.reconstruct import reference as reconstruct_reference
from comfyui_qvg.kernels.residual import reference as residual_reference
from torch import Tensor

from ..helpers import assert_close
from ..triton_interpreter import DEVICE

Load = Callable[[str], ModuleType]

LENGTHS = (0, 1, 15, 16, 17, 255)
# Two bfloat16 parts of a float32 leave 2^-16 of it; products of two such leave at most three times that.
SPLIT_ERROR = 3 * 2.0**-16
# Rounding to an output type, by half of its epsilon at most, and the float32 arithmetic in another order.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
# float16 levels times float16 matrix: 2^-11 each at most, 4e-4 measured over the tensor (2026-11).
COEFFICIENT_ERROR = 6e-4


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed))


def _ids(*shape: int, below: int, seed: int = 1) -> Tensor:
    return torch.randint(0, below, shape, dtype=torch.uint8, generator=_generator(seed))


def _inside(x: Tensor, *axes: int) -> Tensor:
    """x with the same values on the device, cut out of a larger tensor whose other places hold NaN or 255."""
    shape = [size + 3 * (axis in axes) for axis, size in enumerate(x.shape)]
    poison = torch.nan if x.is_floating_point() else 255
    whole = torch.full(shape, poison, dtype=x.dtype, device=DEVICE)
    part = whole[tuple(slice(2, 2 + size) if axis in axes else slice(None) for axis, size in enumerate(x.shape))]
    part.copy_(x)
    return part


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def _far(x: Tensor) -> Tensor:
    """x [1, 1, S, D] on the device with 2^25 places from token to token, so that offsets pass 2^31 and strides stay below.

    Only the pages in use become memory.
    """
    stride = 1 << 25
    whole = torch.empty((x.shape[2] - 1) * stride + x.shape[3], dtype=x.dtype, device=DEVICE)
    part = whole.as_strided(x.shape, (stride, stride, stride, 1))
    return part.copy_(x)


# ------------------------------------------------------------------------------------------------------------------------ k-means


def _assert_nearest(x: Tensor, centroids: Tensor, ids: Tensor, accuracy: float) -> None:
    """Every id's centroid is the nearest, up to `accuracy` of |x| |c| in half the squared distance."""
    x, centroids = x.double(), centroids.double()
    halves = centroids.square().sum(-1)[:, :, None] / 2 - x @ centroids.transpose(2, 3)
    chosen = torch.gather(halves, 3, ids.long()[..., None])[..., 0]
    slack = accuracy * x.norm(dim=-1) * centroids.norm(dim=-1).amax(-1)[..., None]
    assert (chosen <= halves.amin(-1) + slack).all()


@pytest.mark.parametrize("tokens", LENGTHS, ids=lambda s: f"{s}_tokens")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_assign_is_the_nearest(triton_kernel: Load, dtype: torch.dtype, tokens: int) -> None:
    """Of 5, 64, 100 and 256 centroids (a part of a tile, a tile, and several)."""
    kernels = triton_kernel("kmeans")
    clusters = {0: 5, 1: 5, 15: 64, 16: 100, 17: 100, 255: 256}[tokens]
    x, centroids = _randn(1, 2, tokens, 64).to(dtype), _randn(1, 2, clusters, 64, seed=1)
    ids = kernels.assign_clusters(_inside(x, 1, 2, 3), _inside(centroids, 1, 2)).cpu()
    assert ids.dtype == torch.uint8 and ids.shape == x.shape[:3]
    if tokens:
        _assert_nearest(x, centroids, ids, SPLIT_ERROR)
        same = (ids == kmeans_reference.assign_clusters(x, centroids)).float().mean()
        assert same >= 0.99


@pytest.mark.parametrize("channels", [128, 256], ids=lambda d: f"head_dim_{d}")
def test_assign_wide_heads(triton_kernel: Load, channels: int) -> None:
    x, centroids = _randn(1, 1, 70, channels), _randn(1, 1, 70, channels, seed=1)
    ids = triton_kernel("kmeans").assign_clusters(x.to(DEVICE), centroids.to(DEVICE)).cpu()
    _assert_nearest(x, centroids, ids, SPLIT_ERROR)


def test_a_tie_goes_to_the_lower_id(triton_kernel: Load) -> None:
    """Equal centroids inside a tile and across tiles. Whole numbers: their sums are exact in any order, so ties are ties."""
    assign = triton_kernel("kmeans").assign_clusters
    centroids = (_randn(1, 1, 1, 64) * 4).round().repeat(1, 1, 130, 1)
    x = (_randn(1, 1, 20, 64, seed=1) * 4).round()
    assert not assign(x.to(DEVICE), centroids.to(DEVICE)).any()
    centroids[:, :, 3:] = -x[:, :, :1]
    centroids[:, :, 100] = centroids[:, :, 120] = x[:, :, 0]
    assert int(assign(x[:, :, :1].to(DEVICE), centroids.to(DEVICE))) == 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 17, 255, 5000], ids=lambda s: f"{s}_tokens")
def test_update_is_the_mean(triton_kernel: Load, tokens: int, dtype: torch.dtype) -> None:
    """Also over more tokens than one program adds up; an empty cluster keeps its centroid to the bit."""
    kernels = triton_kernel("kmeans")
    heads, clusters = (1, 100) if tokens > 1000 else (2, 9)
    x, centroids = _randn(1, heads, tokens, 64).to(dtype), _randn(1, heads, clusters, 64, seed=1)
    ids = _ids(1, heads, tokens, below=clusters)
    ids[ids == 3] = 4
    inputs = _inside(x, 1, 2, 3), _inside(ids, 1, 2), _inside(centroids, 1, 2)
    updated = kernels.update_centroids(*inputs).cpu()
    assert torch.equal(updated[:, :, 3], centroids[:, :, 3])
    expected = kmeans_reference.update_centroids(x, ids, centroids)
    assert torch.allclose(updated, expected, atol=SPLIT_ERROR * float(x.abs().max()) if tokens else 0)
    assert torch.equal(updated, kernels.update_centroids(*inputs).cpu()), "two runs differ"


@pytest.mark.parametrize("tokens", [0, 1, 65], ids=lambda s: f"{s}_tokens")
def test_subtract_is_the_references(triton_kernel: Load, tokens: int) -> None:
    x, centroids = _randn(2, 2, tokens, 64).bfloat16(), _randn(2, 2, 7, 64, seed=1).half()
    ids = _ids(2, 2, tokens, below=7)
    out = triton_kernel("kmeans").subtract_centroids(_inside(x, 0, 1, 2, 3), _inside(ids, 1, 2), _inside(centroids, 1, 2, 3))
    assert torch.equal(out.cpu(), kmeans_reference.subtract_centroids(x, ids, centroids))


# ----------------------------------------------------------------------------------------------------------- groups of a residual


def _groups(tokens: int, stages: int, channels: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Values whose groups reach from E4M3's smallest scales to beyond its largest, one group of zeros, and their clustering."""
    x = _randn(1, 2, tokens, channels, seed=seed) * torch.exp2(
        20 * torch.rand(1, 2, tokens, 1, generator=_generator(seed + 1)) - 11
    )
    x[:, :, ::7, :16] = 0
    centroids = _randn(1, 2, stages, 5, channels, seed=seed + 2).half()
    centroids[:, :, :, 0] = 0
    ids = _ids(1, 2, stages, tokens, below=5)
    ids[..., ::7] = 0
    return x, ids, centroids


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", packing.BITS, ids=lambda b: f"{b}_bits")
@pytest.mark.parametrize(
    ("tokens", "stages", "channels", "group_size"),
    [(0, 1, 64, 16), (1, 4, 64, 16), (15, 0, 128, 128), (17, 2, 128, 32), (33, 1, 128, 64), (17, 3, 256, 64)],
)
def test_groups_are_the_references_bytes(
    triton_kernel: Load, tokens: int, stages: int, channels: int, group_size: int, bits: int, symmetric: bool
) -> None:
    x, ids, centroids = _groups(tokens, stages, channels)
    inputs = _inside(x, 1, 2, 3), _inside(ids, 1, 3), _inside(centroids, 1, 3)
    found = triton_kernel("residual").quantize_groups(*inputs, bits, group_size, symmetric)
    wanted = residual_reference.quantize_groups(x, ids, centroids, bits, group_size, symmetric)
    for name, part, other in zip(("codes", "scales", "zero points"), found, wanted, strict=True):
        assert (part is None) == (other is None)
        assert part is None or torch.equal(part.cpu(), other), name


def test_every_e4m3_byte_and_every_rounding(triton_kernel: Load) -> None:
    """One value per group is its own zero point: all that `e4m3.encode` can be asked, ties included."""
    decoded = e4m3.decode(torch.arange(127, dtype=torch.uint8))
    middles = (decoded[1:] + decoded[:-1]) / 2
    x = torch.cat([decoded, middles, middles * (1 + 1e-6), middles * (1 - 1e-6), torch.tensor([464.0, 1e4, 1e-5])])
    x = torch.cat([x, -x]).view(1, 1, -1, 1).repeat(1, 1, 1, 64)
    tokens = x.shape[2]
    none = torch.zeros(1, 1, 0, tokens, dtype=torch.uint8), torch.zeros(1, 1, 0, 1, 64)
    found = triton_kernel("residual").quantize_groups(x.to(DEVICE), *(part.to(DEVICE) for part in none), 2, 64, False)
    wanted = residual_reference.quantize_groups(x, *none, 2, 64, False)
    assert torch.equal(found[2].cpu(), wanted[2])  # type: ignore[arg-type]
    assert torch.equal(found[2].cpu().view(-1), e4m3.encode(x[0, 0, :, 0]))


def _rotation(tokens: int, channels: int) -> tuple[Tensor, Tensor]:
    angles = _randn(tokens, channels // 2, seed=9) * 3
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", packing.BITS, ids=lambda b: f"{b}_bits")
@pytest.mark.parametrize(
    ("tokens", "stages", "channels", "group_size", "dtype"),
    [
        (0, 1, 64, 16, torch.float32),
        (1, 4, 64, 16, torch.bfloat16),
        (15, 0, 128, 128, torch.float16),
        (17, 2, 128, 32, torch.float32),
        (65, 1, 128, 64, torch.bfloat16),
        (16, 3, 256, 16, torch.float16),
    ],
)
def test_reconstruction_is_the_references(
    triton_kernel: Load, tokens: int, stages: int, channels: int, group_size: int, dtype: torch.dtype, bits: int,
    symmetric: bool, rotated: bool,
) -> None:  # fmt: skip
    """Tokens and heads cut out of a span, written into a slice of a larger tensor that keeps the rest."""
    x, ids, centroids = _groups(tokens, stages, channels)
    x = x.clamp(-50, 50)  # what float16 can hold after a sum of stages
    codes, scales, zeros = residual_reference.quantize_groups(x, ids, centroids, bits, group_size, symmetric)
    rotation = _rotation(tokens, channels) if rotated else None
    exact = torch.full(x.shape, torch.nan)
    reconstruct_reference.reconstruct(codes, scales, zeros, ids, centroids, bits, group_size, exact, rotation)
    whole = _empty(1, 3, tokens + 4, channels + 5, dtype=dtype)
    out = whole[:, 1:, 2 : 2 + tokens, 3 : 3 + channels]
    inputs = _inside(codes, 1, 2), _inside(scales, 1, 3), None if zeros is None else _inside(zeros, 1, 3)
    angles = None if rotation is None else tuple(_inside(part, 0) for part in rotation)
    result = triton_kernel("reconstruct").reconstruct(
        *inputs, _inside(ids, 1, 3), _inside(centroids, 1, 3), bits, group_size, out, angles
    )
    assert result is out
    if tokens:
        assert_close("reconstructed", exact, out.cpu(), ROUNDING[dtype])
    assert int(whole.isnan().sum()) == whole.numel() - out.numel(), "written outside the slice"


def test_reconstruction_into_transposed_memory(triton_kernel: Load) -> None:
    """Values are wanted as [B, H, D, S] by some attentions: the last stride of the output is not 1."""
    x, ids, centroids = _groups(40, 1, 64)
    parts = residual_reference.quantize_groups(x, ids, centroids, 2, 64, True)
    exact = reconstruct_reference.reconstruct(*parts, ids, centroids, 2, 64, torch.empty_like(x), None)
    out = _empty(1, 2, 64, 40).transpose(2, 3)
    inputs = (None if part is None else part.to(DEVICE) for part in parts)
    triton_kernel("reconstruct").reconstruct(*inputs, ids.to(DEVICE), centroids.to(DEVICE), 2, 64, out, None)
    assert_close("transposed", exact, out.cpu(), ROUNDING[torch.float32])


# ---------------------------------------------------------------------------------------------------- coefficients of a transform


PLANES = {
    "one_bit": (64,),
    "two_bits": (64, 64),
    "mixed": (56, 40, 16, 8),
    "six_bits": (64, 64, 56, 32, 24, 8),
}


@pytest.mark.parametrize("tokens", [0, 1, 17, 255], ids=lambda s: f"{s}_tokens")
@pytest.mark.parametrize("planes", PLANES.values(), ids=PLANES.keys())
def test_coefficients_are_the_references(triton_kernel: Load, planes: tuple[int, ...], tokens: int) -> None:
    """Sums in another order: at most one gain in a hundred is another E4M3 neighbour; where gains agree, so do all codes but one
    in ten thousand, which lie on a border."""
    y = _randn(1, 2, tokens, 64) * torch.exp2(18 * torch.rand(1, 2, tokens, 1, generator=_generator(5)) - 15)
    y[:, :, 3:4] = 0
    weights = _randn(1, 2, 64, seed=2).square() + 0.01
    codes, gains = (part.cpu() for part in triton_kernel("coefficients").quantize_coefficients(
        _inside(y, 1, 2, 3), _inside(weights, 1, 2), planes
    ))  # fmt: skip
    wanted_codes, wanted_gains = coefficients_reference.quantize_coefficients(y, weights, planes)
    assert codes.shape == wanted_codes.shape and gains.shape == wanted_gains.shape
    if tokens:
        other = gains != wanted_gains
        assert float(other.float().mean()) <= 0.01
        assert int((gains.int() - wanted_gains.int()).abs().max()) <= 1
        assert float((codes != wanted_codes)[~other].float().mean()) <= 1e-4


@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
@pytest.mark.parametrize(
    ("tokens", "channels", "planes", "dtype"),
    [
        (0, 64, (64, 64), torch.float32),
        (1, 64, (56, 40, 16, 8), torch.float32),
        (17, 128, (128, 88, 24), torch.bfloat16),
        (65, 128, (40, 8), torch.float16),
        (255, 64, (64, 64, 56, 32, 24, 8), torch.float32),
        (33, 256, (256, 200, 64), torch.float32),
    ],
)
def test_coefficients_come_back(
    triton_kernel: Load, tokens: int, channels: int, planes: tuple[int, ...], dtype: torch.dtype, rotated: bool
) -> None:
    y, codewords = _randn(1, 2, tokens, channels), _randn(1, 2, 9, channels, seed=1) * 4
    matrix, ids = _randn(1, 2, channels, channels, seed=2) * 0.2, _ids(1, 2, tokens, below=9)
    parts = coefficients_reference.quantize_coefficients(y, torch.ones(1, 2, channels), planes)
    rotation = _rotation(tokens, channels) if rotated else None
    exact = torch.full(y.shape, torch.nan)
    coefficients_reference.reconstruct_coefficients(*parts, ids, codewords, matrix, planes, exact, rotation)
    whole = _empty(1, 3, tokens + 4, channels + 5, dtype=dtype)
    out = whole[:, 1:, 2 : 2 + tokens, 3 : 3 + channels]
    angles = None if rotation is None else tuple(_inside(part, 0) for part in rotation)
    triton_kernel("coefficients").reconstruct_coefficients(
        _inside(parts[0], 1, 2), _inside(parts[1], 1, 2), _inside(ids, 1, 2), _inside(codewords, 1, 2), _inside(matrix, 1),
        planes, out, angles,
    )  # fmt: skip
    if tokens:
        assert_close("coefficients", exact, out.cpu(), COEFFICIENT_ERROR + ROUNDING[dtype])
    assert int(whole.isnan().sum()) == whole.numel() - out.numel(), "written outside the slice"


@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_smaller_tiles_of_rdna_cards(
    triton_kernel: Load, dtype: torch.dtype, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards with 256 registers for a lane get other tiles, and the same results."""
    kmeans, coefficients = triton_kernel("kmeans"), triton_kernel("coefficients")
    for module in (kmeans, coefficients):
        monkeypatch.setattr(module, "gpu_kind", lambda device: GpuKind(amd=True, lanes=32))
    x, centroids = _randn(1, 2, 150, channels).to(dtype), _randn(1, 2, 70, channels, seed=1)
    ids = kmeans.assign_clusters(x.to(DEVICE), centroids.to(DEVICE)).cpu()
    _assert_nearest(x, centroids, ids, SPLIT_ERROR)
    updated = kmeans.update_centroids(x.to(DEVICE), ids.to(DEVICE), centroids.to(DEVICE)).cpu()
    expected = kmeans_reference.update_centroids(x, ids, centroids)
    assert torch.allclose(updated, expected, atol=SPLIT_ERROR * float(x.abs().max()))
    planes, matrix, rotation = (channels - 8, 40, 8), _randn(1, 2, channels, channels, seed=2) * 0.2, _rotation(150, channels)
    parts = coefficients_reference.quantize_coefficients(x.float(), torch.ones(1, 2, channels), planes)
    exact = torch.full(x.shape, torch.nan)
    coefficients_reference.reconstruct_coefficients(*parts, ids, centroids, matrix, planes, exact, rotation)
    inputs, angles = [part.to(DEVICE) for part in (*parts, ids, centroids, matrix)], tuple(part.to(DEVICE) for part in rotation)
    out = coefficients.reconstruct_coefficients(*inputs, planes, _empty(*x.shape, dtype=dtype), angles)
    assert_close("coefficients", exact, out.cpu(), COEFFICIENT_ERROR + ROUNDING[dtype])


# ------------------------------------------------------------------------------------------------------------------ far addresses


def test_offsets_beyond_int32(triton_kernel: Load) -> None:
    """70 tokens, 2^25 places apart: every op reads or writes beyond 2^31 places, with strides that are 32-bit integers."""
    x, codewords, ids = _randn(1, 1, 70, 64).half(), _randn(1, 1, 5, 64, seed=1).half(), _ids(1, 1, 70, below=5)
    far = _far(x)
    assert far.stride(2) * 69 > 2**31
    kmeans, near = triton_kernel("kmeans"), (ids.to(DEVICE), codewords.to(DEVICE))
    assert torch.equal(kmeans.assign_clusters(far, near[1]), kmeans.assign_clusters(x.to(DEVICE), near[1]))
    assert torch.equal(kmeans.update_centroids(far, *near), kmeans.update_centroids(x.to(DEVICE), *near))
    assert torch.equal(kmeans.subtract_centroids(far, *near), kmeans.subtract_centroids(x.to(DEVICE), *near))
    staged = ids[:, :, None].to(DEVICE), codewords[:, :, None].to(DEVICE)
    groups = triton_kernel("residual").quantize_groups(far, *staged, 2, 32, True)
    assert torch.equal(groups[0].cpu(), residual_reference.quantize_groups(x, *(p.cpu() for p in staged), 2, 32, True)[0])
    there = _far(torch.zeros_like(x))
    codes = _far(groups[0].cpu())
    triton_kernel("reconstruct").reconstruct(codes, groups[1], None, *staged, 2, 32, there, None)
    here = triton_kernel("reconstruct").reconstruct(*groups, *staged, 2, 32, torch.empty_like(x, device=DEVICE), None)
    assert torch.equal(there, here)
    kernels, planes, weights = triton_kernel("coefficients"), (64, 40), torch.ones(1, 1, 64, device=DEVICE)
    parts = kernels.quantize_coefficients(far, weights, planes)
    assert torch.equal(parts[0], kernels.quantize_coefficients(x.to(DEVICE), weights, planes)[0])
    matrix = torch.eye(64, device=DEVICE)[None, None]
    rest = (parts[1], ids.to(DEVICE), codewords.to(DEVICE), matrix, planes)
    kernels.reconstruct_coefficients(_far(parts[0].cpu()), *rest, there, None)
    assert torch.equal(there, kernels.reconstruct_coefficients(parts[0], *rest, torch.empty_like(x, device=DEVICE), None))
