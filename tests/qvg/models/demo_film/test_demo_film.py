"""The demo film: its rules, its pictures, its file, its films; and that training shows the network what the sampler does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from comfyui_qvg.qvg.cache import KVCache
from comfyui_qvg.qvg.config import QVGConfig
from comfyui_qvg.qvg.errors import ConfigError, UnsupportedModelError
from comfyui_qvg.qvg.models.demo_film.directions import DIRECTIONS, Direction, Track, View, follow, text_rows
from comfyui_qvg.qvg.models.demo_film.pictures import PictureCodec, fit_linear
from comfyui_qvg.qvg.models.demo_film.scenes import JUDGED, TRAINING, Scene
from comfyui_qvg.qvg.models.demo_film.weights import CODEC_PREFIX, CONFIG, WEIGHTS, load_demo_film
from comfyui_qvg.qvg.models.wan.network import CausalWan, WanDenoiser
from comfyui_qvg.qvg.sampling.film import FilmPlan, FilmPrompts, given_blocks, roll_out
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ....untrained_film import untrained

EXACT = QVGConfig(codec="none")
WINDOW = EXACT.with_changes(span_frames=1, sink_frames=0, recent_frames=1, window_frames=6)
RIGHT, LEFT = Direction("turn right", "day"), Direction("turn left", "night")


# Rules and pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("camera", "start", "headings"),
    [
        ("turn right", View(34, 0, 1), [35, 0, 1, 2, 3, 4]),
        ("turn left", View(1, 0, 1), [0, 35, 34, 33, 32, 31]),
        ("stay", View(7, 1, 1), [7] * 6),
        ("look south", View(7, 1, 1), [18] * 6),
        ("swing", View(16, 1, 1), [17, 18, 17, 16, 15, 14]),
        ("swing", View(1, -1, 1), [0, 1, 2, 3, 4, 5]),
        ("swing", View(5, 0, 1), [6, 7, 8, 9, 10, 11]),
    ],
)
def test_the_camera_follows_the_prompt(camera: str, start: View, headings: list[int]) -> None:
    assert follow(start, [Direction(camera, "day")] * 2)[0].headings.tolist() == headings


def test_the_light_goes_an_eighth_of_the_way_in_each_frame() -> None:
    track, _ = follow(View(0, 0, 1.0), [Direction("stay", "night")])
    assert np.allclose(track.daylight, 0.875 ** np.arange(1, 4))


def test_a_film_may_be_followed_in_parts() -> None:
    start, directions = View(3, 1, 0.5), [RIGHT, Direction("swing", "night"), LEFT, LEFT]
    whole, _ = follow(start, directions)
    first, middle = follow(start, directions[:2])
    second, _ = follow(middle, directions[2:], first_time=6)
    for part, one, two in zip(whole, first, second, strict=True):
        assert (part == np.concatenate([one, two])).all()


def test_every_prompt_has_rows_of_its_own() -> None:
    rows = text_rows()
    assert rows.shape == (len(DIRECTIONS), 4, 64)
    assert len(rows.flatten(1).unique(dim=0)) == len(DIRECTIONS)


def test_a_scene_is_its_seed_and_domain() -> None:
    track = Track(np.arange(3), np.arange(3), np.ones(3))
    first, again, other, trained = (Scene(*key).frames(track) for key in ((1, JUDGED), (1, JUDGED), (2, JUDGED), (1, TRAINING)))
    assert first.shape == (3, 3, 128, 128) and first.abs().max() <= 1
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1) and not torch.allclose(first, trained, atol=0.1)


def test_a_pan_moves_whole_tokens_and_a_turn_comes_back() -> None:
    scene = Scene(0)
    scene.balls, scene.bird = [], None
    pictures = scene.frames(Track(np.zeros(3, int), np.array([0, 1, 36]), np.ones(3)))
    assert torch.equal(pictures[0, :, 16:, 16:], pictures[1, :, 16:, :-16])
    assert torch.equal(pictures[0, :, :8, 16:], pictures[1, :, :8, :-16])  # the ruler, and in its last square the screen's marks
    assert torch.equal(
        pictures[0, :, 8:16].unflatten(-1, (-1, 16))[..., 8:], pictures[1, :, 8:16].unflatten(-1, (-1, 16))[..., 8:]
    )
    assert torch.equal(pictures[0], pictures[2])


def test_what_moves_is_where_it_was_after_twelve_frames() -> None:
    pictures = Scene(3).frames(Track(np.array([5, 6, 17]), np.full(3, 9), np.ones(3)))
    assert torch.allclose(pictures[0], pictures[2], atol=1e-5)
    assert not torch.allclose(pictures[0], pictures[1], atol=0.1)


def test_the_linear_codec_moves_with_the_picture() -> None:
    torch.manual_seed(0)
    pictures = torch.cat([Scene(i, TRAINING).frames(Track(np.arange(4), np.arange(4) * 9, np.ones(4))) for i in range(4)])
    codec = PictureCodec()
    fit_linear(codec, pictures)
    with torch.no_grad():
        latents = codec.encode(pictures)
        shifted = codec.encode(pictures.roll(8, -1))
        error = (codec.decode(latents) - pictures).square().mean()
    assert torch.allclose(shifted[..., 1:], latents[..., :-1], atol=1e-5)
    assert abs(float(latents.square().mean()) - 1) < 1e-3
    assert error < 10**-2.8 * 4  # 28 dB without the correction


# The file -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("film") / "film.safetensors")


def test_the_file_is_small_and_marked_for_the_loader_of_core(film_file: Path) -> None:
    assert film_file.stat().st_size < 12e6
    with safe_open(film_file, "pt") as file:
        assert '"causal_ar": true' in file.metadata()["config"]
    model, codec = load_demo_film(film_file)
    assert model.config == CONFIG and not model.training and not codec.training


def rewritten(source: Path, out: Path, metadata: dict[str, str] | None = None, **weights: Tensor | None) -> Path:
    with safe_open(source, "pt") as file:
        kept = file.metadata() | (metadata or {})
    state = load_file(source)
    for name, value in weights.items():
        state.pop(name.replace("__", "."), None)
        if value is not None:
            state[name.replace("__", ".")] = value
    save_file(state, out, kept)
    return out


@pytest.mark.parametrize(
    ("metadata", "weights", "complaint"),
    [
        ({"model": "qvg-demo-world"}, {}, "is not a demo film"),
        ({"version": "0"}, {}, "of version '0'"),
        ({}, {"head__head__bias": None}, "lacks the weight 'head.head.bias'"),
        ({}, {"head__head__bias": torch.zeros(3)}, r"'head.head.bias' in shape \[3\] instead of \[64\]"),
        ({}, {"head__head__bias": torch.full((64,), float("nan"))}, "not numbers"),
        ({}, {"picture_codec__encoder__bias": None}, "lacks the weight 'picture_codec.encoder.bias'"),
        ({}, {"blocks__4__norm3__bias": torch.zeros(256)}, "no weight of the demo film"),
    ],
)
def test_a_wrong_file_is_refused(
    film_file: Path, tmp_path: Path, metadata: dict[str, str], weights: dict[str, Tensor | None], complaint: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=complaint):
        load_demo_film(rewritten(film_file, tmp_path / "wrong.safetensors", metadata, **weights))


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="assets/demo_film.safetensors is not there yet")
def test_the_shipped_file_is_a_trained_film() -> None:
    """It remembers: a place that comes back after a turn it makes nearer to what it was than without what was before the last
    block. How near, and all else that it was trained for, `tools/judge_demo_film.py` says."""
    assert WEIGHTS.stat().st_size < 12e6
    model, codec = load_demo_film()
    plan = FilmPlan(7, View(0, 1, 1.0), (RIGHT,) * 13)
    with torch.inference_mode():
        real = codec.encode(plan.pictures())
        shown = torch.cat([Scene(seed).frames(plan.track) for seed in range(6, 11)])
        error = (codec.decode(codec.encode(shown)) - shown).square().mean() / 4
    assert error < 10**-3.3, "33 dB on scenes that were not trained on; measured 33.4"
    given, errors = given_blocks(plan, codec, 12), {}
    for name, config in {"all": EXACT, "last block": WINDOW}.items():
        *_, last = roll_out(model, FilmPrompts(model), plan.directions, config, given, 5)
        errors[name] = float((last.latent[0] - real[-3:]).square().mean())
    assert errors["all"] < 0.5 * errors["last block"], errors


def test_a_damaged_or_missing_file_is_refused(film_file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(film_file.read_bytes()[:100_000])
    with pytest.raises(UnsupportedModelError, match="cannot be read"):
        load_demo_film(damaged)
    with pytest.raises(UnsupportedModelError, match="is not there"):
        load_demo_film(tmp_path / "nothing.safetensors")


# Films --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film_model(film_file: Path) -> tuple[CausalWan, PictureCodec]:
    return load_demo_film(film_file)


def film(model: CausalWan, codec: PictureCodec, directions: list[Direction], recache: bool = False) -> Tensor:
    given = given_blocks(FilmPlan(1, View(0, 1, 1.0), tuple(directions)), codec, 2)
    blocks = list(roll_out(model, FilmPrompts(model), directions, EXACT, given, 5, recache))
    assert [block.index for block in blocks] == list(range(len(directions)))
    assert all(torch.equal(block.latent, latent) for block, latent in zip(blocks, given, strict=False))
    return torch.cat([block.latent for block in blocks])


def test_a_film_goes_on_under_a_new_prompt(film_model: tuple[CausalWan, PictureCodec]) -> None:
    same, changed = film(*film_model, [RIGHT] * 4), film(*film_model, [RIGHT] * 3 + [Direction("turn right", "night")])
    assert torch.equal(same[:3], changed[:3]) and not torch.equal(same[3], changed[3])
    assert torch.equal(same, film(*film_model, [RIGHT] * 4, recache=True))


def test_recache_remembers_all_under_the_new_prompt(film_model: tuple[CausalWan, PictureCodec]) -> None:
    model, codec = film_model
    given = given_blocks(FilmPlan(1, View(0, 1, 1.0), (RIGHT,) * 2), codec, 2)
    prompts = FilmPrompts(model)

    def rest(directions: list[Direction], recache: bool) -> Tensor:
        return torch.cat([b.latent for b in roll_out(model, prompts, directions, EXACT, given, 5, recache)])

    seen_again, from_the_start = rest([RIGHT] * 2 + [LEFT] * 2, True), rest([LEFT] * 4, False)
    assert torch.equal(seen_again, from_the_start)
    assert not torch.equal(rest([RIGHT] * 2 + [LEFT] * 2, False), from_the_start)


def test_a_prompt_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="look up"):
        FilmPlan(0, View(0, 1, 1.0), (Direction("look up", "day"),))


# Training -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainer_module() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "tools"))
    try:
        return importlib.import_module("train_demo_film")
    finally:
        sys.path.pop(0)


@pytest.fixture
def small_recipe(trainer_module: ModuleType) -> object:
    return trainer_module.Recipe(films=1, longest_blocks=14, echo_from=0, echo_share=0.6, crop_share=1.0)


def new_trainer(module: ModuleType, recipe: object) -> object:
    torch.manual_seed(0)
    codec = PictureCodec()
    fit_linear(codec, Scene(0, TRAINING).frames(Track(np.arange(12), np.arange(12) * 3, np.ones(12))))
    return module.Trainer(recipe, codec.requires_grad_(False))


def test_training_shows_what_the_sampler_does(trainer_module: ModuleType, film_model: tuple[CausalWan, PictureCodec]) -> None:
    """The velocity of a noisy twin, beside its clean past, is that of the same block denoised with that past in the cache."""
    model, codec = film_model
    with torch.no_grad():
        batch = next(
            batch
            for step in range(50)
            for batch in [trainer_module.draw(0, step, 1, 14, codec.encode)]
            if batch.clips[0].kind == "pan" and len(set(batch.clips[0].prompts)) > 1 and not batch.layout.told_late
        )
        targets, clip = batch.layout.targets, batch.clips[0]
        level = torch.tensor([[0.625] * len(targets)])
        twins = trainer_module.frames_of(batch.latents, targets) * 0.375 + 0.625
        velocity = trainer_module.velocity(model, batch, batch.latents[:, :-3], twins, level, text_rows(), range(8))
        block, prompts = targets[0], FilmPrompts(model)
        denoiser = WanDenoiser(model, prompts[DIRECTIONS[clip.prompts[0]]], 16, 16)
        spec = model.config.cache_spec(16, 16, 3, dtype=torch.float32)
        with KVCache(spec, EXACT, model.config.rope(16, 16)) as cache:
            for i in range(block + 1):
                denoiser.prompt = prompts[DIRECTIONS[clip.prompts[i]]]
                cache.place([(float(time), 0.0, 0.0) for time in batch.times[0, 3 * i : 3 * i + 3]])
                if i < block:
                    denoiser.commit_clean(batch.latents[:, 3 * i : 3 * i + 3], cache)
                else:
                    clean = denoiser.predict_clean(twins[:, :3], 0.625, cache)
    expected = (twins[:, :3] - clean) / 0.625
    assert torch.allclose(velocity[:, :3], expected, atol=1e-4)


def test_a_training_that_was_stopped_goes_on_the_same(trainer_module: ModuleType, small_recipe: object, tmp_path: Path) -> None:
    unbroken = new_trainer(trainer_module, small_recipe)
    for _ in range(4):
        unbroken.run_step()
    trainer_module.save(unbroken.state(), tmp_path / "checkpoint.pt")
    resumed = new_trainer(trainer_module, small_recipe)
    resumed.load(torch.load(tmp_path / "checkpoint.pt"))
    for trainer in (unbroken, resumed):
        for _ in range(4):
            trainer.run_step()
    for one, other in ((unbroken.model.state_dict(), resumed.model.state_dict()), (unbroken.average, resumed.average)):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_half_of_the_returns_are_not_after_a_whole_turn(trainer_module: ModuleType) -> None:
    """What only memory shows: how long ago it was seen last."""
    ago, changes = [], []
    for step in range(1000, 1300):
        batch = trainer_module.draw(0, step, 1, 20, lambda pictures: torch.zeros(len(pictures), 16, 16, 16))
        clip = batch.clips[0]
        changes.append(len(set(clip.prompts)) > 1)
        shown = (clip.track.headings[:, None] + np.arange(8)) % 36
        for block, rows in zip(batch.layout.targets, batch.known[0].numpy(), strict=True):
            for frame, row in enumerate(rows, 3 * block):
                for column in shown[frame][row == 1]:
                    seen = np.flatnonzero((shown[: 3 * block] == column).any(1))
                    ago.append(int(clip.track.times[frame] - clip.track.times[seen[-1]]))
    assert len(ago) > 5000
    assert np.mean(np.array(ago) % 36 != 0) > 0.5
    assert np.mean(changes) > 1 / 3


def test_names_of_the_codec_are_its_own() -> None:
    assert not any(name.startswith(CODEC_PREFIX) for name in CausalWan(CONFIG, device="meta").state_dict())
