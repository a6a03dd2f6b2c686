"""Runs that are kept in sessions, small enough to be ended again and again: one for every kind of loop.

Each goes on where its session stands, or begins it, and leaves all of its blocks there. Weights of the demos are those that are
shipped, of the others small and random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bootstrap_package import comfyui_qvg  # noqa: F401  (first: it names the repository `comfyui_qvg`)
from comfyui_qvg.qvg import KVCache, QVGConfig
from comfyui_qvg.qvg.camera import parse_path
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.camera.poses import camera_poses
from comfyui_qvg.qvg.demo.film import SPAN_FRAMES, plan_film
from comfyui_qvg.qvg.demo.walk import plan_walk, settings
from comfyui_qvg.qvg.models.common.world_memory import world_memory
from comfyui_qvg.qvg.models.demo_film.directions import BLOCK_FRAMES
from comfyui_qvg.qvg.models.demo_film.weights import WEIGHTS, load_demo_film
from comfyui_qvg.qvg.models.demo_world import DemoWorldDenoiser, load_demo_world
from comfyui_qvg.qvg.models.longcat import LongCatSettings, SegmentFrames, load_longcat
from comfyui_qvg.qvg.models.wan.network import CausalWan, WanConfig, WanDenoiser
from comfyui_qvg.qvg.models.worldplay_hunyuan.network import load_worldplay_hunyuan
from comfyui_qvg.qvg.models.worldplay_hunyuan.text import Words, without_padding
from comfyui_qvg.qvg.models.worldplay_wan.network import load_worldplay
from comfyui_qvg.qvg.positions.rope import hunyuan_rope, wan_rope
from comfyui_qvg.qvg.sampling import DistilledSchedule, generate
from comfyui_qvg.qvg.sampling.film import SIGMAS, Before, FilmPrompts, given_blocks, roll_out
from comfyui_qvg.qvg.sampling.kept import checkpoint_world, keep_chunk, kept_blocks, kept_segments, resume_world
from comfyui_qvg.qvg.sampling.longcat import SegmentPlan, Texts, generate_segments, last_latents
from comfyui_qvg.qvg.sampling.world import World
from comfyui_qvg.qvg.sampling.world_hunyuan import HunyuanWorld
from comfyui_qvg.qvg.session import Session
from comfyui_qvg.qvg.session.manifest import MANIFEST
from comfyui_qvg.tests import golden_longcat, golden_worldplay, golden_worldplay_hunyuan
from comfyui_qvg.tests.integration import tiny_wan
from torch import Tensor

TWO_BITS = QVGConfig(codec="klt", bits=1.5, bits_v=2, span_frames=6, recent_frames=2, sink_frames=1, clusters=16)
WORLD_BITS = QVGConfig(clusters=16, span_frames=8, sink_frames=0, recent_frames=0, iterations=2)


@dataclass(frozen=True)
class SessionRun:
    """A run of `blocks` blocks. `go(folder)` makes those that are missing, one after the other, yielding behind each."""

    blocks: int
    go: Callable[[Path], Iterator[Tensor]]


def opened(folder: Path, name: str, every: int = 1, tensors: dict[str, Tensor] | None = None) -> Session:
    """The session in a folder, or a new one."""
    if (folder / MANIFEST).exists():
        return Session.open(folder, {"run": name})
    return Session.create(folder, name, {}, {"run": name}, every=every, tensors=tensors)


def demo_world(frames: int = 24) -> SessionRun:
    """A walk, saved behind every frame."""
    model, walk = load_demo_world(), plan_walk("d-4,a-4", frames, 3)
    config = TWO_BITS.with_changes(window_frames=16)

    def go(folder: Path) -> Iterator[Tensor]:
        with opened(folder, "demo world") as session:
            cache = session.restore()[0] if session.blocks else KVCache(model.config.cache_spec(), config, model.config.rope())
            made = generate(
                DemoWorldDenoiser(model),
                cache,
                walk.origins,
                settings(3),
                walk.given(model),
                verify=False,
                first_block=session.blocks,
            )
            yield from (block.latent for block in kept_blocks(session, made, cache))

    return SessionRun(frames, go)


def demo_film(blocks: int = 16) -> SessionRun:
    """A film behind one turn of the camera that is given, saved behind every second block."""
    model, codec = load_demo_film(WEIGHTS)
    plan, prompts = plan_film(blocks * BLOCK_FRAMES, 2), FilmPrompts(model)
    config = QVGConfig.preset("balanced").with_changes(span_frames=SPAN_FRAMES)
    with torch.inference_mode():
        given = given_blocks(plan, codec, 12)

    def go(folder: Path) -> Iterator[Tensor]:
        with opened(folder, "demo film", every=2) as session:
            before = None
            if session.blocks:
                before = Before([latent for latent, _ in session.finished()], session.restore()[0])
            caches: list[KVCache] = [] if before is None else [before.cache]
            made = roll_out(model, prompts, plan.directions, config, given, 2, caches=caches, before=before)
            for block in made:
                session.add(block.latent, [caches[-1]])
                if session.due or block.index + 1 == blocks:
                    session.checkpoint([caches[-1]])
                yield block.latent

    return SessionRun(blocks, go)


def causal_wan(blocks: int = 10) -> SessionRun:
    """Chunks of three frames, as Self-Forcing's."""
    weights = tiny_wan.state_dict()
    shape = replace(WanConfig.of(weights), text_tokens=16)
    model = CausalWan(shape).eval()
    model.load_state_dict(weights)
    prompt = model.read_prompt(torch.randn(1, 5, 4096, generator=torch.Generator().manual_seed(1)))
    places = [[(float(3 * block + frame), 0.0, 0.0) for frame in range(3)] for block in range(blocks)]

    def go(folder: Path) -> Iterator[Tensor]:
        with opened(folder, "causal wan", every=2) as session, torch.inference_mode():
            cache = session.restore()[0] if session.blocks else KVCache(shape.cache_spec(4, 4, 3), TWO_BITS, shape.rope(4, 4))
            denoiser = WanDenoiser(model, prompt, 4, 4)
            made = generate(denoiser, cache, places, DistilledSchedule(SIGMAS, 5), verify=False, first_block=session.blocks)
            yield from (block.latent for block in kept_blocks(session, made, cache))

    return SessionRun(blocks, go)


def _worlds(name: str, new: Callable[[], World], noise: Tensor, image: Tensor, path: str, chunks: int) -> SessionRun:
    cameras = Cameras(camera_poses(parse_path(path), 4 * chunks, "again"))

    def go(folder: Path) -> Iterator[Tensor]:
        world = new()
        with opened(folder, name, tensors={"image": image}) as session:
            resume_world(session, world)
            for index in range(session.blocks, chunks):
                start = noise[:, 4 * index : 4 * index + 4]
                made = world.next_chunk(start, cameras, None if index else image)
                keep_chunk(session, world)
                yield made
            checkpoint_world(session, world)

    return SessionRun(chunks, go)


def worldplay_wan(chunks: int = golden_worldplay.CHUNKS) -> SessionRun:
    """The 5B's loop in mode "incremental"."""
    model = load_worldplay(golden_worldplay.weights())
    model.config = replace(model.config, text_tokens=golden_worldplay.TEXT_TOKENS)
    noise, image, text = golden_worldplay.inputs()
    prompt, side = model.read_prompt(text), golden_worldplay.SIDE // 2
    rope = wan_rope(side, side)

    def new() -> World:
        spec = model.config.cache_spec(golden_worldplay.SIDE, golden_worldplay.SIDE, 4, dtype=torch.float32)
        return World(model, world_memory(spec, WORLD_BITS, rope), prompt, "incremental")

    return _worlds("worldplay wan", new, noise.transpose(1, 2), image.transpose(1, 2), golden_worldplay.text("steps"), chunks)


def worldplay_hunyuan(chunks: int = 6) -> SessionRun:
    """The 8B's loop in mode "persistent"."""
    given = golden_worldplay_hunyuan
    model = load_worldplay_hunyuan(given.weights())
    noise, image, states, _ = given.inputs()
    text = without_padding(states.text, states.text_mask)
    assert text is not None
    prompt = model.read_prompt(Words(text, without_padding(states.byt5, states.byt5_mask), states.vision))
    rope = hunyuan_rope(given.ROWS, given.COLS)

    def new() -> World:
        spec = model.network.config.cache_spec(given.ROWS, given.COLS, 4, dtype=torch.float32)
        return HunyuanWorld(model, world_memory(spec, WORLD_BITS, rope), prompt, "persistent")

    return _worlds("worldplay hunyuan", new, noise.transpose(1, 2), image.transpose(1, 2), given.PATH, chunks)


def longcat(segments: int = 6) -> SessionRun:
    """Segments that go on from each other."""
    given: Any = golden_longcat
    model = load_longcat(given.weights())
    texts = [model.read_prompt(given.texts()[i : i + 1], torch.tensor(given.WORDS[i : i + 1])) for i in range(2)]
    frames = SegmentFrames(pictures=21, condition=13)
    plan = SegmentPlan([Texts(*texts)] * segments, frames, LongCatSettings(steps=2), QVGConfig.preset("balanced"))

    def go(folder: Path) -> Iterator[Tensor]:
        with opened(folder, "longcat") as session:
            before = list(session.finished())[-1][0] if session.blocks else None
            made = generate_segments(
                model, plan, (given.ROWS, given.COLS), None, last_latents(frames), first_segment=session.blocks, before=before
            )
            yield from (segment.latents for segment in kept_segments(session, made))

    return SessionRun(segments, go)


RUNS: dict[str, Callable[[], SessionRun]] = {
    "demo-world": demo_world,
    "demo-film": demo_film,
    "causal-wan": causal_wan,
    "worldplay-wan": worldplay_wan,
    "worldplay-hunyuan": worldplay_hunyuan,
    "longcat": longcat,
}
