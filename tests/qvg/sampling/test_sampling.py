"""The autoregressive loop on a tiny random world: order of passes, determinism, interruption, given frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, ConfigError, KVCache, QVGConfig
from comfyui_qvg.qvg.models.demo_world import DemoWorld, DemoWorldConfig, DemoWorldDenoiser
from comfyui_qvg.qvg.sampling import SamplerSettings, generate
from torch import Tensor

TINY = DemoWorldConfig(picture_pixels=16, patch_pixels=8, layers=2, heads=1, head_dim=64)
CONFIG = QVGConfig(clusters=2, span_frames=2, sink_frames=1, recent_frames=1)


@pytest.fixture(scope="module")
def model() -> DemoWorld:
    torch.manual_seed(0)
    return DemoWorld(TINY).eval()


def _walk(model: DemoWorld, config: QVGConfig, frames: int = 9, **arguments: Any) -> list[Tensor]:
    blocks = [[(0.0, 0.5 * frame, 0.0)] for frame in range(frames)]
    settings = arguments.pop("settings", SamplerSettings(steps=3, seed=4))
    with KVCache(TINY.cache_spec(), config, TINY.rope()) as cache:
        return [block.latent for block in generate(DemoWorldDenoiser(model), cache, blocks, settings, **arguments)]


def test_two_runs_are_identical_and_leave_the_global_dice_alone(model: DemoWorld) -> None:
    state = torch.get_rng_state()
    first, second = _walk(model, CONFIG), _walk(model, CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_cache_changes_nothing_before_the_first_span_is_encoded(model: DemoWorld) -> None:
    exact, quantized = _walk(model, QVGConfig.preset("exact")), _walk(model, CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(exact[:4], quantized[:4], strict=True))
    assert not torch.equal(exact[4], quantized[4])


def test_another_seed_is_another_walk(model: DemoWorld) -> None:
    assert not torch.equal(_walk(model, CONFIG)[0], _walk(model, CONFIG, settings=SamplerSettings(3, seed=5))[0])


def test_given_frames_are_taken_as_they_are(model: DemoWorld) -> None:
    given = [torch.full((1, 1, 3, 16, 16), 0.25), torch.zeros(1, 1, 3, 16, 16)]
    frames = _walk(model, CONFIG, given=given)
    assert torch.equal(frames[0], given[0]) and torch.equal(frames[1], given[1]) and len(frames) == 9


def test_every_step_may_interrupt_and_memory_is_freed(model: DemoWorld) -> None:
    calls = 0

    def interrupt() -> None:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt

    cache = KVCache(TINY.cache_spec(), CONFIG, TINY.rope())
    done = []
    blocks = [[(0.0, float(frame), 0.0)] for frame in range(9)]
    with pytest.raises(KeyboardInterrupt), cache:
        done.extend(generate(DemoWorldDenoiser(model), cache, blocks, SamplerSettings(steps=3), interrupt=interrupt))
    assert calls == 10 and cache.nbytes().total == 0 and cache.frames_committed == 0


def test_each_block_is_denoised_then_seen_once_more_clean_then_committed() -> None:
    """Noise levels as the model is shown them, and what the cache holds at the time."""
    shown: list[tuple[float, int]] = []

    class Watcher:
        device = torch.device("cpu")

        def block_shape(self, frames: int) -> tuple[int, ...]:
            return (1, frames, 1, 1, 1)

        def predict_clean(self, x: Tensor, noise_level: float, cache: KVCache) -> Tensor:
            shown.append((round(noise_level, 3), cache.frames_committed))
            cache.attend(0, *torch.zeros(3, 1, 1, 2 * x.shape[1], 64))
            return torch.full_like(x, 7.0)

    spec = CacheSpec(1, 1, 64, tokens_per_frame=2, chunk_frames=2)
    with KVCache(spec, QVGConfig(codec="none")) as cache:
        blocks = list(generate(Watcher(), cache, [[(0, 0, 0)] * 2, [(0, 0, 0)]], SamplerSettings(steps=2, shift=3.0)))
    assert shown == [(1.0, 0), (0.75, 0), (0.0, 0), (1.0, 2), (0.75, 2), (0.0, 2)]
    assert [(block.index, block.first_frame, block.latent.shape[1]) for block in blocks] == [(0, 0, 2), (1, 2, 1)]
    assert all((block.latent == 7.0).all() for block in blocks), "the last Euler step lands on the prediction"


def test_settings_refuse_nonsense() -> None:
    with pytest.raises(ConfigError, match="steps 0"):
        SamplerSettings(steps=0)
    assert SamplerSettings(steps=4, shift=1.0).noise_levels() == [1.0, 0.75, 0.5, 0.25, 0.0]
