"""Our LongCat-Video against the official one's numbers: single passes, the memory of a condition, schedules."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg import CacheError, ConfigError, QVGConfig, UnsupportedModelError
from comfyui_qvg.qvg.config import PRESETS
from comfyui_qvg.qvg.models.longcat import (
    ConditionCache,
    LongCat,
    LongCatConfig,
    LongCatSettings,
    Prompt,
    SegmentFrames,
    WholeAttention,
    load_longcat,
)
from comfyui_qvg.qvg.models.longcat.memory import condition_config
from comfyui_qvg.qvg.models.longcat.schedule import noise_levels
from comfyui_qvg.qvg.positions.rope import pairs_apart
from torch import Tensor

from .... import golden_longcat as given
from ....golden_longcat import COLS, CONDITION, LAYERS, PASS_TOLERANCE, ROWS, WORDS, deviation

EXACT = QVGConfig.preset("exact")
TIMESTEP = 776.5
SHAPE = LongCatConfig.of(given.weights())


@pytest.fixture(scope="module")
def model() -> LongCat:
    return load_longcat(given.weights())


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return given.golden()


@pytest.fixture(scope="module")
def prompt(model: LongCat) -> Prompt:
    return model.read_prompt(given.texts(), torch.tensor(WORDS))


def _frames_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def _cache(config: QVGConfig = EXACT, dtype: torch.dtype = torch.float32) -> ConditionCache:
    return ConditionCache(SHAPE, ROWS, COLS, CONDITION, config, dtype)


def _whole(frames: int, condition_frames: int = 0) -> WholeAttention:
    return WholeAttention(SHAPE.rope(ROWS, COLS), frames, condition_frames)


@torch.inference_mode()
def _pass(model: LongCat, prompt: Prompt, kind: str) -> Tensor:
    """As the official code ran it: two videos at once."""
    x, known = given.noise(kind, 2), 0
    t = torch.full((2, x.shape[2]), TIMESTEP)
    if kind != "text":
        known = given.condition(kind).shape[2]
        x[:, :, :known] = given.condition(kind)
        t[:, :known] = 0
    return _frames_first(model(_frames_first(x), t, prompt, _whole(x.shape[2], known), known))


@torch.inference_mode()
def _cached_pass(model: LongCat, prompt: Prompt, cache: ConditionCache) -> Tensor:
    model.record(_frames_first(given.condition("continue")), cache.recording())
    x = _frames_first(given.noise("continue", 2)[:, :, CONDITION:])
    cache.begin_pass(x.shape[1])
    return _frames_first(model(x, torch.full(x.shape[:2], TIMESTEP), prompt, cache.attend))


@pytest.mark.parametrize("kind", ["text", "picture", "continue"])
def test_every_pass_is_the_official_one(model: LongCat, golden: dict[str, Tensor], prompt: Prompt, kind: str) -> None:
    assert deviation(_pass(model, prompt, kind), golden[f"pass.{kind}"]) < PASS_TOLERANCE


def test_a_pass_that_reads_the_memory_is_the_official_one(model: LongCat, golden: dict[str, Tensor], prompt: Prompt) -> None:
    with _cache() as cache:
        assert deviation(_cached_pass(model, prompt, cache), golden["pass.cached"]) < PASS_TOLERANCE


def test_the_memory_holds_what_the_official_one_does(model: LongCat, golden: dict[str, Tensor]) -> None:
    with _cache() as cache, torch.inference_mode():
        model.record(_frames_first(given.condition("continue")), cache.recording())
        for layer in range(LAYERS):
            (pair,) = cache.layers[layer].state.history
            assert deviation(pair.keys.values, pairs_apart(golden[f"cache.{layer}.k"])) < PASS_TOLERANCE
            assert deviation(pair.values.values, golden[f"cache.{layer}.v"]) < PASS_TOLERANCE


def test_with_memory_and_without_are_the_same(model: LongCat, golden: dict[str, Tensor], prompt: Prompt) -> None:
    """The official code's own two ways agree as well."""
    with _cache() as cache:
        cached = _cached_pass(model, prompt, cache)
    assert deviation(cached, _pass(model, prompt, "continue")[:, :, CONDITION:]) < PASS_TOLERANCE
    assert deviation(golden["pass.cached"], golden["pass.continue"][:, :, CONDITION:]) < PASS_TOLERANCE


def test_what_could_be_left_out_matters(model: LongCat, golden: dict[str, Tensor], prompt: Prompt) -> None:
    """Else the tests above could pass without it: memory, positions, who sees and reads what, padding, sign."""
    x, t = _frames_first(given.noise("continue", 2)[:, :, CONDITION:]), torch.full((2, 2), TIMESTEP)
    reference = _frames_first(golden["pass.cached"])
    with _cache() as cache, torch.inference_mode():
        alone = model(x, t, prompt, _whole(2))
        _cached_pass(model, prompt, cache)
        cache.place([(0.0, 0.0, 0.0)] * 2)
        misplaced = model(x, t, prompt, cache.attend)
        cache.begin_pass(2)
        short = Prompt(prompt.embedded[:, : max(WORDS)])
        no_padding = model(x, t, short, cache.attend)
        rounded = model(x, t.to(torch.bfloat16).float(), prompt, cache.attend)
        other = model(x, t, model.read_prompt(given.texts()), cache.attend)
        whole = _frames_first(given.noise("continue", 2))
        whole[:, :CONDITION] = _frames_first(given.condition("continue"))
        levels = torch.full((2, 6), TIMESTEP)
        levels[:, :CONDITION] = 0
        seen = model(whole, levels, prompt, _whole(6), CONDITION)[:, CONDITION:]
        read = model(whole, levels, prompt, _whole(6, CONDITION))[:, CONDITION:]
    for wrong in (alone, misplaced, no_padding, rounded, other, seen, read, -reference):
        assert deviation(wrong, reference) > 10 * PASS_TOLERANCE


def test_words_are_told_by_zeros_behind_them_too(model: LongCat, prompt: Prompt) -> None:
    text = given.texts() * given.words()[..., None]
    assert torch.equal(model.read_prompt(text).embedded, prompt.embedded)
    short = model.read_prompt(text[:, : max(WORDS)])
    assert deviation(short.embedded, prompt.embedded) < 1e-6  # a shorter product is rounded in another order
    assert not prompt.embedded[0, WORDS[0] :].any() and not prompt.embedded[1, WORDS[1] :].any()
    assert not model.read_prompt(torch.zeros(1, 3, given.TEXT)).embedded.any()


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("keys", ["before_rope", "after_rope"])
def test_every_codec_keeps_the_condition(
    model: LongCat, prompt: Prompt, golden: dict[str, Tensor], preset: str, keys: str
) -> None:
    config = QVGConfig.preset(preset).with_changes(keys=keys)
    with _cache(config) as cache:
        out = _cached_pass(model, prompt, cache)
        size = cache.nbytes()
        assert size == cache.spec.predict(cache.config, CONDITION, codebooks=cache.codebooks())
        assert cache.layout.spans == (CONDITION,) and not cache.layout.tail
        if preset != "exact":
            cache.verify_encoded()
        again = _cached_pass(model, prompt, cache)
    assert torch.equal(out, again)
    bound = PASS_TOLERANCE if preset == "exact" else 0.2
    assert deviation(out, golden["pass.cached"]) < bound
    assert cache.nbytes().total == 0


def test_a_batch_reads_one_memory(model: LongCat, prompt: Prompt) -> None:
    """Both guidance branches at once are what they are one after the other, whatever the codec."""
    with _cache(QVGConfig.preset("balanced")) as cache:
        both = _cached_pass(model, prompt, cache)
        x = _frames_first(given.noise("continue", 2)[:, :, CONDITION:])
        with torch.inference_mode():
            for item in range(2):
                one = slice(item, item + 1)
                cache.begin_pass(2)
                out = model(x[one], torch.full((1, 2), TIMESTEP), Prompt(prompt.embedded[one]), cache.attend)
                assert deviation(_frames_first(out), both[one]) < 1e-5


def test_weights_in_16_bits_are_embedded_and_modulated_in_32(model: LongCat, golden: dict[str, Tensor]) -> None:
    half = load_longcat(given.weights(), dtype=torch.bfloat16)
    x = _frames_first(given.noise("text", 2)).to(torch.bfloat16)
    with torch.inference_mode():
        prompt = half.read_prompt(given.texts().to(torch.bfloat16), torch.tensor(WORDS))
        levels = half.t_embedder(torch.full((2, 3), TIMESTEP))
        out = half(x, torch.full((2, 3), TIMESTEP), prompt, _whole(3))
    assert levels.dtype == out.dtype == torch.float32
    assert 1e-4 < deviation(_frames_first(out), golden["pass.text"]) < 0.05


def test_noise_levels_and_what_the_network_is_told_are_the_official_ones(golden: dict[str, Tensor]) -> None:
    kinds = {
        "steps": (LongCatSettings(), False),
        "distilled": (LongCatSettings.distilled_model(), True),
        "enhanced": (LongCatSettings(), True),
    }
    for name, (settings, continues) in kinds.items():
        sigmas = settings.sigmas(continues)
        torch.testing.assert_close(torch.tensor(sigmas), golden[f"sigmas.{name}"], rtol=0, atol=0)
        assert [settings.told(sigma) for sigma in sigmas[:-1]] == golden[f"told.{name}"].tolist()
    assert len(LongCatSettings().sigmas(continues=True)) == 56 + 1
    assert golden["told.distilled"].int().tolist() == [
        1000, 996, 988, 984, 976, 964, 956, 944, 924, 904, 880, 848, 808, 752, 660, 510,
    ]  # fmt: skip
    exact = LongCatSettings(exact_timesteps=True)
    assert exact.told(noise_levels(16, distilled=True)[2]) == pytest.approx(988.76, abs=0.01)


def test_shapes_and_full_size() -> None:
    assert (SHAPE.layers, SHAPE.heads, SHAPE.mlp, SHAPE.time_channels) == (2, 2, 768, 64)
    full = LongCat(device="meta")
    assert sum(weight.numel() for weight in full.parameters()) == 13_581_071_424
    assert {name: tuple(x.shape) for name, x in load_longcat(given.weights()).state_dict().items()} == given.shapes()
    spec = LongCatConfig().condition_spec(60, 104, 19)
    assert spec.tokens_per_frame == 1560 and spec.exact_bytes(19) == 48 * 2 * 2 * 19 * 1560 * 4096


def test_frames_of_segments() -> None:
    released, long = SegmentFrames(), SegmentFrames(condition=73)
    assert (released.latents, released.condition_latents, released.new_latents, released.new_pictures) == (24, 4, 20, 80)
    assert (long.condition_latents, long.new_latents, long.new_pictures) == (19, 5, 20)
    for wrong in ({"pictures": 13}, {"pictures": 92}, {"condition": 12}, {"condition": 93}, {"condition": -3}, {"pictures": 0}):
        with pytest.raises(ConfigError, match="use"):
            SegmentFrames(**wrong)
    released.require_video(13)
    with pytest.raises(ConfigError, match=r"has 12 pictures, but 13 .* a condition of 9$"):
        released.require_video(12)


def test_what_does_not_go_is_refused(model: LongCat) -> None:
    with pytest.raises(ConfigError, match=r"reads \[batch, tokens, 64 channels\]; encode it with umt5-xxl"):
        model.read_prompt(torch.zeros(1, 7, 48))
    with pytest.raises(ConfigError, match="has 513 tokens"):
        model.read_prompt(torch.zeros(1, 513, 64))
    for size in ((5, 6), (4, 7), (0, 6)):
        with pytest.raises(ConfigError, match="multiples of 16 pixels"):
            SHAPE.rope(*size)
    with pytest.raises(ConfigError, match="merge 0.99 does not go"):
        condition_config(QVGConfig(merge=0.99), 4)
    with pytest.raises(ConfigError, match="at least 1"):
        ConditionCache(SHAPE, ROWS, COLS, 0)
    with _cache() as cache, pytest.raises(CacheError, match="holds 0 of 4"):
        cache.begin_pass(2)
    for wrong in (
        {"steps": 0}, {"steps": 51, "distilled": True, "guidance": 1.0}, {"guidance": 0.5}, {"guidance": float("nan")},
        {"distilled": True}, {"distilled": True, "guidance": 1.0, "enhance_hf": True}, {"shift": 0.0}, {"steps": True},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            LongCatSettings(**wrong)
    with pytest.raises(ConfigError, match="leave the distill LoRA out"):
        LongCatSettings(distilled=True)


def test_other_checkpoints_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="of all shards"):
        load_longcat({"patch_embedding.weight": torch.zeros(1)})
    state = given.weights()
    del state["blocks.1.ffn.w3.weight"]
    with pytest.raises(UnsupportedModelError, match="all shards of one release"):
        load_longcat(state)
    with pytest.raises(UnsupportedModelError, match="Avatar"):
        LongCatConfig.of(given.weights() | {"blocks.0.audio_cross_attn.q_linear.weight": torch.zeros(1)})
