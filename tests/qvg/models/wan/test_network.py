"""Our causal Wan against the official one's numbers, and as the sampling loop runs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheError, ConfigError, KVCache, QVGConfig, UnsupportedModelError
from comfyui_qvg.qvg.attention.prompt import MergedPrompt
from comfyui_qvg.qvg.models.wan import CausalWan, Prompt, WanConfig, WanDenoiser, load_wan
from comfyui_qvg.qvg.models.wan.variants import VARIANTS
from comfyui_qvg.qvg.sampling import DistilledSchedule, generate
from torch import Tensor

from .... import golden_wan
from ....golden_wan import CASES, LATENT_COLS, LATENT_ROWS, TOLERANCE, Case, deviation
from ....integration import tiny_wan

EXACT = QVGConfig.preset("exact")
QVG = QVGConfig(clusters=4, span_frames=2, sink_frames=1, recent_frames=1)
BLOCKS = [[(3.0 * block + frame, 0.0, 0.0) for frame in range(3)] for block in range(4)]
SCHEDULE = DistilledSchedule((1.0, 0.625, 0.0), seed=3)


@pytest.fixture(scope="module")
def model() -> CausalWan:
    return load_wan({f"model.{name}": weight for name, weight in tiny_wan.state_dict().items()})


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return golden_wan.golden()


def _cache(config: QVGConfig, frames: int = 3, batch: int = 1, dtype: torch.dtype = torch.float32) -> KVCache:
    shape = WanConfig.of(tiny_wan.state_dict())
    spec = shape.cache_spec(LATENT_ROWS, LATENT_COLS, frames, batch, dtype)
    return KVCache(spec, config, shape.rope(LATENT_ROWS, LATENT_COLS))


def _flows(model: CausalWan, case: Case, merge: bool = False) -> dict[str, Tensor]:
    """As the official code ran it: every pass on inputs of its own, the pass at noise level 0 becomes history."""
    prompt, flows = model.read_prompt(case.text(), merge), {}
    with _cache(EXACT, case.frames_per_block, case.batch) as cache, torch.inference_mode():
        for each in case.passes():
            cache.place([(float(each.first_frame + frame), 0.0, 0.0) for frame in range(case.frames_per_block)])
            flows[each.name] = model(each.x.transpose(1, 2), each.timesteps, prompt, cache.attend).transpose(1, 2)
            if each.is_commit:
                cache.commit()
    return flows


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("merge", [False, True], ids=["", "merged prompt"])
def test_every_pass_is_the_official_one(model: CausalWan, golden: dict[str, Tensor], case: Case, merge: bool) -> None:
    flows = _flows(model, case, merge)
    assert set(flows) == {name for name in golden if name.startswith(case.name)}
    worst = max(deviation(flow, golden[name]) for name, flow in flows.items())
    assert worst < TOLERANCE, worst


def test_the_text_embedding_is_the_official_one_and_padding_is_one_row(model: CausalWan, golden: dict[str, Tensor]) -> None:
    text = torch.nn.functional.pad(CASES[0].text(), (0, 0, 0, 505))
    with torch.inference_mode():
        embedded = model.text_embedding(text)[0]
    assert deviation(embedded[:8], golden["text"]) < TOLERANCE
    assert torch.equal(embedded[8:], embedded[7:8].expand(504, -1))
    merged = model.read_prompt(CASES[0].text(), merge=True)
    for rows in merged.layers:
        assert isinstance(rows, MergedPrompt) and rows.merged_rows == 505 and rows.keys.shape[2] == 8


def test_history_and_positions_matter(model: CausalWan, golden: dict[str, Tensor]) -> None:
    """Else the test above could pass by leaving them out."""
    case = CASES[0]
    second = next(each for each in case.passes() if each.name == "chunks.1.0")
    with _cache(EXACT) as cache, torch.inference_mode():
        cache.place([(3.0, 0.0, 0.0)] * 3)
        alone = model(second.x.transpose(1, 2), second.timesteps, model.read_prompt(case.text()), cache.attend)
    assert deviation(alone.transpose(1, 2), golden["chunks.1.0"]) > 0.02


def _video(model: CausalWan, config: QVGConfig, merge: bool = False, **arguments: Any) -> Tensor:
    denoiser = WanDenoiser(model, model.read_prompt(CASES[0].text(), merge), LATENT_ROWS, LATENT_COLS)
    with _cache(config, dtype=torch.float32 if config is EXACT else torch.bfloat16) as cache:
        return torch.cat([block.latent for block in generate(denoiser, cache, BLOCKS, SCHEDULE, **arguments)], 1)


def test_the_loop_predicts_and_noises_afresh(model: CausalWan) -> None:
    """The loop, written down once more for one block: clean = x - sigma * velocity."""
    video = _video(model, EXACT)
    prompt, shape = model.read_prompt(CASES[0].text()), (1, 3, 16, LATENT_ROWS, LATENT_COLS)
    x = SCHEDULE.noise(0, shape)
    with _cache(EXACT) as cache, torch.inference_mode():
        cache.place(BLOCKS[0])
        x = x - model(x, torch.full((1, 3), 1000.0), prompt, cache.attend)
        x = 0.375 * x + 0.625 * SCHEDULE.fresh_noise(0, 1, shape)
        x = x - 0.625 * model(x, torch.full((1, 3), 625.0), prompt, cache.attend)
    assert torch.equal(video[:, :3], x)


def test_spans_are_encoded_and_the_video_stays_near(model: CausalWan) -> None:
    state = torch.get_rng_state()
    exact, quantized = _video(model, EXACT), _video(model, QVG)
    assert torch.equal(quantized, _video(model, QVG)), "two runs differ"
    assert torch.equal(torch.get_rng_state(), state), "somebody else's dice moved"
    assert deviation(quantized[:, :3], exact[:, :3]) < TOLERANCE
    error = float((quantized - exact)[:, 9:].norm() / exact[:, 9:].norm())
    assert 1e-3 < error < 0.2, error


def test_a_new_prompt_counts_from_its_block_on(model: CausalWan) -> None:
    first, second = (model.read_prompt(text) for text in (CASES[0].text(), CASES[0].text().flip(1)))

    def run(change_at: int) -> list[Tensor]:
        denoiser, latents = WanDenoiser(model, first, LATENT_ROWS, LATENT_COLS), []
        with _cache(EXACT) as cache:
            for block in generate(denoiser, cache, BLOCKS, SCHEDULE):
                latents.append(block.latent)
                if block.index + 1 == change_at:
                    denoiser.prompt = second
        return latents

    never, changed = run(9), run(2)
    assert [torch.equal(a, b) for a, b in zip(never, changed, strict=True)] == [True, True, False, False]


def test_a_merged_prompt_is_the_same_to_rounding_and_never_exact(model: CausalWan) -> None:
    plain, merged = (_video(model, QVG, merge) for merge in (False, True))
    assert deviation(merged[:, :3], plain[:, :3]) < 1e-5 and not torch.equal(merged, plain)
    with pytest.raises(ConfigError, match="codec 'none' stands for the model's own numbers; read the prompt without merge"):
        _video(model, EXACT, merge=True)


def test_one_layers_block_at_a_time(model: CausalWan) -> None:
    """Layers let go of their block after every step, and commit it as soon as they have seen it clean."""
    held: list[int] = []

    class Watched(KVCache):
        def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            held.append(sum(other.state.current is not None for other in self.layers))
            return super().attend(layer, q, k, v)

    denoiser = WanDenoiser(model, model.read_prompt(CASES[0].text()), LATENT_ROWS, LATENT_COLS)
    plain = _cache(QVG)
    with Watched(plain.spec, QVG, plain.rope) as cache:
        assert len(list(generate(denoiser, cache, BLOCKS, SCHEDULE))) == 4
        assert cache.frames_committed == 12
    assert len(held) == 4 * 3 * tiny_wan.LAYERS and not any(held)


def test_shapes_are_read_from_the_checkpoint() -> None:
    shape = WanConfig.of(tiny_wan.state_dict(layers=3, heads=1))
    assert shape == WanConfig(layers=3, heads=1, mlp=256)
    full = WanConfig.wan_1_3b()
    model = CausalWan(full, device="meta", dtype=torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) == 1_418_996_800
    assert full.cache_spec(60, 104, 3).exact_bytes(180) == 51_757_056_000
    assert set(WanConfig.of(model.state_dict()).__dict__.items()) == set(full.__dict__.items())


def test_what_does_not_fit_gets_a_sentence(model: CausalWan) -> None:
    state = tiny_wan.state_dict()
    with pytest.raises(UnsupportedModelError, match="'img_emb.proj.0.weight', so it is an image-to-video Wan"):
        WanConfig.of({**state, "img_emb.proj.0.weight": torch.zeros(1)})
    with pytest.raises(UnsupportedModelError, match="the checkpoint is no Wan 2.1"):
        WanConfig.of({"double_blocks.0.weight": torch.zeros(1)})
    with pytest.raises(UnsupportedModelError, match="does not fit Wan 2.1 text to video .*blocks.1.norm3.bias"):
        load_wan({name: weight for name, weight in state.items() if name != "blocks.1.norm3.bias"})
    with pytest.raises(ConfigError, match="a latent of 6 x 7 does not divide into tokens of 2 x 2"):
        WanConfig().rope(6, 7)
    with pytest.raises(ConfigError, match=r"the prompt is \[1, 513, 4096\]"):
        model.read_prompt(torch.zeros(1, 513, 4096))
    with _cache(QVG, frames=1) as cache, pytest.raises(CacheError, match="a block of 3 frames"):
        cache.place(BLOCKS[0])
        WanDenoiser(model, Prompt(model.read_prompt(CASES[0].text()).layers), 6, 8).predict_clean(
            torch.zeros(1, 3, 16, 6, 8), 1.0, cache
        )


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 0.5), (0.5, 0.5, 0.0), (0.0, 1.0), (2.0, 0.0)])
def test_noise_levels_that_do_not_fall_to_zero_are_refused(levels: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="must fall from at most 1 to 0"):
        DistilledSchedule(levels)
    with pytest.raises(ConfigError, match="must fall from at most 1 to 0"):
        DistilledSchedule((1.0, 0.0), first_block_sigmas=levels)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
def test_every_trained_schedule_is_taken(variant: Any) -> None:
    schedule = DistilledSchedule(variant.sigmas, 7, variant.first_block_sigmas)
    assert schedule.noise_levels(0) == list(variant.first_block_sigmas or variant.sigmas)
    assert schedule.noise_levels(1) == list(variant.sigmas)
    draws = [schedule.fresh_noise(block, step, (64,)) for block in range(3) for step in range(4)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 12 and torch.equal(draws[4], schedule.noise(1, (64,)))
