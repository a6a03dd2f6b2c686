"""LongLive 2.0's network, solver and memory make the official code's numbers (`tests/golden_longlive2.py`)."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg import ConfigError, KVCache, QVGConfig
from comfyui_qvg.qvg.cache.policy import CachePolicy, Layout
from comfyui_qvg.qvg.cache.spec import CacheSpec
from comfyui_qvg.qvg.models.longlive2.network import LongLive2, load_longlive2
from comfyui_qvg.qvg.models.longlive2.variants import CUT_FRAMES, VARIANTS
from comfyui_qvg.qvg.models.wan.solved import SolvedDenoiser
from comfyui_qvg.qvg.sampling import SolverSchedule, generate, place_blocks
from torch import Tensor

from .... import golden_longlive2 as made

GOLDEN = made.golden()
TOKENS, FRAMES = made.SIDE**2 // 4, made.BLOCK
WINDOW = QVGConfig.preset("exact").with_changes(window_frames=32, sink_frames=8)


@pytest.fixture(scope="module")
def network() -> LongLive2:
    return load_longlive2(made.weights())


def video(network: LongLive2, blocks: int, picture: Tensor | None = None, cuts: tuple[int, ...] = made.CUTS) -> Tensor:
    """[1, F, C, h, w], in the loop that the nodes run."""
    solver = VARIANTS["longlive2-5b"].solver
    assert solver is not None
    noise, _, texts = made.inputs()
    prompts = [network.read_prompt(text) for text in texts]
    places = place_blocks(blocks * FRAMES, 0 if picture is None else 1, FRAMES, in_block=True)
    schedule = SolverSchedule(solver, places, noise, picture=picture, axis=1)
    denoiser = SolvedDenoiser(network, prompts[0], made.SIDE, made.SIDE, solver)
    spec = CacheSpec(made.LAYERS, made.HEADS, 128, TOKENS, FRAMES, 1, torch.float32)
    shots = [sum(cut <= place.index for cut in cuts) for place in places]
    origins = [
        [(float(place.first_frame + CUT_FRAMES * shot + frame), 0.0, 0.0) for frame in range(FRAMES)]
        for place, shot in zip(places, shots, strict=True)
    ]
    latents: list[Tensor] = []
    with KVCache(spec, WINDOW, network.config.rope(made.SIDE, made.SIDE)) as cache:

        def begin(index: int) -> None:
            denoiser.kept_frames, denoiser.prompt = places[index].kept_frames, prompts[made.PROMPTS[index]]
            if index in cuts:
                cache.pin_next()

        begin(0)
        for block in generate(denoiser, cache, origins, schedule, verify=False):
            latents.append(block.latent)
            if block.index + 1 < blocks:
                begin(block.index + 1)
    return torch.cat(latents, 1)


def largest(out: Tensor, reference: Tensor) -> float:
    assert out.shape == reference.shape
    return float((out - reference).abs().max() / reference.abs().max())


def test_ten_blocks_with_two_cuts_are_the_official_ones(network: LongLive2) -> None:
    assert largest(video(network, made.BLOCKS), GOLDEN["latents"]) < made.TOLERANCE
    # What the numbers must be able to tell: without pins and gaps the first cut's block is another one.
    plain = video(network, 3, cuts=())
    assert largest(plain[:, 2 * FRAMES :], GOLDEN["latents"][:, 2 * FRAMES : 3 * FRAMES]) > 10 * made.TOLERANCE


def test_a_video_that_begins_with_a_picture(network: LongLive2) -> None:
    picture = made.inputs()[1]
    latents = video(network, made.PICTURE_BLOCKS, picture, cuts=(2, 5))
    assert largest(latents, GOLDEN["picture.latents"]) < made.TOLERANCE
    assert torch.equal(latents[:, :1], picture)


def test_the_solver_is_a_table() -> None:
    for steps, name in ((4, "longlive2-5b"), (2, "longlive2-5b-2step")):
        solver = VARIANTS[name].solver
        assert solver is not None and list(solver.timesteps) == GOLDEN[f"timesteps.{steps}"].tolist()
        assert list(solver.levels) == GOLDEN[f"sigmas.{steps}"][:-1].tolist()
        assert [sum(row) for row in solver.weights] == pytest.approx([1.0] * steps, abs=1e-7)
        noise, predictions, seen = torch.ones(1, 1, 1, dtype=torch.float64), list[Tensor](), list[float]()
        schedule = SolverSchedule(solver, place_blocks(1, 0, 1), noise)
        x: Tensor = noise
        for step, level in enumerate(schedule.noise_levels(0), 1):
            predictions.append(x - level * (0.3 * x + 0.5 * level))
            x = schedule.next_input(0, step, predictions)
            seen.append(float(x))
        assert seen == pytest.approx(GOLDEN[f"scalar.{steps}"].tolist(), abs=1e-7)


def slots(cuts: tuple[int, ...], blocks: int, policy: CachePolicy) -> list[list[int]]:
    """What memory holds while each block is at work, sink first."""
    layout, sink, spans, tail, seen = Layout(), list[int](), list[int](), list[int](), list[list[int]]()
    for block in range(blocks):
        seen.append([*sink, *spans, *tail, block])
        step = policy.pin(layout, 8) if block in cuts else policy.commit(layout, 8)
        if step.unpin:
            tail[:0] = [sink.pop()][: not step.drops]
        (sink if step.to_sink else tail).append(block)
        spans += tail[: step.encode_chunks]
        del tail[: step.encode_chunks], spans[: step.evict_spans]
        del tail[: step.evict_chunks]
        layout = step.layout
        assert layout.frames == 8 * (len(sink) + len(spans) + len(tail)) <= 24
    return seen


def test_blocks_in_memory_are_those_that_the_official_code_keeps() -> None:
    policy = CachePolicy(8, 0, 8, 32, 8)
    expected = ["0", "01", "012", "0123", "0234", "0245", "0456", "0567", "0578", "0589"]
    assert ["".join(map(str, sorted(held))) for held in slots((2, 5), 10, policy)] == expected
    # Two cuts before the window is full: the first one's block is let go as the oldest of the others.
    assert [sorted(held) for held in slots((1, 2), 6, policy)][3:] == [[0, 1, 2, 3], [0, 2, 3, 4], [0, 2, 4, 5]]
    with pytest.raises(ConfigError, match="a pinned block and the block in work take 24; use that or more"):
        CachePolicy(8, 0, 8, 23, 8).pin(Layout(sink=(8,)), 8)
