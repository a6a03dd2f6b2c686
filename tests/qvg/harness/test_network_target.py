"""The library's networks as a target of `qvg study`, on a trained checkpoint: the demo film's file, a causal Wan's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_qvg.qvg import ConfigError
from comfyui_qvg.qvg.harness.choices import choices
from comfyui_qvg.qvg.harness.network_target import FILM_REMARK, NetworkTarget
from comfyui_qvg.qvg.harness.phases import PhaseWatch
from comfyui_qvg.qvg.harness.plan import Case
from comfyui_qvg.qvg.harness.videos import Video, closeness
from comfyui_qvg.qvg.models.demo_film.directions import DIRECTIONS
from comfyui_qvg.qvg.models.demo_film.weights import CONFIG, WEIGHTS

CASE = Case("network", DIRECTIONS[0].text, 3, 6)


@pytest.fixture(scope="module")
def target() -> NetworkTarget:
    return NetworkTarget({"weights": str(WEIGHTS), "family": "demo-film"})


def make(target: NetworkTarget, method: str, case: Case = CASE) -> Video:
    with PhaseWatch(target.device) as watch:
        return target.make(case, choices()[method], watch)


def test_a_trained_checkpoint_by_three_methods(target: NetworkTarget) -> None:
    target.check(CASE)
    exact, near, far = (make(target, method) for method in ("exact", "PRQ_INT4", "RTN_INT2"))
    assert exact.pictures.shape == (6, 16, 16, 3) and exact.given_frames == 0 and exact.remarks == [FILM_REMARK]
    spec = CONFIG.cache_spec(16, 16, 3)
    assert exact.exact_bytes == spec.exact_bytes(6) and sum(near.components.values()) < 0.65 * exact.exact_bytes
    apart = [closeness(exact.pictures, video.pictures, 0, 3)["psnr_db"]["all"] for video in (near, far)]
    # Trained weights: what keeps more is nearer, and the first block, made without a memory, is the same.
    assert apart[0] > apart[1] + 3 and all((video.pictures[:3] == exact.pictures[:3]).all() for video in (near, far))
    # Another prompt is another video: prompts are read, not drawn from letters.
    other = make(target, "exact", Case("network", DIRECTIONS[-1].text, 3, 3))
    assert np.abs(other.pictures[:3].astype(int) - exact.pictures[:3]).mean() > 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"width": 256, "height": 128}, "the size is 256 x 128, but the demo film makes videos of 128 x 128 alone"),
        ({"family": "causal-wan"}, "is of family demo-film, but the plan says 'causal-wan'"),
        ({"weights": "nowhere.safetensors"}, "a network needs a checkpoint's file"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        NetworkTarget({"weights": str(WEIGHTS), **options})


def test_prompts_and_lengths_of_the_film(target: NetworkTarget, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompt 'a lake' is none of the demo film's; use some of"):
        target.check(Case("network", "a lake", 3, 9))
    with pytest.raises(ConfigError, match="frames is 8, but this model makes blocks of 3"):
        target.check(Case("network", DIRECTIONS[0].text, 3, 8))
