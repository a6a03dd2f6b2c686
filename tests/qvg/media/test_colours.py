"""Colours that are matched from block to block."""

from __future__ import annotations

import numpy as np
import pytest
from comfyui_qvg.qvg.media.colours import ColourMatch, to_lab, to_rgb


def test_lab_is_the_known_one_and_comes_back() -> None:
    known = {(1, 1, 1): (100, 0, 0), (0, 0, 0): (0, 0, 0), (1, 0, 0): (53.24, 80.09, 67.20), (0, 0, 1): (32.30, 79.19, -107.86)}
    for rgb, lab in known.items():
        assert to_lab(np.array(rgb, np.float64)) == pytest.approx(lab, abs=0.03)
    random = np.random.RandomState(0).rand(50, 3)
    assert np.abs(to_rgb(to_lab(random)) - random).max() < 1e-4


def test_a_drift_is_taken_back_to_the_block_before() -> None:
    random = np.random.RandomState(1)
    scene = 0.3 + 0.4 * random.rand(16, 16, 3)
    drifting = [np.clip(scene + 0.01 * number, 0, 1) for number in range(45)]
    match = ColourMatch(1.0)
    made = [match.matched(picture) for picture in drifting]
    means = [to_lab(picture).mean((0, 1))[0] for picture in made]
    assert max(means) - min(means) < 0.2 < to_lab(drifting[-1]).mean((0, 1))[0] - means[0]
    untouched = ColourMatch(0.0)
    assert all(np.allclose(untouched.matched(picture), picture, atol=1e-6) for picture in drifting)
    half = ColourMatch(0.5)
    assert np.allclose(half.matched(drifting[0]), drifting[0], atol=1e-4)  # the first one is its own reference


def test_references_are_the_last_pictures_of_blocks() -> None:
    """9 pictures, then 12 each: picture 9 is matched to 8, and 21 to 20."""
    random = np.random.RandomState(2)
    pictures = [0.2 + 0.1 * (number // 9) + 0.2 * random.rand(8, 8, 3) for number in range(22)]
    match = ColourMatch(1.0)
    made = [match.matched(picture) for picture in pictures]
    for picture, reference in ((8, 0), (9, 8), (20, 8), (21, 20)):
        assert to_lab(made[picture]).mean((0, 1)) == pytest.approx(to_lab(made[reference]).mean((0, 1)), abs=0.5)
