"""Quant VideoGen's protocol as a target of `qvg study`, on tiny random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from comfyui_qvg.qvg import ConfigError
from comfyui_qvg.qvg.harness.choices import choices
from comfyui_qvg.qvg.harness.longcat_target import FRAMES, LongCatTarget
from comfyui_qvg.qvg.harness.phases import PhaseWatch
from comfyui_qvg.qvg.harness.plan import Case
from comfyui_qvg.qvg.harness.videos import Video, closeness
from comfyui_qvg.qvg.models.longcat import LongCatConfig
from comfyui_qvg.qvg.models.longcat.memory import condition_config
from safetensors.torch import save_file

from ... import golden_longcat as given

CASE = Case("longcat", "a lake", 3, 29)
SMALL = {"width": 96, "height": 96, "steps": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("longcat") / "longcat.safetensors"
    save_file(given.weights(), file)
    return str(file)


def _make(target: LongCatTarget, method: str) -> Video:
    with PhaseWatch(target.device) as watch:
        video = target.make(CASE, choices()[method], watch)
    assert watch.seconds["denoise"] > 0
    return video


def test_two_segments_by_three_methods(weights: str) -> None:
    target = LongCatTarget({"weights": weights, "distilled": True, **SMALL})
    target.check(CASE)
    exact, near, few = (_make(target, method) for method in ("exact", "near-exact", "fewest-bytes"))
    assert exact.pictures.shape == (29, 12, 12, 3) and exact.given_frames == FRAMES.condition_latents == 19
    spec = LongCatConfig.of(given.weights()).condition_spec(12, 12, 19)
    for method, video in (("near-exact", near), ("fewest-bytes", few)):
        config = condition_config(choices()[method].settings, 19)  # type: ignore[arg-type]
        assert sum(video.components.values()) == video.peak_cache_bytes == spec.predict(config, 19).total
        assert video.exact_bytes == spec.exact_bytes(19) and len(video.cache_bytes) == 29
        assert (video.pictures[:19] == exact.pictures[:19]).all() and (video.pictures[19:] != exact.pictures[19:]).any()
    apart = [closeness(exact.pictures, video.pictures, 19, 5)["psnr_db"] for video in (near, few)]
    assert apart[0]["first_frame"] > apart[1]["first_frame"] > 10 and apart[0]["all"] > apart[1]["all"] > 10
    assert _make(target, "near-exact").latents_digest == near.latents_digest


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": "nowhere.safetensors"}, "73 condition pictures"),
        ({"width": 100}, "width is 100, but must be a multiple of 16"),
        ({"steps": 0}, "steps is 0"),
        ({"distilled": 1}, "true or false"),
        ({"distilled": True, "steps": 51}, "the distilled model has no more"),
    ],
)
def test_what_cannot_be_is_one_sentence(weights: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LongCatTarget({"weights": weights, **options})


def test_lengths_methods_and_other_models_are_refused(weights: str, tmp_path: Path) -> None:
    target = LongCatTarget({"weights": weights, **SMALL})
    for frames in (19, 23, 25):
        with pytest.raises(ConfigError, match="use 24, 29"):
            target.check(Case("longcat", "a", 0, frames))
    with pytest.raises(ConfigError, match="in one span; leave it out"):
        _make(target, "AGE_TIER_INT2")
