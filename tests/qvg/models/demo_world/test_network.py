"""The shipped model: it needs its memory, keeps its world, ranks codecs, and refuses a damaged file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_qvg.qvg import KVCache, QVGConfig, UnsupportedModelError
from comfyui_qvg.qvg.camera import visits
from comfyui_qvg.qvg.demo.memories import EXACT, QUANTIZED
from comfyui_qvg.qvg.demo.summary import pooled_psnr_db, revisit_psnr_db
from comfyui_qvg.qvg.demo.walk import GIVEN_FRAMES, Picture, Walk, plan_walk, settings
from comfyui_qvg.qvg.demo.walk import picture as picture_of
from comfyui_qvg.qvg.models.demo_world import WEIGHTS, DemoWorld, DemoWorldDenoiser, load_demo_world
from comfyui_qvg.qvg.models.demo_world.painted_map import JUDGED, TRAINING, paint
from comfyui_qvg.qvg.sampling import generate
from safetensors import safe_open
from safetensors.torch import save_file

FRAMES = 156
PATH = "d-14,s-11,a-14,w-11"  # 50 frames: three times around and a little more


@pytest.fixture(scope="module")
def model() -> DemoWorld:
    return load_demo_world()


def _walk(model: DemoWorld, plan: Walk, config: QVGConfig, forget_after: int | None = None) -> list[Picture]:
    frames = []
    with KVCache(model.config.cache_spec(), config, model.config.rope()) as cache:
        for block in generate(DemoWorldDenoiser(model), cache, plan.origins, settings(plan.seed), plan.given(model)):
            frames.append(picture_of(block.latent))
            if forget_after is not None and block.index >= forget_after:
                cache.reset()
    return frames


@pytest.fixture(scope="module")
def plan() -> Walk:
    return plan_walk(PATH, FRAMES, seed=11)


@pytest.fixture(scope="module")
def exact(model: DemoWorld, plan: Walk) -> list[Picture]:
    return _walk(model, plan, EXACT)


def test_comes_back_to_the_same_place(plan: Walk, exact: list[Picture]) -> None:
    """At least 30 dB between visits over 150 frames and more, the second half no worse than the first."""
    pairs = visits(plan.positions, 12)
    assert len(pairs) >= 100
    early, late = (revisit_psnr_db(exact, part) for part in (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]))
    assert early is not None and late is not None and min(early, late) >= 30.0, (early, late)
    assert late > early - 3.0, "the picture decays"


def test_does_not_fade(exact: list[Picture]) -> None:
    """Contrast of the last lap against the first: a memory that decays turns grey."""
    first, last = (np.stack(part).astype(float).std(axis=(1, 2)).mean() for part in (exact[4:54], exact[104:154]))
    assert 0.9 < last / first < 1.1


def test_needs_its_memory(model: DemoWorld, plan: Walk) -> None:
    """The same walk with the cache emptied from frame 8 on: below 18 dB."""
    pairs = visits(plan.positions, 12)
    forgetful = revisit_psnr_db(_walk(model, plan, EXACT, forget_after=8), pairs)
    assert forgetful is not None and forgetful < 18.0


def test_two_bits_walk_back_into_it(model: DemoWorld, plan: Walk, exact: list[Picture]) -> None:
    """Two bits stay close to the exact run, and four bits closer: the world ranks codecs."""
    short = Walk(plan.seed, plan.positions[:100])
    two_bits = _walk(model, short, QUANTIZED)
    four_bits = _walk(model, short, QUANTIZED.with_changes(bits=4))
    scores = [pooled_psnr_db(exact[GIVEN_FRAMES:100], frames[GIVEN_FRAMES:]) for frames in (two_bits, four_bits)]
    assert scores[0] is not None and scores[1] is not None
    assert scores[0] >= 28.0 and scores[1] >= scores[0] + 6.0, scores


def test_size_and_metadata() -> None:
    assert WEIGHTS.stat().st_size <= 12_000_000
    with safe_open(WEIGHTS, "pt") as file:
        training = json.loads(file.metadata()["training"])
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118 (not a dict)
    assert training["step"] == training["steps"] and training["seed"] == 0


def test_shape_is_that_of_real_models(model: DemoWorld) -> None:
    assert model.config.head_dim == 128 and model.config.picture_pixels >= 64 and model.config.tokens_per_frame <= 64


def test_worlds_are_reproducible_and_domains_apart() -> None:
    assert np.array_equal(paint(3, JUDGED), paint(3, JUDGED))
    assert not np.array_equal(paint(3, JUDGED), paint(3, TRAINING))
    assert paint(0).shape == (320, 320, 3) and paint(0).min() >= 0 and paint(0).max() <= 1


def test_missing_damaged_and_foreign_weights(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="is not there"):
        load_demo_world(tmp_path / "none.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(WEIGHTS.read_bytes()[:100_000])
    with pytest.raises(UnsupportedModelError, match="cannot be read"):
        load_demo_world(damaged)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(UnsupportedModelError, match="is not a demo world"):
        load_demo_world(foreign)


def _without_a_weight(state: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    del state["blocks.2.qkv.weight"]


def _with_a_strange_weight(state: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    state["blocks.2.attn.weight"] = torch.zeros(3)


def _with_a_misshapen_weight(state: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    state["patch_in.bias"] = torch.zeros(3)


def _with_another_config(state: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    metadata["config"] = json.dumps({"colour": 1})


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_without_a_weight, r"lacks the weight 'blocks\.2\.qkv\.weight'"),
        (_with_a_strange_weight, r"holds 'blocks\.2\.attn\.weight', which is no weight"),
        (_with_a_misshapen_weight, r"holds 'patch_in\.bias' in shape \[3\] instead of \[256\]"),
        (_with_another_config, "does not say what shape its model has"),
    ],
)
def test_weights_with_wrong_keys_are_named(
    tmp_path: Path, damage: Callable[[dict[str, torch.Tensor], dict[str, str]], None], complaint: str
) -> None:
    with safe_open(WEIGHTS, "pt") as file:
        metadata, state = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    damage(state, metadata)
    save_file(state, tmp_path / "changed.safetensors", metadata)
    with pytest.raises(UnsupportedModelError, match=f"changed.safetensors {complaint}.*; restore it"):
        load_demo_world(tmp_path / "changed.safetensors")
