"""Blocks of a video with given frames, and the noise of each."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg import ConfigError
from comfyui_qvg.qvg.models.wan.variants import VARIANTS
from comfyui_qvg.qvg.sampling import NoiseLevels, RenoiseSchedule, Renoising, place_blocks

LEVELS = (1.0, 0.75, 0.5, 0.0)


@pytest.mark.parametrize(
    ("frames", "given", "per_block", "sizes", "noise"),
    [
        (7, 0, 3, [3, 3, 1], [0, 1, 2]),
        (3, 0, 1, [1, 1, 1], [0, 1, 2]),
        (2, 0, 3, [2], [0]),
        (8, 1, 3, [1, 3, 3, 1], [None, 0, 1, 2]),  # a start image is no block of its own to core's noise
        (4, 1, 1, [1, 1, 1, 1], [None, 0, 1, 2]),
        (10, 6, 3, [3, 3, 3, 1], [None, None, 2, 3]),  # goes on as it would have gone on
        (10, 7, 3, [1, 3, 3, 3], [None, None, None, 2]),  # of a video that began with an image
        (6, 5, 3, [2, 3, 1], [None, None, 1]),
        (5, 3, 1, [1] * 5, [None, None, None, 3, 4]),
    ],
)
def test_blocks(frames: int, given: int, per_block: int, sizes: list[int], noise: list[int | None]) -> None:
    places = place_blocks(frames, given, per_block)
    assert [place.frames for place in places] == sizes and [place.index for place in places] == list(range(len(sizes)))
    assert [place.first_frame for place in places] == [sum(sizes[:at]) for at in range(len(sizes))]
    assert [None if place.given else place.noise_index for place in places] == noise


def test_a_start_has_no_numbers_as_core_gives_it_none() -> None:
    """ComfyUI's own sampler counts the blocks that it makes."""
    for given in (1, 3, 36, 37):
        places = place_blocks(given + 6, given, 3, is_start=True)
        assert [place.noise_index for place in places if not place.given] == [0, 1]


def schedule(frames: int, given: int, levels: NoiseLevels, seed: int = 77) -> RenoiseSchedule:
    start = torch.randn(2, 4, frames, 6, 5, generator=torch.Generator().manual_seed(0))
    return RenoiseSchedule(levels, place_blocks(frames, given, 3), start, seed)


def test_noise_is_core_s_and_its_dice_are_private() -> None:
    """ComfyUI: torch.manual_seed(seed + block * 1000 + step), randn_like."""
    made = schedule(15, 0, NoiseLevels(LEVELS))
    assert isinstance(made, Renoising)
    torch.manual_seed(0)
    state, shape = torch.get_rng_state(), (2, 4, 3, 6, 5)
    ours = made.fresh_noise(4, 2, shape)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77 + 4 * 1000 + 1)
    assert torch.equal(ours, torch.randn_like(torch.zeros(shape)))
    assert schedule(15, 0, NoiseLevels(LEVELS), (1 << 64) - 1).fresh_noise(4, 2, shape).isfinite().all(), "beyond 64 bits"


def test_each_block_begins_in_its_part_of_the_noise() -> None:
    made = schedule(8, 1, NoiseLevels((1.0, 0.0), (1.0, 0.5, 0.0)))
    assert [made.noise_levels(block) for block in range(4)] == [[], [1.0, 0.5, 0.0], [1.0, 0.0], [1.0, 0.0]]
    assert torch.equal(made.noise(2, (2, 4, 3, 6, 5)), made.start[:, :, 4:7])
    assert made.noise(3, (2, 4, 1, 6, 5)).shape == (2, 4, 1, 6, 5)


@pytest.mark.parametrize(
    ("levels", "first", "sentence"),
    [
        ((1.0, 0.5), None, "sigmas are 1, 0.5, but must fall from step to step, from at most 1 to 0"),
        ((), None, "sigmas are empty"),
        ((0.0,), None, "sigmas are 0, but"),
        ((1.0, 1.0, 0.0), None, "sigmas are 1, 1, 0, but"),
        ((14.6, 3.0, 0.0), None, "sigmas are 14.6, 3, 0, but"),
        ((1.0, float("nan"), 0.0), None, "sigmas are 1, nan, 0, but"),
        (LEVELS, (0.5, 1.0, 0.0), "first_block_sigmas are 0.5, 1, 0, but"),
        (LEVELS, (0.9, 0.0), "first_block_sigmas begin at 0.9 and sigmas at 1, but all blocks begin in one noise"),
    ],
)
def test_levels_that_cannot_work(levels: tuple[float, ...], first: tuple[float, ...] | None, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        NoiseLevels(levels, first)


def test_every_variant_has_levels_that_work() -> None:
    for variant in VARIANTS.values():
        levels = NoiseLevels(variant.sigmas, variant.first_block_sigmas)
        first, second, *_ = place_blocks(9, 0, variant.frames_per_block)
        assert levels.of(second) == variant.sigmas
        assert levels.of(first) == (variant.first_block_sigmas or variant.sigmas)
