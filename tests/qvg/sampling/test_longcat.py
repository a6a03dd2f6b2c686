"""LongCat-Video's loops against the official pipelines' numbers, and what goes on from segment to segment."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg import ConfigError, QVGConfig
from comfyui_qvg.qvg.models.longcat import (
    ConditionCache,
    LongCat,
    LongCatConfig,
    LongCatSettings,
    SegmentFrames,
    load_longcat,
)
from comfyui_qvg.qvg.models.longcat.memory import condition_config
from comfyui_qvg.qvg.sampling.longcat import (
    LongCatDenoiser,
    SegmentPlan,
    Texts,
    generate_segments,
    last_latents,
    sample_segment,
    segment_noise,
    through_pictures,
)
from comfyui_qvg.qvg.sampling.longcat_protocol import FRAMES, QVG_PAPER, run_protocol
from torch import Tensor

from ... import golden_longcat as given
from ...golden_longcat import COLS, CONDITION, LOOP_TOLERANCE, LOOPS, ROWS, WORDS, Loop, deviation

EXACT = QVGConfig.preset("exact")


@pytest.fixture(scope="module")
def model() -> LongCat:
    return load_longcat(given.weights())


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return given.golden()


@pytest.fixture(scope="module")
def texts(model: LongCat) -> Texts:
    prompts = (model.read_prompt(given.texts()[i : i + 1], torch.tensor(WORDS[i : i + 1])) for i in range(2))
    return Texts(*prompts)


def _settings(loop: Loop) -> LongCatSettings:
    kind = {"distilled": loop.distilled, "enhance_hf": loop.enhance_hf, "exact_timesteps": True}
    return LongCatSettings(loop.steps, loop.guidance, **kind)


def _run(model: LongCat, texts: Texts, loop: Loop, together: bool = False, config: QVGConfig = EXACT) -> Tensor:
    denoiser = LongCatDenoiser(model, texts, _settings(loop), together=together)
    noise = given.noise(loop.kind).transpose(1, 2)
    condition = None if loop.kind == "text" else given.condition(loop.kind).transpose(1, 2)
    if not loop.cached:
        return sample_segment(denoiser, noise, condition).transpose(1, 2)
    with ConditionCache(model.config, ROWS, COLS, CONDITION, config, torch.float32) as cache:
        return sample_segment(denoiser, noise, condition, cache).transpose(1, 2)


# The longest run without memory says nothing that the short one does not.
RUN = [loop for loop in LOOPS if loop.name != "continue.whole"]


@pytest.mark.parametrize("loop", RUN, ids=lambda loop: loop.name)
def test_every_loop_is_the_official_one(model: LongCat, texts: Texts, golden: dict[str, Tensor], loop: Loop) -> None:
    assert deviation(_run(model, texts, loop), golden[f"loop.{loop.name}"]) < LOOP_TOLERANCE


def test_both_branches_in_one_pass_are_the_same(model: LongCat, texts: Texts, golden: dict[str, Tensor]) -> None:
    for loop in LOOPS:
        if loop.name in ("text", "continue.plain", "picture"):
            assert deviation(_run(model, texts, loop, together=True), golden[f"loop.{loop.name}"]) < LOOP_TOLERANCE


def test_the_official_ways_differ_under_guidance_alone(golden: dict[str, Tensor]) -> None:
    """Without the memory CFG-zero* is scaled by the condition's frames as well."""
    apart = {
        name: deviation(golden[f"loop.{name}"], golden[f"loop.{name}.whole"])
        for name in ("continue", "continue.plain", "continue.distilled")
    }
    assert apart["continue.distilled"] < LOOP_TOLERANCE
    assert 10 * LOOP_TOLERANCE < apart["continue"] < apart["continue.plain"] < 0.01


def _film(
    model: LongCat, texts: Texts, start: Tensor | None, count: int = 3, config: QVGConfig = EXACT, **more: object
) -> list[Tensor]:
    frames = SegmentFrames(21, 13)
    settings = LongCatSettings(steps=2, enhance_hf=False, seed=5)
    plan = SegmentPlan([texts] * count, frames, settings, config, **more)  # type: ignore[arg-type]
    made = generate_segments(model, plan, (ROWS, COLS), start, last_latents(frames))
    found = []
    for index, segment in enumerate(made):
        assert segment.index == index and segment.latents.shape == (1, 6, 16, ROWS, COLS)
        assert (segment.cache is not None) == (segment.condition_latents > 1)
        found.append(segment.latents)
    return found


def test_segments_go_on_from_each_other(model: LongCat, texts: Texts) -> None:
    first, second, third = _film(model, texts, None)
    assert torch.equal(second[:, :CONDITION], first[:, -CONDITION:]) and torch.equal(third[:, :CONDITION], second[:, -CONDITION:])
    assert not torch.equal(third[:, CONDITION:], second[:, CONDITION:])
    given_picture = given.condition("picture").transpose(1, 2)
    from_picture = _film(model, texts, given_picture, 2)
    assert torch.equal(from_picture[0][:, :1], given_picture) and not torch.equal(from_picture[0][:, 1:], first[:, 1:])
    video = given.condition("continue").transpose(1, 2)
    assert torch.equal(_film(model, texts, video, 1)[0][:, :CONDITION], video)
    again = _film(model, texts, video, 1)[0]
    assert torch.equal(again, _film(model, texts, video, 1)[0])


def test_a_packed_memory_makes_nearly_the_same_segments(model: LongCat, texts: Texts) -> None:
    video = given.condition("continue").transpose(1, 2)
    exact = _film(model, texts, video, 1)[0]
    near = _film(model, texts, video, 1, QVGConfig.preset("near-exact"))[0]
    assert 0 < deviation(near, exact) < 0.1


def test_through_pictures_takes_the_last_ones() -> None:
    frames = SegmentFrames(21, 13)
    asked: list[Tensor] = []

    def encode(pictures: Tensor) -> Tensor:
        asked.append(pictures)
        return torch.zeros(1, 4, 16, ROWS, COLS)

    again = through_pictures(lambda latents: torch.arange(21), encode, frames)
    assert again(torch.zeros(1, 6, 16, ROWS, COLS)).shape[1] == CONDITION
    assert asked[0].tolist() == list(range(8, 21))
    with pytest.raises(ConfigError, match="has 9 pictures"):
        through_pictures(lambda latents: torch.arange(9), encode, frames)(torch.zeros(1))


def test_noise_is_the_seeds_and_the_segments_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, two = segment_noise(3, 0, (1, 2, 3)), segment_noise(3, 1, (1, 2, 3))
    assert torch.equal(one, segment_noise(3, 0, (1, 2, 3))) and not torch.equal(one, two)
    assert torch.equal(before, torch.random.get_rng_state())


def test_steps_are_told_and_can_be_interrupted(model: LongCat, texts: Texts) -> None:
    told: list[tuple[int, int]] = []

    class StoppedError(Exception):
        pass

    def interrupt() -> None:
        if len(told) == 3:
            raise StoppedError

    denoiser = LongCatDenoiser(model, texts, LongCatSettings(steps=4))
    noise = given.noise("text").transpose(1, 2)
    with pytest.raises(StoppedError):
        sample_segment(denoiser, noise, interrupt=interrupt, step_done=lambda step, steps, x: told.append((step, steps)))
    assert told == [(1, 4), (2, 4), (3, 4)]


def test_what_does_not_go_is_refused(model: LongCat, texts: Texts) -> None:
    with pytest.raises(ConfigError, match="no negative prompt"):
        LongCatDenoiser(model, Texts(texts.prompt), LongCatSettings())
    alone = Texts(texts.prompt)
    LongCatDenoiser(model, alone, LongCatSettings.distilled_model())
    denoiser = LongCatDenoiser(model, texts, LongCatSettings(steps=2))
    noise, video = given.noise("text").transpose(1, 2), given.condition("continue").transpose(1, 2)
    with pytest.raises(ConfigError, match="adds nothing"):
        sample_segment(denoiser, noise, video)
    with ConditionCache(model.config, ROWS, COLS, CONDITION, EXACT) as cache:
        with pytest.raises(ConfigError, match="nothing to remember"):
            sample_segment(denoiser, noise, None, cache)
        with pytest.raises(ConfigError, match="4 latent frames; make it for as many"):
            denoiser.record(video[:, :2], cache)
    with pytest.raises(ConfigError, match="no segments"):
        SegmentPlan([], SegmentFrames(), LongCatSettings(), EXACT)
    with pytest.raises(ConfigError, match="0 pictures"):
        SegmentPlan([texts, texts], SegmentFrames(condition=0), LongCatSettings(), EXACT)


def test_the_papers_protocol(model: LongCat, texts: Texts) -> None:
    """On a tiny network: rows in order, bytes as predicted, the first new picture nearer to the exact one than all are apart."""
    frames = SegmentFrames(21, 13)
    denoiser = LongCatDenoiser(model, Texts(texts.prompt), LongCatSettings(4, 1.0, enhance_hf=False))
    condition = given.condition("continue").transpose(1, 2)
    shown: list[Tensor] = []

    def decode(latents: Tensor) -> Tensor:
        shown.append(latents)
        colours = (latents[0, :, :3].movedim(1, -1) / 8 + 0.5).clamp(0, 1)
        return torch.cat([colours[:1], colours[1:].repeat_interleave(4, 0)])

    methods = {"exact": EXACT, "qvg": QVGConfig(clusters=16), "near-exact": QVGConfig.preset("near-exact")}
    exact, qvg, near = run_protocol(denoiser, condition, methods, decode, frames)
    assert exact.first_psnr_db == exact.all_psnr_db == 100 and len(shown) == 4
    assert 100 > near.all_psnr_db > qvg.all_psnr_db > 10 and near.first_psnr_db > qvg.first_psnr_db
    spec = model.config.condition_spec(ROWS, COLS, CONDITION)
    assert qvg.cache_bytes == spec.predict(condition_config(methods["qvg"], CONDITION), CONDITION).total
    assert qvg.exact_bytes == spec.exact_bytes(CONDITION) and qvg.ratio == qvg.exact_bytes / qvg.cache_bytes
    with pytest.raises(ConfigError, match="73 pictures are 19; encode as many"):
        next(run_protocol(denoiser, condition, methods, decode))
    with pytest.raises(ConfigError, match="made 5 pictures of a segment of 21"):
        next(run_protocol(denoiser, condition, methods, lambda latents: decode(latents)[:5], frames))


def test_the_papers_settings_are_its_bytes() -> None:
    spec = LongCatConfig().condition_spec(60, 104, FRAMES.condition_latents)
    found = spec.predict(condition_config(QVG_PAPER, 19), 19)
    assert found.total == 48 * 70_587_904 and round(found.total / 48 / 2**20, 3) == 67.318
    assert FRAMES.new_pictures == 20
