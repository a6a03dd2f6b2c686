"""Our WorldPlay on HunyuanVideo 1.5 against the official one's numbers, with its text, its memory, and guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import ConfigError, QVGConfig, UnsupportedModelError
from comfyui_qvg.qvg.camera import parse_path
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.camera.labels import action_labels
from comfyui_qvg.qvg.camera.overlap import FieldOfView
from comfyui_qvg.qvg.camera.poses import camera_poses
from comfyui_qvg.qvg.camera.selection import HUNYUAN_MEMORY
from comfyui_qvg.qvg.models.common.world_memory import StoredOnce, WorldMemory, world_memory
from comfyui_qvg.qvg.models.common.world_schedule import plan_chunk, timesteps
from comfyui_qvg.qvg.models.worldplay_hunyuan import text as text_pass
from comfyui_qvg.qvg.models.worldplay_hunyuan.modules import HunyuanConfig, HunyuanNetwork
from comfyui_qvg.qvg.models.worldplay_hunyuan.names import AROUND, PER_BLOCK, hunyuan_parts
from comfyui_qvg.qvg.models.worldplay_hunyuan.network import WorldPlayHunyuan, load_worldplay_hunyuan, with_condition
from comfyui_qvg.qvg.models.worldplay_hunyuan.text import TextRows, Words, without_padding
from comfyui_qvg.qvg.positions.rope import hunyuan_rope, pairs_apart, rotate
from comfyui_qvg.qvg.sampling.world_hunyuan import Guidance, HunyuanWorld
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .... import golden_worldplay_hunyuan as given
from ....golden_worldplay_hunyuan import CHUNKS, COLS, GUIDANCE, GUIDED_CHUNKS, GUIDED_STEPS, LAYERS, ROWS, golden
from ....helpers import assert_close
from ....rounding import network_error

EXACT = QVGConfig(codec="none")
TWO_BITS = QVGConfig(clusters=16, span_frames=8, sink_frames=0, recent_frames=0, iterations=2)
ROPE = hunyuan_rope(ROWS, COLS)
LAYOUTS = ["once", "vendor"]
TERMS = 4 * given.WIDTH  # of the widest sums, in the feed-forward layers
SINES_OF = (text_pass,)


@pytest.fixture(scope="module")
def model() -> WorldPlayHunyuan:
    return load_worldplay_hunyuan(given.weights())


@pytest.fixture(scope="module")
def texts(model: WorldPlayHunyuan) -> tuple[TextRows, TextRows]:
    """Of the prompt and the negative one."""
    return _texts(model)


def _texts(model: WorldPlayHunyuan) -> tuple[TextRows, TextRows]:
    _, _, prompt, negative = given.inputs()
    return model.read_prompt(_words(prompt)), model.read_prompt(_words(negative))


def _words(states: given.Words) -> Words:
    text = without_padding(states.text, states.text_mask)
    assert text is not None
    return Words(text, without_padding(states.byt5, states.byt5_mask), states.vision)


def _cameras(frames: int = 4 * CHUNKS) -> Cameras:
    return Cameras(camera_poses(parse_path(given.PATH), frames, "again"))


def _memory(model: WorldPlayHunyuan, mode: str = "vendor", layout: str = "once", config: QVGConfig = EXACT) -> WorldMemory:
    spec = model.network.config.cache_spec(ROWS, COLS, 20 if mode == "vendor" else 4, dtype=torch.float32)
    return world_memory(spec, config, ROPE, layout)


def _world(
    model: WorldPlayHunyuan,
    texts: tuple[TextRows, TextRows],
    mode: str = "vendor",
    layout: str = "once",
    config: QVGConfig = EXACT,
    guided: bool = False,
) -> HunyuanWorld:
    rule = HUNYUAN_MEMORY if mode == "vendor" else None
    seen = FieldOfView(dtype=torch.float64)
    world = HunyuanWorld(model, _memory(model, mode, layout, config), texts[0], mode, rule, seen)
    if guided:
        world.steps = timesteps(GUIDED_STEPS, 5.0)
        world.guidance = Guidance(texts[1], _memory(model, mode, layout, config), GUIDANCE)
    return world


def _noise(index: int) -> Tensor:
    return given.inputs()[0].transpose(1, 2)[:, 4 * index : 4 * index + 4]


def _walk(world: HunyuanWorld, chunks: int) -> list[Tensor]:
    image = given.inputs()[1].transpose(1, 2)
    return [world.next_chunk(_noise(index), _cameras(), None if index else image) for index in range(chunks)]


def test_the_text_pass_is_the_official_one(texts: tuple[TextRows, TextRows]) -> None:
    """Of picture, letters and prompt, and of picture and prompt alone. Measured: 3e-6 of the root mean square."""
    for name, rows, tokens in (("text", texts[0], 5 + 4 + 7), ("guided.text", texts[1], 5 + 3)):
        keys, values = rows.layers[LAYERS - 1]
        assert rows.tokens == tokens == keys.shape[2]
        assert_close("keys", pairs_apart(golden()[f"{name}.k"]), keys, 1e-5)
        assert_close("values", golden()[f"{name}.v"], values, 1e-5)
        assert rows.nbytes == LAYERS * 2 * tokens * given.WIDTH * 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_chunk_is_the_official_one(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows], layout: str) -> None:
    """Seven chunks of four steps, the last one on a selected memory; 5e-6 of the chunk's root mean square on one machine."""
    world = _world(model, texts, layout=layout)
    bounds = network_error(lambda model: _walk(_world(model, _texts(model), layout=layout), CHUNKS), model, TERMS, SINES_OF)
    for index, latent in enumerate(_walk(world, CHUNKS)):
        assert_close(f"chunk {index}", golden()[f"latent.{index}"].transpose(1, 2), latent, bounds[index])
    assert world.memory.cache.layout.frames == 20


@pytest.mark.parametrize("layout", LAYOUTS)
def test_guidance_is_the_official_one(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows], layout: str) -> None:
    world = _world(model, texts, layout=layout, guided=True)

    def walk(model: WorldPlayHunyuan) -> list[Tensor]:
        return _walk(_world(model, _texts(model), layout=layout, guided=True), GUIDED_CHUNKS)

    bounds = network_error(walk, model, TERMS, SINES_OF)
    for index, latent in enumerate(_walk(world, GUIDED_CHUNKS)):
        assert_close(f"chunk {index}", golden()[f"guided.latent.{index}"].transpose(1, 2), latent, bounds[index])


def test_first_velocities_are_the_official_ones(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows]) -> None:
    """The first step on noise of the first chunk, the second, and one with a selected memory, on official latents. 1.3e-5 at
    t = 1000 on one machine, from the last bits of the timestep's sinusoid."""
    chosen = (0, 1, CHUNKS - 1)

    def velocity(model: WorldPlayHunyuan, index: int) -> Tensor:
        world = _world(model, _texts(model))
        world.steps = (1000.0, 0.0)
        world.latents = [golden()[f"latent.{earlier}"].transpose(1, 2) for earlier in range(index)]
        world.image = image = given.inputs()[1].transpose(1, 2)
        return _noise(index) - world.next_chunk(_noise(index), _cameras(), None if index else image)

    bounds = network_error(lambda model: [velocity(model, index) for index in chosen], model, TERMS, SINES_OF)
    for index, bound in zip(chosen, bounds, strict=True):
        assert_close(f"chunk {index}", golden()[f"velocity.{index}"].transpose(1, 2), velocity(model, index), bound)


def test_the_context_pass_stores_what_the_official_one_does(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows]) -> None:

    def stored(model: WorldPlayHunyuan) -> list[Tensor]:
        world = _world(model, _texts(model), layout="vendor")
        _walk(world, 2)
        pair = world.memory.cache.layers[LAYERS - 1].state.history[0]
        return [x.values[:, :, :: given.MEMORY_STRIDE] for x in pair]

    keys, values = stored(model)
    bounds = network_error(stored, model, TERMS, SINES_OF)
    official_k, official_v = golden()["memory.k"], golden()["memory.v"]  # both attentions' one behind another in the batch
    assert_close("keys", torch.cat([pairs_apart(half) for half in official_k.chunk(2)], -1), keys, bounds[0])
    assert_close("values", torch.cat(official_v.chunk(2), -1), values, bounds[1])


def test_a_text_stays_where_the_world_began(
    model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official code leaves a text's keys and values as they are in the world of the first camera. A world that is centred on
    the chunk's own camera has to move them along."""
    right = _walk(_world(model, texts), 2)[1]
    monkeypatch.setattr(StoredOnce, "_joint_for_cameras", lambda self, joint: joint)
    wrong = _walk(_world(model, texts), 2)[1]
    assert float((wrong - right).square().mean().sqrt() / right.square().mean().sqrt()) > 5e-3


def test_text_picture_history_cameras_and_labels_matter(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows]) -> None:
    """Else the tests above could pass by leaving them out. Sizes of a mistake, of the chunk's root mean square."""
    right = _walk(_world(model, texts), 2)
    still = Cameras(_cameras().poses[:1].repeat(4 * CHUNKS, 0))
    image = given.inputs()[1].transpose(1, 2)

    def chunk(rows: TextRows, picture: Tensor, shown: Cameras, history: Tensor) -> Tensor:
        world = _world(model, (rows, rows))
        world.latents, world.image = [history], picture
        return world.next_chunk(_noise(1), shown)

    assert_close("the same", right[1], chunk(texts[0], image, _cameras(), right[0]), 1e-6)
    for wrong in (
        chunk(texts[1], image, _cameras(), right[0]),
        chunk(texts[0], 0 * image, _cameras(), right[0]),
        chunk(texts[0], image, still, right[0]),
        chunk(texts[0], image, _cameras(), right[0].flip(1)),
    ):
        assert float((wrong - right[1]).square().mean().sqrt() / right[1].square().mean().sqrt()) > 1e-3


@pytest.mark.parametrize("mode", ["persistent", "incremental"])
def test_both_layouts_hold_the_same_world(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows], mode: str) -> None:
    once, vendor = (_walk(_world(model, texts, mode, layout), 4) for layout in LAYOUTS)
    for index, (one, other) in enumerate(zip(once, vendor, strict=True)):
        assert_close(f"chunk {index}", other, one, 2e-5)


class _Uncached:
    """Both attentions of one pass over everything and the text, with a mask: no memory at all."""

    def __init__(self, model: WorldPlayHunyuan, allowed: Tensor, frames: int):
        self.allowed = allowed
        memory = _memory(model, layout="vendor")
        memory._cameras = _cameras()
        self.projector = memory._projector(range(frames), range(frames))
        self.rotation = ROPE.rotation(torch.tensor([(frame, 0, 0) for frame in range(frames)]))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        rotated = (rotate(q, self.rotation), rotate(k, self.rotation), v)
        mask = torch.nn.functional.pad(self.allowed, (text[0].shape[2], 0), value=True)
        out = []
        for queries, keys, values in (rotated, self.projector.block(q, k, v)):
            rows = (torch.cat([text[0], keys], 2), torch.cat([text[1], values], 2))
            out.append(scaled_dot_product_attention(queries, *rows, attn_mask=mask))
        return torch.cat([out[0], self.projector.leave(out[1])], -1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["vendor", "incremental"])
def test_cached_equals_uncached(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows], mode: str, layout: str) -> None:
    """Context frames see what their mode lets them see and the text, the chunk's frames see everything."""
    index, image = 2, given.inputs()[1].transpose(1, 2)
    x = with_condition(torch.cat([golden()[f"latent.{chunk}"].transpose(1, 2) for chunk in (0, 1, 2)], 1), [*range(12)], image)
    cameras, labels = _cameras(), torch.from_numpy(action_labels(_cameras().poses[:12]))[None]
    with _memory(model, mode, layout) as memory, torch.inference_mode():
        for chunk in range(1, index + 1):
            plan = plan_chunk(chunk, mode)
            memory.begin_context(plan, cameras)
            frames = list(plan.encode)
            model.record(x[:, frames], torch.full((1, len(frames)), 14.0), texts[0], memory, labels[:, frames])
        memory.begin_chunk(plan, cameras)
        cached = model(x[:, 8:], torch.full((1, 4), 625.0), texts[0], memory.attend, labels[:, 8:])
        t = torch.tensor([[14.0] * 8 + [625.0] * 4])
        uncached = model(x, t, texts[0], _Uncached(model, _mask(mode), 12).attend, labels)[:, 8:]
    assert_close("velocity", uncached, cached, 2e-5)


def _mask(mode: str) -> Tensor:
    """[S, S]: which chunk's tokens (rows) see which. Of three chunks the last is being painted."""
    chunks = torch.tensor([[1, mode == "vendor", 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    tokens = 4 * ROPE.tokens_per_frame
    return chunks.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_bits(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows], layout: str) -> None:
    """The codec runs, the bytes are the predicted ones, guidance takes a second memory, the world stays near the exact one."""
    world = _world(model, texts, "persistent", layout, TWO_BITS, guided=True)
    latents, exact = _walk(world, 4), _walk(_world(model, texts, "persistent", layout, guided=True), 4)
    assert world.guidance is not None
    for cache in (world.memory.cache, world.guidance.memory.cache):
        cache.verify_encoded()
        assert cache.nbytes() == cache.spec.predict(TWO_BITS, 12, codebooks=cache.codebooks())
    errors = [float((one - other).norm() / other.norm()) for one, other in zip(latents, exact, strict=True)]
    assert max(errors[:2]) < 1e-6 and 1e-3 < errors[-1] < 0.5  # nothing is encoded before there are two chunks


def test_vendor_mode_at_two_bits(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows]) -> None:
    """The whole context of 20 frames is one span, made anew for every chunk."""
    config = TWO_BITS.with_changes(span_frames=20)
    world = _world(model, texts, config=config)
    _walk(world, 7)
    cache = world.memory.cache
    cache.verify_encoded()
    assert cache.layout.spans == (20,)
    assert cache.nbytes() == cache.spec.predict(config, 20, codebooks=cache.codebooks())


@pytest.mark.parametrize("guided", [False, True])
def test_a_chunk_broken_off_is_painted_again(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows], guided: bool) -> None:
    """After its context pass and a step; neither is counted twice."""
    for mode in ("vendor", "persistent"):
        whole = _walk(_world(model, texts, mode, guided=guided), 3)
        world, passes = _world(model, texts, mode, guided=guided), iter(range(2))
        _walk(world, 2)
        with pytest.raises(StopIteration):
            world.next_chunk(_noise(2), _cameras(), interrupt=lambda: next(passes))  # noqa: B023 (used at once)
        torch.testing.assert_close(world.next_chunk(_noise(2), _cameras()), whole[2], rtol=0, atol=0)


def test_breaking_off_between_two_memories(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows]) -> None:
    """The one that was finished is not written twice, the other one not forgotten."""
    whole = _walk(_world(model, texts, "persistent", guided=True), 3)
    world = _world(model, texts, "persistent", guided=True)
    _walk(world, 2)
    assert world.guidance is not None

    def fail(*given: object) -> None:
        raise KeyboardInterrupt

    world.memory.begin_context, begin = fail, world.memory.begin_context  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        world.next_chunk(_noise(2), _cameras())
    assert (world.guidance.memory.cache.frames_committed, world.memory.cache.frames_committed) == (8, 4)
    world.memory.begin_context = begin  # type: ignore[method-assign]
    torch.testing.assert_close(world.next_chunk(_noise(2), _cameras()), whole[2], rtol=0, atol=0)


def test_a_world_goes_on_from_frames_painted_elsewhere(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows]) -> None:
    for mode in ("vendor", "incremental"):
        whole, world = _walk(_world(model, texts, mode), 3), _world(model, texts, mode)
        world.adopt(torch.cat(whole[:2], 1))
        world.image = given.inputs()[1].transpose(1, 2)
        assert_close(mode, whole[2], world.next_chunk(_noise(2), _cameras()), 1e-6)


def test_one_memory_for_two_texts_is_refused(model: WorldPlayHunyuan, texts: tuple[TextRows, TextRows]) -> None:
    memory = _memory(model)
    with pytest.raises(ConfigError, match="one memory"):
        HunyuanWorld(model, memory, texts[0], guidance=Guidance(texts[1], memory, 6.0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": torch.zeros(1, 0, given.TEXT)}, r"text states are \[1, 0, 64\]"),
        ({"text": torch.zeros(2, 3, given.TEXT)}, "one prompt at a time"),
        ({"byt5": torch.zeros(1, 3, 4)}, r"byt5 states are \[1, 3, 4\]"),
        ({"vision": torch.zeros(3, given.VISION)}, "1152 channels"),
    ],
)
def test_words_of_another_model(model: WorldPlayHunyuan, change: dict[str, Tensor], said: str) -> None:
    words = replace(_words(given.inputs()[2]), **change)
    with pytest.raises(ConfigError, match=said):
        model.read_prompt(words)


def test_names(model: WorldPlayHunyuan) -> None:
    official = given.weights()
    parts = hunyuan_parts({f"model.diffusion_model.{name}": weight for name, weight in official.items()})
    assert parts.keys() == model.network.state_dict().keys()
    whole = {name: torch.cat(tensors) if len(tensors) > 1 else tensors[0] for name, tensors in parts.items()}
    assert {name: len(tensors) for name, tensors in hunyuan_parts(whole).items()} == dict.fromkeys(whole, 1)
    assert len(official) == 34 * LAYERS + AROUND and len(parts) == PER_BLOCK * LAYERS + AROUND
    with torch.device("meta"):
        full = HunyuanNetwork().state_dict()
    assert len(full) == PER_BLOCK * 54 + AROUND == 1473 and len(given.shapes(54)) == 34 * 54 + AROUND == 1905
    extra = [weight.numel() for name, weight in full.items() if "prope" in name]
    assert sum(extra) == pytest.approx(226.6e6, rel=0.001)
    assert sum(weight.numel() for weight in full.values()) == pytest.approx(8.56e9, rel=0.001)
    assert HunyuanConfig.of({name: tensors[0] for name, tensors in parts.items()}) == model.network.config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("double_blocks.1.img_attn_prope_proj.weight"), "without HY-WorldPlay's .*1.img_attn_prope_proj"),
        (lambda state: state.pop("action_in.mlp.2.bias"), "lacks 'action_in.out_layer.bias'"),
        (lambda state: state.pop("double_blocks.0.img_mlp.fc1.bias"), "146 weights, but HY-WorldPlay of 3 blocks has 147"),
        (lambda state: state.pop("double_blocks.0.txt_attn_k.bias"), "has q, v alone of 'double_blocks.0.txt_attn.qkv.bias'"),
        (lambda state: state.update(extra=torch.zeros(1)), "148 weights"),
        (lambda state: state.update({"transformer.img_in.proj.bias": torch.zeros(1)}), "twice"),
        (lambda state: [state.pop(name) for name in list(state) if name.startswith("double")], "no HunyuanVideo at all"),
        (lambda state: state.update({"final_layer.linear.bias": torch.zeros(3)}), "does not fit"),
        (lambda state: state.pop("vision_in.proj.0.weight"), "146 weights"),
    ],
)
def test_files_of_something_else(change: Any, said: str) -> None:
    state = given.weights()
    change(state)
    with pytest.raises(UnsupportedModelError, match=said) as refused:
        load_worldplay_hunyuan(state)
    assert "\n" not in str(refused.value)


def test_a_base_model_is_told_apart() -> None:
    base = {name: weight for name, weight in given.weights().items() if "prope" not in name and "action" not in name}
    with pytest.raises(UnsupportedModelError, match="without HY-WorldPlay's layers .*get the file in ar_distilled_action_model"):
        load_worldplay_hunyuan(base)
