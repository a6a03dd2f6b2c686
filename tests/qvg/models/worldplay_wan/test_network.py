"""Our WorldPlay against the official one's numbers, its three modes, and its two ways to store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, ConfigError, QVGConfig, UnsupportedModelError
from comfyui_qvg.qvg.camera import parse_path
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.camera.labels import action_labels
from comfyui_qvg.qvg.camera.poses import camera_poses
from comfyui_qvg.qvg.camera.selection import WAN_MEMORY
from comfyui_qvg.qvg.models.common.world_memory import WorldMemory, world_memory
from comfyui_qvg.qvg.models.common.world_schedule import plan_chunk
from comfyui_qvg.qvg.models.wan import Prompt, WanConfig
from comfyui_qvg.qvg.models.worldplay_wan import network
from comfyui_qvg.qvg.models.worldplay_wan.names import wan_names
from comfyui_qvg.qvg.models.worldplay_wan.network import WorldPlay, WorldPlayConfig, load_worldplay
from comfyui_qvg.qvg.positions.rope import pairs_apart, rotate, wan_rope
from comfyui_qvg.qvg.sampling.world import World
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ....golden_worldplay import CHUNKS, FFN, GOLDEN, HEADS, LAYERS, SIDE, TEXT_TOKENS, inputs, text, weights
from ....helpers import assert_close
from ....rounding import network_error

EXACT = QVGConfig(codec="none")
# As Quant-VideoGen sets it: two chunks are encoded together, nothing else is exact.
PUBLISHED = QVGConfig(clusters=16, span_frames=8, sink_frames=0, recent_frames=0, iterations=2)
ROPE = wan_rope(SIDE // 2, SIDE // 2)
LAYOUTS = ["once", "vendor"]
SINES_OF = (network,)


@pytest.fixture(scope="module")
def model() -> WorldPlay:
    return load_worldplay(weights())


@pytest.fixture(scope="module")
def prompt(model: WorldPlay) -> Prompt:
    """The official code read these tokens and no padding."""
    return _prompt(model)


def _prompt(model: WorldPlay) -> Prompt:
    model.config = replace(model.config, text_tokens=TEXT_TOKENS)
    return model.read_prompt(inputs()[2])


def _cameras(frames: int = 4 * CHUNKS) -> Cameras:
    return Cameras(camera_poses(parse_path(text("steps")), frames, "again"))


def _spec(chunk_frames: int) -> CacheSpec:
    return CacheSpec(LAYERS, HEADS, 128, ROPE.tokens_per_frame, chunk_frames, dtype=torch.float32)


def _memory(mode: str, layout: str, config: QVGConfig = EXACT) -> WorldMemory:
    return world_memory(_spec(16 if mode == "vendor" else 4), config, ROPE, layout)


def _noise(index: int) -> Tensor:
    return inputs()[0].transpose(1, 2)[:, 4 * index : 4 * index + 4]


def _world(model: WorldPlay, prompt: Prompt, mode: str = "vendor", layout: str = "once", config: QVGConfig = EXACT) -> World:
    rule = WAN_MEMORY if mode == "vendor" else None
    return World(model, _memory(mode, layout, config), prompt, mode, rule)


def _walk(world: World, chunks: int) -> list[Tensor]:
    image = inputs()[1].transpose(1, 2)
    return [world.next_chunk(_noise(index), _cameras(), None if index else image) for index in range(chunks)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_chunk_is_the_official_one(model: WorldPlay, prompt: Prompt, layout: str) -> None:
    """Seven chunks of four steps, the last two on a selected memory. 1.7e-5 of the chunk's root mean square on one machine, most
    of it from the last bits of the timestep's sinusoid; RoPE in bf16 would cost 1e-4, everything else 2e-2 or more."""
    bounds = network_error(lambda model: _walk(_world(model, _prompt(model), layout=layout), CHUNKS), model, FFN, SINES_OF)
    for index, latent in enumerate(_walk(_world(model, prompt, layout=layout), CHUNKS)):
        assert_close(f"chunk {index}", GOLDEN[f"latent.{index}"].transpose(1, 2), latent, bounds[index])


def test_first_velocities_are_the_official_ones(model: WorldPlay, prompt: Prompt) -> None:
    """The first picture at t = 14, the first step on noise; on one chunk, and on a selected memory of official latents."""
    image = inputs()[1].transpose(1, 2)

    def first(model: WorldPlay, index: int) -> tuple[Tensor, Tensor]:
        """Timesteps and velocity of the first step."""
        world = _world(model, _prompt(model))
        world.latents = [GOLDEN[f"latent.{earlier}"].transpose(1, 2) for earlier in range(index)]
        seen: list[tuple[Tensor, Tensor]] = []
        handle = model.register_forward_hook(lambda _, given, out: seen.append((given[1], out)))
        world.next_chunk(_noise(index), _cameras(), None if index else image)
        handle.remove()
        return seen[0]

    bounds = network_error(lambda model: [first(model, index)[1] for index in (0, 1, 5)], model, FFN, SINES_OF)
    for index, bound in zip((0, 1, 5), bounds, strict=True):
        timesteps, velocity = first(model, index)
        assert timesteps.flatten().tolist() == GOLDEN[f"timestep.{index}"].tolist()
        assert_close(f"chunk {index}", GOLDEN[f"velocity.{index}"].transpose(1, 2), velocity, bound)


def test_the_context_pass_stores_what_the_official_one_does(model: WorldPlay, prompt: Prompt) -> None:

    def stored(model: WorldPlay) -> list[Tensor]:
        world = _world(model, _prompt(model), layout="vendor")
        _walk(world, 2)
        pair = world.memory.cache.layers[LAYERS - 1].state.history[0]
        return [pair.keys.values, pair.values.values]

    bounds = network_error(stored, model, FFN, SINES_OF)
    keys, values = stored(model)
    official_k, official_v = GOLDEN[f"cache.{LAYERS - 1}.k"], GOLDEN[f"cache.{LAYERS - 1}.v"]
    both = torch.cat([pairs_apart(half) for half in official_k.chunk(2, -1)], -1)
    assert_close("keys", both, keys, bounds[0])
    assert_close("values", official_v, values, bounds[1])


def test_history_cameras_and_labels_matter(model: WorldPlay, prompt: Prompt) -> None:
    """Else the tests above could pass by leaving them out. Sizes of a mistake, of the velocity's root mean square."""
    plan, cameras = plan_chunk(1, "vendor"), _cameras()
    still = Cameras(cameras.poses[:1].repeat(4 * CHUNKS, 0))
    first = GOLDEN["latent.0"].transpose(1, 2)

    def velocity(shown: Cameras, labels: Tensor, memory: Tensor, t: float, model: WorldPlay = model) -> Tensor:
        prompt = _prompt(model)
        with _memory("vendor", "once") as kept, torch.inference_mode():
            kept.begin_context(plan, shown)
            model.record(memory, torch.full((1, 4), t), prompt, kept, labels[:, :4])
            kept.begin_chunk(plan, shown)
            return model(_noise(1), torch.full((1, 4), 1000.0), prompt, kept.attend, labels[:, 4:])

    labels = torch.from_numpy(action_labels(cameras.poses[:8]))[None]
    right = velocity(cameras, labels, first, 14.0)
    (bound,) = network_error(lambda model: [velocity(cameras, labels, first, 14.0, model)], model, FFN, SINES_OF)
    assert_close("velocity", GOLDEN["velocity.1"].transpose(1, 2), right, bound)
    for wrong in (
        velocity(still, labels, first, 14.0),
        velocity(cameras, 0 * labels, first, 14.0),
        velocity(cameras, labels, first.flip(1), 14.0),
        velocity(cameras, labels, first, 0.0),
    ):
        assert float((wrong - right).square().mean().sqrt() / right.square().mean().sqrt()) > 1e-3


@pytest.mark.parametrize("mode", ["persistent", "incremental"])
def test_both_layouts_hold_the_same_world(model: WorldPlay, prompt: Prompt, mode: str) -> None:
    once, vendor = (_walk(_world(model, prompt, mode, layout), 4) for layout in LAYOUTS)
    for index, (one, other) in enumerate(zip(once, vendor, strict=True)):
        assert_close(f"chunk {index}", other, one, 1e-5)


def test_modes_agree_as_long_as_they_can(model: WorldPlay, prompt: Prompt) -> None:
    """One chunk of history is encoded alike by all; later persistent and incremental keep what vendor would make anew. Those two
    differ from the third layer on: the second one's keys know only of the first one's, which know of no other frame."""
    vendor, persistent, incremental = (_walk(_world(model, prompt, mode), 4) for mode in ("vendor", "persistent", "incremental"))
    for index in (0, 1):
        assert_close("persistent", vendor[index], persistent[index], 1e-5)
    for index in range(4):
        assert_close("incremental", persistent[index], incremental[index], 1e-5)
    assert float((vendor[3] - persistent[3]).abs().max()) > 1e-3


def test_incremental_is_not_persistent(model: WorldPlay) -> None:
    deeper = WorldPlay(replace(model.config, layers=3)).eval()
    state = model.state_dict()
    again = {name.replace("blocks.1.", "blocks.2."): weight for name, weight in state.items() if name.startswith("blocks.1.")}
    deeper.load_state_dict({**state, **again})
    walks = []
    for mode in ("persistent", "incremental"):
        memory = world_memory(replace(_spec(4), layers=3), EXACT, ROPE)
        walks.append(_walk(World(deeper, memory, deeper.read_prompt(inputs()[2]), mode), 4))
    for index in (0, 1):
        assert_close("incremental", walks[0][index], walks[1][index], 1e-5)
    assert float((walks[0][3] - walks[1][3]).abs().max()) > 1e-3


class _Uncached:
    """Both attentions of one pass over everything, with a mask: no memory at all."""

    def __init__(self, allowed: Tensor, frames: int):
        self.allowed = allowed
        memory = _memory("vendor", "once")
        memory._cameras = _cameras().recentred(1)
        self.projector = memory._projector(range(frames), range(frames))
        self.rotation = ROPE.rotation(torch.tensor([(frame, 0, 0) for frame in range(frames)]))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rotated = (rotate(q, self.rotation), rotate(k, self.rotation), v)
        out = [scaled_dot_product_attention(*x, attn_mask=self.allowed) for x in (rotated, self.projector.block(q, k, v))]
        return torch.cat([out[0], self.projector.leave(out[1])], -1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["vendor", "persistent", "incremental"])
def test_cached_equals_uncached(model: WorldPlay, prompt: Prompt, mode: str, layout: str) -> None:
    """Context frames see what their mode lets them see, the chunk's frames see everything, in one pass with a block mask."""
    index, x = 2, torch.cat([GOLDEN[f"latent.{chunk}"].transpose(1, 2) for chunk in (0, 1, 2)], 1)
    with _memory(mode, layout) as memory, torch.inference_mode():
        labels = torch.from_numpy(action_labels(_cameras().poses[:12]))[None]
        for chunk in range(1, index + 1):
            plan, cameras = plan_chunk(chunk, mode), _cameras()
            memory.begin_context(plan, cameras)
            frames = list(plan.encode)
            model.record(x[:, frames], torch.full((1, len(frames)), 14.0), prompt, memory, labels[:, frames])
        memory.begin_chunk(plan, cameras)
        cached = model(x[:, 8:], torch.full((1, 4), 727.0), prompt, memory.attend, labels[:, 8:])
        t = torch.tensor([[14.0] * 8 + [727.0] * 4])
        uncached = model(x, t, prompt, _Uncached(_mask(mode), 12).attend, labels)[:, 8:]
    assert_close("velocity", uncached, cached, 1e-5)


def _mask(mode: str) -> Tensor:
    """[S, S]: which chunk's tokens (rows) see which. Of three chunks the last is being painted. Of two layers, "persistent" is
    causal, too (see above)."""
    chunks = torch.tensor([[1, mode == "vendor", 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    tokens = 4 * ROPE.tokens_per_frame
    return chunks.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_bits(model: WorldPlay, prompt: Prompt, layout: str) -> None:
    """The codec runs, the bytes are the predicted ones, and the world stays near the exact one."""
    world = _world(model, prompt, "persistent", layout, PUBLISHED)
    latents, exact = _walk(world, 6), _walk(_world(model, prompt, "persistent", layout), 6)
    cache = world.memory.cache
    cache.verify_encoded()
    assert cache.nbytes() == cache.spec.predict(PUBLISHED, 20, codebooks=cache.codebooks())
    errors = [float((one - other).norm() / other.norm()) for one, other in zip(latents, exact, strict=True)]
    assert max(errors[:2]) < 1e-6 and 1e-3 < errors[-1] < 0.5  # nothing is encoded before there are two chunks


def test_vendor_mode_at_two_bits(model: WorldPlay, prompt: Prompt) -> None:
    """The whole context is one span, made anew for every chunk."""
    config = PUBLISHED.with_changes(span_frames=16)
    world = _world(model, prompt, "vendor", "once", config)
    _walk(world, 6)
    cache = world.memory.cache
    cache.verify_encoded()
    assert cache.layout.spans == (16,)
    assert cache.nbytes() == cache.spec.predict(config, 16, codebooks=cache.codebooks())


def test_a_chunk_broken_off_is_painted_again(model: WorldPlay, prompt: Prompt) -> None:
    """After its context pass and a step; neither is counted twice."""
    for mode in ("vendor", "persistent", "incremental"):
        world, whole, passes = _world(model, prompt, mode), _walk(_world(model, prompt, mode), 3), iter(range(2))
        _walk(world, 2)
        with pytest.raises(StopIteration):
            world.next_chunk(_noise(2), _cameras(), interrupt=lambda: next(passes))  # noqa: B023 (used at once)
        torch.testing.assert_close(world.next_chunk(_noise(2), _cameras()), whole[2], rtol=0, atol=0)


def test_steps_are_appended(model: WorldPlay, prompt: Prompt) -> None:
    """Poses may come chunk by chunk: what is painted depends on those so far, not on those to come."""
    whole, world = _walk(_world(model, prompt), 3), _world(model, prompt)
    image = inputs()[1].transpose(1, 2)
    for index in range(3):
        cameras = Cameras(_cameras().poses[: 4 * index + 4])
        torch.testing.assert_close(world.next_chunk(_noise(index), cameras, None if index else image), whole[index])


def test_what_a_world_refuses(model: WorldPlay, prompt: Prompt) -> None:
    world = _world(model, prompt)
    with pytest.raises(ConfigError, match="3 poses, but chunk 0 ends with frame 4"):
        world.next_chunk(_noise(0), Cameras(_cameras().poses[:3]))
    world.next_chunk(_noise(0), _cameras())
    with pytest.raises(ConfigError, match="first picture was given for chunk 1"):
        world.next_chunk(_noise(1), _cameras(), inputs()[1].transpose(1, 2))
    model.config = replace(model.config, text_tokens=40)
    world.prompt = model.read_prompt(inputs()[2], merge=True)
    with pytest.raises(ConfigError, match="padding is merged"):
        world.next_chunk(_noise(1), _cameras())
    _prompt(model)
    with pytest.raises(ConfigError, match="'twice'"):
        _memory("vendor", "twice")
    with pytest.raises(ConfigError, match="after_rope"):
        _memory("vendor", "once", EXACT.with_changes(keys="after_rope"))
    with pytest.raises(ConfigError, match="window_frames is 20"):
        _memory("vendor", "once", EXACT.with_changes(window_frames=20))


def _wrapped(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"generator": {f"model._fsdp_wrapped_module.{name}": weight for name, weight in state.items()}, "generator_ema": {}}


def test_names(model: WorldPlay) -> None:
    ours = wan_names(_wrapped(weights()))
    assert ours.keys() == model.state_dict().keys()
    assert wan_names(ours).keys() == ours.keys()
    assert len(ours) == 29 * LAYERS + 19
    assert 29 * WorldPlayConfig().layers + 19 == 889
    with torch.device("meta"):
        full = WorldPlay().state_dict()
    assert len(full) == 889
    assert sum(weight.numel() for weight in full.values()) == pytest.approx(5.0e9 + 0.293e9, rel=0.001)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda state: state.pop("blocks.1.attn1.to_out_prope.0.weight"),
            "without HY-WorldPlay's .*blocks.1.self_attn.o_prope",
        ),
        (lambda state: state.pop("condition_embedder.action_embedder.linear_1.bias"), "lacks 'action_embedding.0.bias'"),
        (lambda state: state.pop("blocks.0.ffn.net.2.bias"), "76 weights, but HY-WorldPlay of 2 blocks has 77"),
        (lambda state: state.update(extra=torch.zeros(1)), "78 weights"),
        (lambda state: state.update({"model.proj_out.bias": torch.zeros(1)}), "twice"),
        (lambda state: [state.pop(name) for name in list(state) if name.startswith("blocks")], "no Wan at all"),
        (lambda state: state.update({"proj_out.bias": torch.zeros(3)}), "does not fit"),
    ],
)
def test_files_of_something_else(change: Any, said: str) -> None:
    state = weights()
    change(state)
    with pytest.raises(UnsupportedModelError, match=said) as refused:
        load_worldplay(state)
    assert "\n" not in str(refused.value)


def test_a_base_model_is_told_apart() -> None:
    base = {name: weight for name, weight in weights().items() if "prope" not in name and "action" not in name}
    with pytest.raises(UnsupportedModelError, match="without HY-WorldPlay's layers .*get wan_distilled_model/model.pt"):
        load_worldplay(base)
    assert WanConfig.of(wan_names(weights())).layers == LAYERS


@pytest.mark.parametrize("mode", ["vendor", "persistent", "incremental"])
def test_adopted_chunks_are_gone_on_from_as_if_painted_here(model: WorldPlay, prompt: Prompt, mode: str) -> None:
    painted = _walk(_world(model, prompt, mode), 4)
    world = _world(model, prompt, mode)
    world.adopt(torch.cat(painted[:3], 1))
    assert_close("chunk 3", painted[3], world.next_chunk(_noise(3), _cameras()), 1e-6)


def test_a_part_of_a_chunk_cannot_be_adopted(model: WorldPlay, prompt: Prompt) -> None:
    with pytest.raises(ConfigError, match="6 latent frames is not whole chunks"):
        _world(model, prompt).adopt(torch.zeros(1, 6, 48, 4, 4))
