"""HY-WorldPlay in a real ComfyUI: loader, camera, start, sampler and cache, on a tiny random checkpoint with its true names."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg.camera import parse_path
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.camera.pose_files import write_poses
from comfyui_qvg.qvg.camera.poses import camera_poses
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models.worldplay_wan.names import wan_names
from safetensors.torch import load_file, save_file

from . import tiny_worldplay
from .client import Client, Prompt, between, bypassed
from .test_causal_wan import add, changed, psnr_db, record

FRAMES, WIDTH, HEIGHT = 16, 128, 64
TOKENS = (WIDTH // 32) * (HEIGHT // 32)
MODES = ["vendor", "persistent", "incremental"]
EXACT = {"cache": "exact"}
BALANCED = {"cache": "preset", "cache.preset": "balanced", "sink_frames": 0, "recent_frames": 0, "span_frames": 4}
PATH = "w-3,w+right-4,left-6,s-2"


@pytest.fixture(autouse=True, scope="module")
def files(server: Client) -> Path:
    folder = server.base / "models" / "diffusion_models"
    tiny_worldplay.write(folder / "worldplay" / "model.pt")
    save_file(tiny_worldplay.base(), folder / "wan22_base.safetensors")
    save_file({"double_blocks.0.img_attn_prope_proj.weight": torch.zeros(2)}, folder / "model.safetensors")
    return folder


def walk(cache: dict[str, Any] | None = EXACT, frames: int = FRAMES, mode: str = "vendor", path: str = PATH) -> Prompt:
    """The graph; our cache node is in it unless `cache` is None."""
    links = {"noise": "noise", "guider": "guider", "sampler": "sampler", "sigmas": "sigmas"}
    size = {"width": WIDTH, "height": HEIGHT}
    steps: dict[str, tuple[str, dict[str, Any]]] = {
        "loader": ("QVGLoadWorldPlay", {"file": "worldplay/model.pt"}),
        "cache": ("QVGKVCache", {"model": ["loader", 0], **(cache or EXACT)}),
        "prompt": ("TestingPrompt", {"seed": 1, "prompts": 1, "tokens": 12}),
        "camera": ("QVGCameraPath", {"path": path, "frames": frames}),
        "start": (
            "QVGWorldStart",
            {"conditioning": ["prompt", 0], "camera": ["camera", 0], "start": "text", **size},
        ),
        "guider": ("BasicGuider", {"model": ["cache", 0], "conditioning": ["start", 0]}),
        "sigmas": ("QVGTrainedSigmas", {"model": ["cache", 0]}),
        "sampler": ("QVGWorldSampler", {"mode": mode}),
        "noise": ("RandomNoise", {"noise_seed": 5}),
        "sample": ("SamplerCustomAdvanced", {**{name: [at, 0] for name, at in links.items()}, "latent_image": ["start", 1]}),
        "report": ("QVGCacheReport", {"model": ["cache", 0], "latent": ["sample", 0]}),
    }
    prompt = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in steps.items()}
    return bypassed(prompt) if cache is None else prompt


def with_image(prompt: Prompt) -> Prompt:
    prompt = changed(prompt, "start", start="image", vae=["vae", 0], image=["image", 0])
    add(prompt, "vae", "TestingWorldVAE")
    add(prompt, "image", "EmptyImage", width=200, height=90, batch_size=1, color=4477866)
    return prompt


def with_cfg(prompt: Prompt, cfg: float) -> Prompt:
    prompt = copy.deepcopy(prompt)
    add(prompt, "guider", "CFGGuider", model=["cache", 0], positive=["start", 0], negative=["prompt", 0], cfg=cfg)
    return prompt


def said_by(client: Client, prompt: Prompt, name: str) -> str:
    result = client.run(prompt)
    assert result.status == "success", result.messages
    text: str = result.outputs[name]["text"][0]
    return text


def test_the_released_file_and_the_converted_one_are_one_model(client: Client, files: Path) -> None:
    out = files / "worldplay_fp32.safetensors"
    out.unlink(missing_ok=True)
    assert main(["convert", str(files / "worldplay" / "model.pt"), str(out), "--dtype", "fp32"]) == 0
    released, converted = walk(), changed(walk(), "loader", file=out.name)
    assert torch.equal(client.latent(released), client.latent(converted))
    said = said_by(client, released, "loader").splitlines()
    assert said[0] == "worldplay-5b (known by its layers), 106 tensors"
    assert said[1] == "chunks of 4 latent frames, sigmas 1, 0.96, 0.8889, 0.7273, 0, shift 8"
    assert said[2].startswith("weights generator, stored in float32, computed in float32")
    assert "worldplay-5b (known by its metadata)" in said_by(client, converted, "loader")


@pytest.mark.parametrize("mode", MODES)
def test_a_walk_is_repeatable_exact_when_bypassed_and_near_in_two_bits(client: Client, mode: str, record_property: Any) -> None:
    exact = client.latent(walk(mode=mode))
    assert exact.shape == (1, 48, FRAMES, HEIGHT // 16, WIDTH // 16) and exact.isfinite().all()
    client.forget()
    assert torch.equal(exact, client.latent(walk(mode=mode)))
    assert torch.equal(exact, client.latent(walk(None, mode=mode)))
    coded = client.latent(walk(BALANCED, mode=mode))
    assert torch.equal(coded, client.latent(walk(BALANCED, mode=mode)))
    assert torch.equal(coded[:, :, :4], exact[:, :, :4]) and not torch.equal(coded[:, :, 4:8], exact[:, :, 4:8])
    record_property("psnr_db", psnr_db(exact, coded))
    assert psnr_db(exact, coded) > 20


def test_what_is_seen_in_each_mode(client: Client) -> None:
    """Alike as long as the context is one chunk; then all earlier frames anew, or as each was first written."""
    one, two, three = (client.latent(walk(mode=mode)) for mode in MODES)
    assert torch.equal(one[:, :, :4], two[:, :, :4]) and psnr_db(one[:, :, :8], two[:, :, :8]) > 90
    assert psnr_db(two[:, :, :8], three[:, :, :8]) > 90
    for a, b in ((one, two), (two, three), (one, three)):
        assert psnr_db(a[:, :, 8:], b[:, :, 8:]) < 70


def test_retrieval_begins_where_history_is_longer_than_memory(client: Client) -> None:
    seen = len(client.log())
    few = client.latent(walk(frames=28, path="right-10,left-17"))
    lines = re.findall(r"QVG: chunk (\d) of 7 sees (.*?)\x1b?\s*$", client.log()[seen:], re.MULTILINE)
    contexts = [text for _, text in lines]
    assert contexts[:5] == ["no earlier frame", "frames 0-3", "frames 0-7", "frames 0-11", "frames 0-15"]
    assert contexts[5] == "frames 0-3, 8-19"
    everything = client.latent(changed(walk(frames=28, path="right-10,left-17"), "sampler", memory_frames=0))
    assert torch.equal(few[:, :, :20], everything[:, :, :20]) and not torch.equal(few[:, :, 20:], everything[:, :, 20:])


def test_cameras_and_prompt_matter_and_pose_files_say_the_same(client: Client) -> None:
    plain = client.latent(walk())
    assert psnr_db(plain, client.latent(walk(path="s-15"))) < 60
    assert psnr_db(plain, client.latent(changed(walk(), "prompt", seed=2))) < 60
    text = write_poses(Cameras(camera_poses(parse_path(PATH), FRAMES)))
    by_file = changed(walk(), "camera", "QVGCameraPoses", poses=text)
    by_file["camera"]["inputs"] = {"poses": text, "frames": 0}
    assert torch.equal(plain, client.latent(by_file))
    written = walk()
    add(written, "poses", "QVGCameraPoses", poses="", frames=FRAMES, camera=["camera", 0])
    written["start"]["inputs"]["camera"] = ["poses", 0]
    assert torch.equal(plain, client.latent(written))
    chart = changed(walk(), "camera", memory="worldplay-5b")
    assert client.run(chart).outputs["camera"]["images"]


def test_a_prompt_that_changes_on_the_way(client: Client) -> None:
    plain, changing = client.latent(walk()), walk()
    add(changing, "prompt2", "TestingPrompt", seed=2, prompts=1, tokens=12)
    after = {"conditioning": ["prompt", 0], "next_conditioning": ["prompt2", 0], "frame": 40}
    add(changing, "at", "QVGPromptAtFrame", **after)
    changing["start"]["inputs"]["conditioning"] = ["at", 0]
    made = client.latent(changing)
    # Video frame 40 is in the third chunk, of frames 29 to 44.
    assert torch.equal(made[:, :, :8], plain[:, :, :8]) and psnr_db(made[:, :, 8:12], plain[:, :, 8:12]) < 60
    late = changed(changing, "at", frame=61)
    assert "a prompt begins at frame 61, but the video ends with frame 60" in client.run(late).error


def test_a_first_picture_stays_and_is_seen(client: Client) -> None:
    given, made = client.latent(with_image(walk())), client.latent(walk())
    colour = given[0, :3, 0]
    assert torch.allclose(colour, colour.mean((1, 2), keepdim=True).expand_as(colour), atol=1e-4)
    expected = torch.tensor([0x44, 0x53, 0xAA]) / 255 * 2 - 1
    assert torch.allclose(colour.mean((1, 2)), expected, atol=1e-3)
    assert psnr_db(made[:, :, 1:], given[:, :, 1:]) < 60


@pytest.mark.parametrize("mode", MODES)
def test_a_world_is_walked_on_from_where_it_stands(client: Client, mode: str) -> None:
    """The same frames as without the break: the noise is that of a video of the same length. Measured 127 dB or more."""
    whole = walk(mode=mode)
    straight = client.latent(whole)
    later = copy.deepcopy(whole)
    add(later, "first", "TestingFirstFrames", samples=["sample", 0], frames=8)
    add(later, "start2", "QVGWorldStart", **whole["start"]["inputs"] | {"start": "extend", "extend": ["first", 0]})
    later["guider2"] = changed(whole, "guider", conditioning=["start2", 0])["guider"]
    later["sample2"] = changed(whole, "sample", guider=["guider2", 0], latent_image=["start2", 1])["sample"]
    later["report"] = changed(whole, "report", latent=["sample2", 0])["report"]
    add(later, "save", "SaveLatent", samples=["sample2", 0], filename_prefix=f"latents/extend_{mode}")
    add(later, "record", "TestingRecord", report=["report", 0])
    result = client.run(later)
    assert result.status == "success", result.messages
    (file,) = (client.base / "output" / "latents").glob(f"extend_{mode}_*.latent")
    extended = load_file(str(file))["latent_tensor"]
    assert psnr_db(straight[:, :, :8], extended[:, :, :8]) > 120 and psnr_db(straight, extended) > 90
    numbers = json.loads(result.outputs["record"]["text"][0])
    assert numbers["given_frames"] == 8 and numbers["seconds"][:8] == [0] * 8 and numbers["seconds"][8] > 0
    if mode != "vendor":
        bytes_ = numbers["cache_bytes"]
        assert bytes_[8] == 2 * bytes_[8] // 2 > 0 and bytes_[12] * 8 == bytes_[8] * 12


@pytest.mark.parametrize("mode", MODES)
def test_the_report_counts_what_is_remembered(client: Client, mode: str) -> None:
    exact, coded = (record(client, walk(cache, mode=mode)) for cache in (EXACT, BALANCED))
    one = 2 * tiny_worldplay.LAYERS * 256 * TOKENS * 2  # keys and values of a frame, layers of 256 channels, 16 bits
    assert exact["model"] == coded["model"] == "WorldPlay 5B"
    assert exact["exact_bytes"] == coded["exact_bytes"] == [one * (frame // 4 * 4) for frame in range(FRAMES)]
    # The network computes in 32 bits here, and exact keeps that.
    assert exact["cache_bytes"] == [2 * size for size in exact["exact_bytes"]]
    assert coded["components"]["codes"] > 0 == coded["components"]["exact"] and coded["cache_bytes"][4] > 0
    assert exact["left"] == dict.fromkeys(exact["left"], 0) and coded["left"] == dict.fromkeys(coded["left"], 0)
    assert f"mode {mode}: the last chunk sees 12 earlier frames" in coded["text"]


def test_the_vendor_s_storage_is_twice_the_bytes_for_the_same_world(client: Client) -> None:
    twice = changed(walk(), "sampler", storage="vendor")
    assert psnr_db(client.latent(walk()), client.latent(twice)) > 90
    assert record(client, twice)["cache_bytes"] == [2 * size for size in record(client, walk())["cache_bytes"]]


def test_room_is_asked_for_what_a_pass_sees(client: Client) -> None:
    """Core would reserve activations of all frames at once."""
    for mode, most in (("vendor", 12), ("persistent", 12), ("incremental", 4)):
        prompt = between(walk(BALANCED, mode=mode), "TestingMemoryAsked", "")
        shapes = client.said(prompt)["shapes"]
        assert max(shape[2] for shape in shapes) == most == shapes[0][2]


def test_weights_elsewhere_in_fewer_bits_and_loaded_again(client: Client, record_property: Any) -> None:
    plain = client.latent(walk())
    assert torch.equal(plain, client.latent(between(walk(), "TestingPartlyUnloaded", "", megabytes=4.0)))
    assert torch.equal(plain, client.latent(between(walk(), "TestingLoadedAgain", "QVGKVCache")))
    bf16, fp8 = (client.latent(changed(walk(), "loader", dtype=dtype)) for dtype in ("bf16", "fp8_e4m3fn"))
    record_property("psnr_db", [psnr_db(plain, bf16), psnr_db(plain, fp8)])
    assert psnr_db(plain, bf16) > psnr_db(plain, fp8) > 10


def test_a_lora_reaches_the_layers_that_were_added(client: Client) -> None:
    generator, tensors = torch.Generator().manual_seed(3), {}
    names = ["action_embedding.2", "blocks.0.self_attn.o_prope", "blocks.1.self_attn.q"]
    for name in names:
        tensors[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(4, 256, generator=generator)
        tensors[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(256, 4, generator=generator) * 0.1
    folder = client.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "world.safetensors")
    alone = {name: each for name, each in tensors.items() if "o_prope" in name}
    save_file(alone, folder / "projection.safetensors")
    seen, lora = len(client.log()), {"strength_model": 1.0}
    plain = client.latent(walk())
    for file in ("world", "projection"):
        bent = client.latent(between(walk(), "LoraLoaderModelOnly", lora_name=f"{file}.safetensors", **lora))
        assert psnr_db(plain, bent) < 60
    assert "lora key not loaded" not in client.log()[seen:]


def test_compiled_and_other_attention_change_nothing(client: Client) -> None:
    plain = client.latent(walk())
    compiled = client.latent(between(walk(), "TorchCompileModel", "", backend="inductor"))
    assert torch.equal(plain, compiled)
    assert torch.equal(plain, client.latent(with_cfg(walk(), 1.0)))


def test_interrupt_and_failure_free_the_memory_and_keep_chunks(client: Client) -> None:
    plain, seen = client.latent(walk()), len(client.log())
    with client.new_files("output/QVG") as files:
        prompt_id = client.queue(walk(BALANCED, frames=240, mode="incremental"))
        client.until(lambda: "QVG: chunk 3 of 60" in client.log()[seen:], "chunk 3")
        assert client.post("/interrupt", {})[0] == 200
        result = client.wait(prompt_id)
    assert any(kind == "execution_interrupted" for kind, _ in result.messages)
    done = re.search(r"QVG: interrupted after block (\d+) of 60; the cache holds 0 bytes now", client.log()[seen:])
    assert done and len(files) == 1
    kept = load_file(str(files[0]))["latent_tensor"]
    assert kept.shape[2] == 4 * int(done[1]) and kept.isfinite().all()
    seen = len(client.log())
    assert "the lights went out" in client.run(between(walk(BALANCED), "TestingFailing", "", call=11)).error
    assert "QVG: ended by RuntimeError after block 2 of 4; the cache holds 0 bytes now" in client.log()[seen:]
    client.forget()
    assert torch.equal(plain, client.latent(walk()))


def test_a_plan_is_made_for_it(client: Client) -> None:
    prompt = {name: step for name, step in walk(BALANCED).items() if name in ("loader", "cache")}
    size = {"width": WIDTH, "height": HEIGHT, "frames": 61}
    add(prompt, "plan", "QVGPlan", network="self-forcing-1.3b", preset="balanced", vram_gb=12.0, model=["cache", 0], **size)
    assert "WorldPlay 5B" in said_by(client, prompt, "plan")


def test_spans_in_main_memory_are_the_same_world(client: Client) -> None:
    near, away = (
        walk(BALANCED | {"offload": place, "merge_padding": place == "cpu"}, mode="persistent") for place in ("gpu", "cpu")
    )
    assert torch.equal(client.latent(near), client.latent(away))


def test_a_world_merges_nothing(client: Client) -> None:
    said = client.run(walk(BALANCED | {"recent_frames": 3, "merge": 0.99}, mode="incremental")).error
    assert "merge is 0.99, but a world's frames are placed anew and seen through cameras; use merge 0" in said


def bad_graphs() -> dict[str, tuple[Prompt, str]]:
    """Graphs that cannot work, and what is said about them."""
    good = walk(BALANCED)
    split = changed(good, "sample", sigmas=["split", 0])
    add(split, "split", "SplitSigmas", sigmas=["sigmas", 0], step=1)
    easy = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    foreign = bypassed(good)
    add(foreign, "loader", "TestingForeignModel", kind="image")
    add(foreign, "sigmas", "BasicScheduler", model=["loader", 0], scheduler="simple", steps=2, denoise=1.0)
    del foreign["report"]
    add(foreign, "save", "SaveLatent", samples=["sample", 0], filename_prefix="latents/foreign")
    bare = changed(good, "guider", conditioning=["prompt", 0])
    other = copy.deepcopy(good)
    add(other, "camera2", "QVGCameraPath", path="w-3", frames=8)
    add(other, "start2", "QVGWorldStart", **good["start"]["inputs"] | {"camera": ["camera2", 0]})
    other["sample"]["inputs"]["latent_image"] = ["start2", 1]
    loaded, hunyuan = changed(good, "loader", file="wan22_base.safetensors"), changed(good, "loader", file="model.safetensors")
    core = changed(good, "loader", "UNETLoader", unet_name="wan22_native.safetensors", weight_dtype="default")
    small = changed(with_image(good), "vae", "TestingVAE")
    return {
        "base": (
            loaded,
            "is Wan 2.2 5B without HY-WorldPlay's layers; get wan_distilled_model",
        ),
        "8B": (hunyuan, "model.safetensors is HY-WorldPlay on HunyuanVideo 1.5 (8B)"),
        "core's loader": (core, "ComfyUI's own loader takes it for a Wan 2.2; load it with 'Load WorldPlay'"),
        "euler": (
            changed(good, "sampler", "KSamplerSelect", sampler_name="euler"),
            "the sampler is sample_euler, but WorldPlay 5B",
        ),
        "our sampler": (changed(good, "sampler", "QVGSampler"), "the sampler is sample_blocks, but WorldPlay 5B paints a world"),
        "another model": (foreign, "World Sampler walks through worlds, and BaseModel is none"),
        "cfg": (with_cfg(good, 3.0), "cfg is 3.0, but WorldPlay 5B is distilled to need no guidance"),
        "window": (changed(good, "cache", window_frames=16), "which frames a world remembers is chosen on World Sampler"),
        "sigmas": (split, "but must fall from step to step and end at 0: every chunk is finished before the next one begins"),
        "no camera": (bare, "the conditioning holds no camera; put 'World Start' between the prompt and the guider"),
        "two starts": (other, "the latent has 8 frames, but the camera 16; take both from one 'World Start'"),
        "half a chunk": (changed(good, "camera", frames=14), "a world of 14 latent frames is not whole chunks of 4; use 16"),
        "too long": (
            changed(good, "camera", frames=244),
            "walks for 244 latent frames, but a session has at most 240; let it walk for these, 957 video frames, or fewer",
        ),
        "refused length": (changed(good, "camera", beyond="refuse", frames=20), "add 4, or let the path be fitted"),
        "no picture": (
            changed(good, "start", start="image"),
            "start is image, but nothing is connected to image; connect a first",
        ),
        "no world": (changed(good, "start", start="extend"), "start is extend, but nothing is connected to extend"),
        "a picture too many": (
            changed(with_image(good), "start", start="text"),
            "start is text, but image is connected and would be",
        ),
        "vae": (small, "but needed is [1, 48, 1, 4, 8] (HY-WorldPlay 5B) or [1, 32, 1, 4, 8]"),
        "step cache": (between(good, "EasyCache", "", **easy), "EasyCache and LazyCache skip steps"),
        "two prompts": (
            changed(good, "prompt", prompts=2),
            "a step ran the network 2 times, but a world's pass must run it once",
        ),
    }


@pytest.mark.parametrize("name", bad_graphs())
def test_what_cannot_work_gets_a_sentence(client: Client, files: Path, name: str) -> None:
    prompt, sentence = bad_graphs()[name]
    if name == "core's loader":
        save_file(wan_names(tiny_worldplay.state_dict()), files / "wan22_native.safetensors")
    result = client.run(prompt)
    assert result.status == "error" and sentence in result.error, result.messages


@pytest.mark.parametrize(
    ("name", "inputs", "sentence"),
    [
        ("camera", {"path": "w-3,,s-2"}, "part 2 of the camera path, '', is empty"),
        ("camera", {"path": "x-3"}, "has the unknown key 'x'"),
        ("camera", {"path": "right-0.5"}, "has the duration '0.5', which is not a whole number"),
        ("camera", {"path": "w-0"}, "has a duration of 0"),
        ("start", {"width": 100}, "Value 100 smaller than min of 64, or no multiple of 32"),
        ("start", {"width": 0}, "Value 0 smaller than min of 64, or no multiple of 32"),
        ("start", {"height": 640_000}, "Value 640000 bigger than max of 4096"),
        ("start", {"height": "abc"}, "Failed to convert an input value to a INT value"),
        ("sampler", {"memory_frames": 18}, "Value 18 smaller than min of 0, or no multiple of 4"),
    ],
)
def test_typing_mistakes_are_told_before_the_run(client: Client, name: str, inputs: dict[str, Any], sentence: str) -> None:
    code, answer = client.post("/prompt", {"prompt": changed(walk(), name, **inputs)})
    assert sentence in json.dumps(answer), (code, answer)
    (error,) = answer["node_errors"][name]["errors"]
    assert error["extra_info"]["input_name"] in inputs
