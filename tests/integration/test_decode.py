"""Decode and Save Video in a real ComfyUI: the pictures, the memory, the files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from comfyui_qvg.qvg.models.common.video_decoder import WAN_2_1, picture_bytes, working_bytes
from PIL import Image

from . import tiny_vae, tiny_wan
from .client import Client, Prompt, Result
from .test_causal_wan import BALANCED, native


def graph(shape: str = "1,16,5,8,8", kind: str = "wan 2.1", seed: int = 1, **inputs: Any) -> Prompt:
    """A random latent into our node."""
    links = {"samples": ["latent", 0], "vae": ["vae", 0]}
    return {
        "latent": {"class_type": "TestingLatent", "inputs": {"shape": shape, "seed": seed}},
        "vae": {"class_type": "TestingAnyVAE", "inputs": {"kind": kind}},
        "save": {
            "class_type": "QVGSaveVideo",
            "inputs": {**links, "fps": 16.0, "filename_prefix": "QVG/video", "crf": 1, **inputs},
        },
    }


def decoded(client: Client, shape: str, kind: str, tile: int = 0, unload: bool = False) -> dict[str, Any]:
    """What TestingDecode says of the pack's pieces and core's."""
    prompt = graph(shape, kind)
    prompt["save"] = {
        "class_type": "TestingDecode",
        "inputs": {"samples": ["latent", 0], "vae": ["vae", 0], "tile": tile, "unload": unload},
    }
    result = client.run(prompt)
    assert result.status == "success", result.messages
    said: dict[str, Any] = json.loads(result.outputs["save"]["text"][0])
    return said


def files(client: Client, result: Result) -> list[Path]:
    """What the node shows, which must be there."""
    assert result.status == "success", result.messages
    shown = result.outputs["save"]["images"]
    paths = [client.base / "output" / each["subfolder"] / each["filename"] for each in shown]
    assert all(path.is_file() for path in paths)
    return paths


def pictures(path: Path) -> Any:
    """[n, H, W, 3] uint8"""
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *(("wan 2.1", f"1,16,{frames},9,13") for frames in (1, 2, 3, 8)),
        *(("wan 2.2", f"1,48,{frames},4,6") for frames in (1, 2, 5)),
        ("pictures", "5,4,8,12"),
        ("all at once", "1,16,5,8,12"),
    ],
)
def test_pictures_are_those_of_core_bit_for_bit(client: Client, kind: str, shape: str) -> None:
    said = decoded(client, shape, kind)
    assert said["equal"]
    if len(said["pieces"]) > 1:
        assert said["moves"] > 0.05  # one picture after the other differs: a seam would show


@pytest.mark.parametrize(("kind", "shape", "tile"), [("wan 2.1", "1,16,4,18,20", 64), ("wan 2.2", "1,48,3,10,12", 128)])
def test_tiles_are_blended_as_core_blends_them(client: Client, kind: str, shape: str, tile: int) -> None:
    """Measured 0 for Wan 2.1 and 2.1e-6 for the full Wan 2.2."""
    said = decoded(client, shape, kind, tile)
    assert said["difference"] < 1e-5


def test_weights_that_leave_the_device_in_between_change_nothing(client: Client) -> None:
    said = decoded(client, "1,16,5,8,8", "wan 2.1", unload=True)
    assert said["equal"] and said["cast layers"] > 0


def test_memory_does_not_grow_with_the_video(client: Client) -> None:
    short, long = (decoded(client, f"1,16,{frames},8,8", "wan 2.1") for frames in (5, 41))
    assert long["peak"] == short["peak"] and long["core's peak"] > short["core's peak"]
    assert [frames for frames, _ in long["pieces"]] == [1] + 20 * [2]


def test_memory_is_what_the_plan_says(client: Client) -> None:
    """The real one's width in float32; what is asked of ComfyUI's memory manager is the same number."""
    said = decoded(client, "1,16,5,12,16", "wan 2.1 as wide as it is")
    plan = working_bytes(128, 96, WAN_2_1, value_bytes=4)
    assert 0.8 * plan <= said["peak"] <= plan + picture_bytes(128, 96)
    assert said["asked"] == [plan] and said["equal"]


def test_the_file_has_the_pictures_the_rate_and_the_workflow(client: Client) -> None:
    prompt = graph(fps=12.5)
    prompt["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": ["latent", 0], "vae": ["vae", 0]}}
    prompt["images"] = {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "decoded"}}
    page = {"extra_pnginfo": {"workflow": {"nodes": ["as it is on the page"]}}}
    code, answer = client.post("/prompt", {"prompt": prompt, "extra_data": page})
    assert code == 200 and not answer["node_errors"], answer
    result = client.wait(answer["prompt_id"])
    (path,) = files(client, result)
    with av.open(str(path)) as video:
        assert json.loads(video.metadata["prompt"]) == prompt
        assert json.loads(video.metadata["workflow"]) == page["extra_pnginfo"]["workflow"]
        assert video.streams.video[0].average_rate == 12.5 and video.streams.video[0].codec_context.pix_fmt == "yuv420p"
    shown = pictures(path)
    assert shown.shape == (17, 64, 64, 3)
    originals = sorted((client.base / "output").glob("decoded_*.png"))[-17:]
    exact = np.stack([np.asarray(Image.open(each)) for each in originals])
    # Colour at half the resolution takes what it takes of noise; a picture in another's place would be 10 times as far.
    error = np.abs(shown.astype(int) - exact).mean()
    assert error < 0.4 * np.abs(shown[1:].astype(int) - exact[:-1]).mean()


def test_the_video_goes_on_to_core_s_nodes(client: Client) -> None:
    prompt = graph("2,16,3,8,8", filename_prefix="QVG/onwards")
    prompt["parts"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["save", 0]}}
    prompt["images"] = {"class_type": "SaveImage", "inputs": {"images": ["parts", 0], "filename_prefix": "onwards"}}
    again = {"video": ["save", 0], "filename_prefix": "again", "format": "auto", "codec": "auto"}
    prompt["again"] = {"class_type": "SaveVideo", "inputs": again}
    result = client.run(prompt)
    both = files(client, result)
    assert len(both) == 2 and len(result.outputs["images"]["images"]) == 2 * 9
    copies = [client.base / "output" / each["subfolder"] / each["filename"] for each in result.outputs["again"]["images"]]
    for path, copy in zip(both, copies, strict=True):
        assert (pictures(path) == pictures(copy)).all()
    assert (pictures(both[0]) != pictures(both[1])).any()


def test_sides_that_are_odd_get_a_copy_of_the_last_row(client: Client) -> None:
    prompt = graph("1,3,5,31,47")
    prompt["vae"] = {"class_type": "QVGLoadDemoWorld", "inputs": {}}
    prompt["save"]["inputs"]["vae"] = ["vae", 1]
    (path,) = files(client, client.run(prompt))
    assert pictures(path).shape == (5, 32, 48, 3)


def test_without_memory_for_whole_pictures_it_begins_again_in_tiles(client: Client) -> None:
    prompt = graph("1,16,6,36,40", filename_prefix="QVG/tiles")
    prompt["small"] = {"class_type": "TestingSmallMemory", "inputs": {"vae": ["vae", 0], "latent_pixels": 32}}
    prompt["save"]["inputs"]["vae"] = ["small", 0]
    seen = len(client.log())
    (path,) = files(client, client.run(prompt))
    log = client.log()[seen:]
    assert "no memory to decode whole pictures; begins again in tiles of 256 pixels that share 64 with their neighbours" in log
    assert pictures(path).shape == (21, 288, 320, 3) and path.name == "tiles_00001_.mp4"
    prompt["small"]["inputs"]["latent_pixels"] = 8
    result = client.run(prompt)
    assert result.status == "error" and "there is no memory left" in result.error
    assert [each.name for each in path.parent.glob("tiles*")] == ["tiles_00001_.mp4"]


def wait_until_written(folder: Path, size: int) -> None:
    """Until the video that is being made in `folder` has so many bytes."""
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size > size for file in folder.glob(".qvg-unfinished-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_another_comfyui_that_takes_the_same_name(client: Client) -> None:
    """As one does that writes to the same output folder and has ended first."""
    queued, folder = client.queue(graph("1,16,200,8,8", filename_prefix="QVG/taken")), client.base / "output" / "QVG"
    wait_until_written(folder, 40_000)
    (folder / "taken_00001_.mp4").write_bytes(b"theirs")
    (path,) = files(client, client.wait(queued))
    assert path.name == "taken_00002_.mp4" and len(pictures(path)) == 797
    assert (folder / "taken_00001_.mp4").read_bytes() == b"theirs" and len(list(folder.glob("taken*"))) == 2


def test_an_interrupt_leaves_nothing(client: Client) -> None:
    prompt = graph("1,16,4001,8,8", filename_prefix="QVG/broken")
    seen, queued = len(client.log()), client.queue(prompt)
    folder = client.base / "output" / "QVG"
    wait_until_written(folder, 300_000)
    assert client.post("/interrupt", {})[0] == 200
    result = client.wait(queued)
    assert any(kind == "execution_interrupted" for kind, _ in result.messages)
    assert "of 16001 pictures; nothing of broken_00001_.mp4 is left" in client.log()[seen:]
    assert list(folder.glob("broken*")) == list(folder.glob(".qvg-unfinished-*")) == []
    assert files(client, client.run(graph(filename_prefix="QVG/after")))


def test_a_full_disk_leaves_nothing(client: Client) -> None:
    prompt = graph("1,16,40,8,8", filename_prefix="QVG/full")
    prompt["limit"] = {"class_type": "TestingFileLimit", "inputs": {"samples": ["latent", 0], "bytes": 120_000}}
    prompt["save"]["inputs"]["samples"] = ["limit", 0]
    try:
        result = client.run(prompt)
    finally:
        lift = graph()
        lift["save"] = {"class_type": "TestingFileLimit", "inputs": {"samples": ["latent", 0], "bytes": -1}}
        lift["say"] = {"class_type": "TestingSay", "inputs": {"samples": ["save", 0]}}
        assert client.run(lift).status == "success"
    assert result.status == "error" and "the disk is full: the video" in result.error and "nothing is left of it" in result.error
    assert list((client.base / "output" / "QVG").glob("full*")) == []


def test_a_finished_video_stays_when_the_next_one_of_the_batch_fails(client: Client) -> None:
    prompt = graph("2,16,2,8,8", filename_prefix="QVG/batch")
    prompt["small"] = {"class_type": "TestingSmallMemory", "inputs": {"vae": ["vae", 0], "latent_pixels": 4}}
    prompt["save"]["inputs"]["vae"] = ["small", 0]
    result = client.run(prompt)
    assert result.status == "error" and "there is no memory left" in result.error
    (path,) = (client.base / "output" / "QVG").glob("batch*")
    assert path.name == "batch_00001_.mp4" and len(pictures(path)) == 5


@pytest.mark.parametrize(
    ("shape", "kind", "sentence"),
    [
        (
            "1,48,3,8,8",
            "wan 2.1",
            "the latent has 48 channels, but this VAE decodes 16; connect the VAE that belongs to",
        ),
        ("1,16,3,8,8", "wan 2.2", "the latent has 16 channels, but this VAE decodes 48"),
        ("1,16,8,8", "wan 2.1", "the latent is [1, 16, 8, 8], but a video's is [batch, channels, frames, height, width]"),
        ("1,16,0,8,8", "wan 2.1", "the latent is [1, 16, 0, 8, 8], but a video's"),
        ("1,8,64", "pictures", "the latent is [1, 8, 64], but a video's"),
    ],
)
def test_latents_of_something_else_get_a_sentence(client: Client, shape: str, kind: str, sentence: str) -> None:
    result = client.run(graph(shape, kind))
    assert result.status == "error" and sentence in result.error


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        ("../elsewhere/video", "filename_prefix '../elsewhere/video' leads out of the output folder"),
        ("猫" * 82, "bytes (File name too long); use a shorter filename_prefix"),
    ],
)
def test_names_that_cannot_be_are_refused_before_anything_runs(client: Client, prefix: str, sentence: str) -> None:
    code, answer = client.post("/prompt", {"prompt": graph(filename_prefix=prefix)})
    assert code == 400 and sentence in answer["node_errors"]["save"]["errors"][0]["details"]


def linked(prefix: str) -> Prompt:
    """The name comes out of a node, and the latent out of one that says when it runs."""
    prompt = graph(filename_prefix=["name", 0])
    prompt["name"] = {"class_type": "PrimitiveString", "inputs": {"value": prefix}}
    prompt["record"] = {"class_type": "TestingRan", "inputs": {"samples": ["latent", 0]}}
    prompt["save"]["inputs"]["samples"] = ["record", 0]
    return prompt


def test_a_linked_name_that_cannot_be_is_refused_before_the_latent_is_made(client: Client) -> None:
    seen = len(client.log())
    result = client.run(linked("x" * 250))
    assert result.status == "error" and "use a shorter filename_prefix" in result.error
    assert "testing: made the latent" not in client.log()[seen:]
    (path,) = files(client, client.run(linked("QVG/linked %date:yyyy%")))
    assert path.name == f"linked {time.strftime('%Y')}_00001_.mp4" and "testing: made the latent" in client.log()[seen:]


def test_placeholders_are_filled_in_for_programs(client: Client) -> None:
    today = time.strftime("%Y-%m-%d")
    prompt = graph(filename_prefix="QVG/%date:yyyy-MM-dd%/%Noise.shape% %save.crf% %width%x%height% %Nobody.x%")
    prompt["latent"]["_meta"] = {"title": "Noise"}
    seen = len(client.log())
    (path,) = files(client, client.run(prompt))
    assert path.parent.name in (today, time.strftime("%Y-%m-%d"))
    assert path.name == "1,16,5,8,8 %save.crf% 64x64 %Nobody.x%_00001_.mp4"
    assert "filename_prefix has %save.crf%, %Nobody.x%, which is no input of a node" in client.log()[seen:]


def test_names_that_save_video_can_give_are_given(client: Client) -> None:
    prompt = graph(filename_prefix="猫" * 80)
    prompt["again"] = {
        "class_type": "SaveVideo",
        "inputs": {"video": ["save", 0], "filename_prefix": "犬" * 80, "format": "auto", "codec": "auto"},
    }
    (path,) = files(client, client.run(prompt))
    assert path.name == "猫" * 80 + "_00001_.mp4" and (path.parent / ("犬" * 80 + "_00001_.mp4")).is_file()


@pytest.mark.parametrize("prefix", ["QVG/12:30 %date:hh:mm% <a>|?*", "QVG\\aux\\con.x", "QVG/dots./x"])
def test_no_name_has_what_windows_refuses(client: Client, prefix: str) -> None:
    (path,) = files(client, client.run(graph(filename_prefix=prefix)))
    for part in path.relative_to(client.base / "output").parts:
        assert not set(part) & set('<>:"|?*\\') and part.split(".")[0].lower() not in ("aux", "con") and part[-1] not in ". "


def test_the_cache_is_free_when_decoding_begins(client: Client) -> None:
    """Loaded by core's own loaders, run whole: sampler, decoder, file."""
    for folder, write, name in (("diffusion_models", tiny_wan.write, "causal"), ("vae", tiny_vae.write, "tiny_wan_vae")):
        (client.base / "models" / folder).mkdir(parents=True, exist_ok=True)
        write(client.base / "models" / folder / f"{name}.safetensors")
    prompt = native(BALANCED, frames=13)
    prompt["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_wan_vae.safetensors"}}
    prompt["watch"] = {"class_type": "TestingWatch", "inputs": {"vae": ["vae", 0], "model": ["cache", 0]}}
    save = graph()["save"]["inputs"] | {"samples": ["sample", 0], "vae": ["watch", 0]}
    prompt["save"] = {"class_type": "QVGSaveVideo", "inputs": save}
    del prompt["report"]
    result = client.run(prompt)
    (path,) = files(client, result)
    assert len(pictures(path)) == 49
    said = graph()
    said["save"] = {"class_type": "TestingSay", "inputs": {"samples": ["latent", 0]}}
    alive = json.loads(client.run(said).outputs["save"]["text"][0])["alive while decoding"]
    assert alive == [{}] * 7
