"""What is given to a run is used, or named: pictures of any kind, and what a conditioning carries beside its prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg.camera import parse_path
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.camera.pose_files import write_poses
from comfyui_qvg.qvg.camera.poses import camera_poses

from . import tiny_vae, tiny_wan, tiny_worldplay
from .client import Client, Prompt, node, workflow
from .test_causal_sampler import ours, with_image
from .test_causal_wan import COLS, EXACT, ROWS, add, changed, native
from .test_world import walk
from .test_world import with_image as begun

SIZE = {"width": 16 * COLS, "height": 16 * ROWS}
CAUSAL = "and give a first picture to 'Causal Video Start' or ARVideoI2V"


@pytest.fixture(autouse=True, scope="module")
def files(server: Client) -> None:
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    tiny_wan.write(folder / "causal.safetensors")
    tiny_worldplay.write(folder / "worldplay" / "model.pt")
    (server.base / "models" / "vae").mkdir(exist_ok=True)
    tiny_vae.write(server.base / "models" / "vae" / "tiny_wan_vae.safetensors")


def graphs() -> dict[str, tuple[Prompt, str, str]]:
    """A graph, where its prompt goes to, and what its model is called."""
    demo = workflow(frames=6)
    return {
        "our loop": (ours(EXACT, frames=6), "guider", "causal Wan"),
        "core's loop": (native(EXACT, frames=6), "guider", "causal Wan"),
        "world": (walk(frames=4), "guider", "WorldPlay 5B"),
        "demo": (demo, node(demo, "BasicGuider"), "demo world"),
    }


def behind(graph: str, kind: str, **inputs: Any) -> tuple[Prompt, str]:
    """With a node behind the prompt."""
    prompt, guider, model = graphs()[graph]
    source = prompt[guider]["inputs"]["conditioning"]
    prompt = changed(prompt, guider, conditioning=["behind", 0])
    add(prompt, "behind", kind, conditioning=source, **inputs)
    return prompt, model


@pytest.mark.parametrize("graph", graphs())
@pytest.mark.parametrize("key", ["concat_latent_image", "clip_vision_output", "reference_latents", "vace_frames"])
def test_pictures_that_a_network_does_not_read_are_refused(client: Client, graph: str, key: str) -> None:
    prompt, model = behind(graph, "TestingCarries", key=key)
    error = client.run(prompt).error.strip()
    assert error.startswith("the conditioning carries ") and f"({key}), which {model} does not read" in error
    assert error.count("\n") == 0 and ("give a first picture to" in error or "begin with 'Demo World Start'" in error)


@pytest.mark.parametrize("graph", ["our loop", "core's loop"])
def test_a_start_image_through_wan_image_to_video_is_refused(client: Client, graph: str) -> None:
    """The usual graph of Wan, its model changed for a causal one: a video that has nothing to do with the picture, before."""
    prompt, guider, _ = graphs()[graph]
    add(prompt, "vae", "VAELoader", vae_name="tiny_wan_vae.safetensors")
    add(prompt, "image", "EmptyImage", **SIZE, batch_size=1, color=4477866)
    source = prompt[guider]["inputs"]["conditioning"]
    inputs: dict[str, Any] = {"positive": source, "negative": source, "vae": ["vae", 0], "start_image": ["image", 0]}
    add(prompt, "to video", "WanImageToVideo", **inputs, **SIZE, length=21, batch_size=1)
    prompt = changed(prompt, guider, conditioning=["to video", 0])
    prompt = changed(prompt, "sample", latent_image=["to video", 2])
    error = client.run(prompt).error.strip()
    assert error.startswith("the conditioning carries a start image (concat_latent_image), which causal Wan does not read")
    assert error.endswith(CAUSAL)
    del prompt["to video"]["inputs"]["start_image"]
    assert client.run(prompt).status == "success"


@pytest.mark.parametrize("graph", graphs())
def test_a_range_of_steps_is_refused_by_its_name(client: Client, graph: str) -> None:
    prompt, model = behind(graph, "ConditioningSetTimestepRange", start=0.0, end=0.9)
    error = client.run(prompt).error.strip()
    assert error.startswith(f"the prompt holds from 0.0 to 0.9 of the steps alone, but {model} needs it at every step")
    assert "step caches" not in error
    whole, _ = behind(graph, "ConditioningSetTimestepRange", start=0.0, end=1.0)
    assert client.run(whole).status == "success"


@pytest.mark.parametrize("graph", graphs())
def test_parts_of_the_picture_are_refused(client: Client, graph: str) -> None:
    prompt, model = behind(graph, "ConditioningSetMask", mask=["mask", 0], strength=1.0, set_cond_area="default")
    add(prompt, "mask", "SolidMask", value=1.0, **SIZE)
    assert f"the prompt holds for a part of the picture (mask), but {model}" in client.run(prompt).error
    area, _ = behind(graph, "ConditioningSetArea", width=64, height=64, x=0, y=0, strength=1.0)
    assert f"the prompt holds for a part of the picture (area), but {model}" in client.run(area).error


def test_what_else_is_not_read_is_named(client: Client) -> None:
    prompt, _ = behind("our loop", "TestingCarries", key="seconds_total")
    seen = len(client.log())
    assert client.run(prompt).status == "success"
    assert "QVG: causal Wan does not read this of its conditioning: seconds_total" in client.log()[seen:]


PICTURES = {
    "grey": ([1, 40, 60, 1], []),
    "grey and alpha": ([1, 40, 60, 2], ["its alpha is left out"]),
    "alpha": ([1, 40, 60, 4], ["its alpha is left out"]),
    "three": ([3, 64, 96, 3], ["the first of 3 pictures is taken, 2 left out"]),
    "lying strip": ([1, 1, 3000, 3], []),
    "standing strip": ([1, 3000, 1, 3], []),
    "one pixel": ([1, 1, 1, 3], []),
    "no channels": ([64, 96], None),
    "five channels": ([1, 64, 96, 5], None),
    "none": ([0, 64, 96, 3], None),
    "NaN": ([1, 64, 96, 3], None),
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("start", ["video", "world"])
def test_pictures_of_any_shape_and_channels(client: Client, start: str, kind: str) -> None:
    shape, left_out = PICTURES[kind]
    prompt = with_image(ours(EXACT, frames=6)) if start == "video" else begun(walk(frames=4))
    name = "start_image" if start == "video" else "image"
    value = 2.0 if kind == "NaN" else 0.25
    add(prompt, "image", "TestingImage", shape=json.dumps(shape), value=value)
    seen = len(client.log())
    if left_out is None:
        error = client.run(prompt).error.strip()
        assert error.startswith(f"{name} ") and ("pictures are [pictures, height, width" in error or "holds NaN" in error)
        return
    video = client.latent(prompt)
    assert video.isfinite().all() and float((video[0, 0, 0] - (2 * 0.25 - 1)).abs().max()) < 0.01
    assert all(f"QVG: {name}: {line}" in client.log()[seen:] for line in left_out)


@pytest.mark.parametrize("frames", [0, 4])
def test_the_makers_own_pose_file_has_one_pose_more(client: Client, frames: int) -> None:
    """33 for 32 latent frames, as HY-WorldPlay's example; here 5 for 4."""
    prompt = walk(frames=4, path="w-3")
    exact = client.latent(prompt)
    poses = write_poses(Cameras(camera_poses(parse_path("w-4"), 5)))
    add(prompt, "camera", "QVGCameraPoses", poses=poses, frames=frames)
    prompt["end"] = {"class_type": "TestingSay", "inputs": {"samples": ["sample", 0]}}
    result = client.run(prompt)
    assert result.status == "success", result.messages
    assert result.outputs["camera"]["text"] == ["5 camera poses: the first 4 are taken, 1 left out"]
    assert torch.equal(client.latent(prompt), exact)


def test_fewer_recent_frames_where_memory_is_smaller(client: Client) -> None:
    """`memory_frames` 8 with `recent_frames` 12 untouched: refused before, by the name of a setting that no node has."""
    seen = len(client.log())
    few = client.latent(changed(walk(frames=16), "sampler", memory_frames=8))
    assert "recent_frames is 12, but of memory_frames 8 a clip of 4 is found by where the camera looks" in client.log()[seen:]
    assert torch.equal(few, client.latent(changed(walk(frames=16), "sampler", memory_frames=8, recent_frames=4)))
