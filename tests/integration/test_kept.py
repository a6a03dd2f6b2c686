"""What was finished is not lost, however ComfyUI ends, and the log's words lead to it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg.session.finished_blocks import read_blocks
from safetensors.torch import load_file

from . import tiny_wan
from .client import Client, Prompt, between, workflow
from .conftest import started
from .test_causal_sampler import ours
from .test_causal_wan import BALANCED, add

FRAMES = {"demo": 26, "causal": 240}
KEPT = re.compile(r"QVG: (?:kept|an earlier run left|not decoded:) (\d+) finished frames in (\S+); copy it to (\S+) and press R")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are not Windows'")


def demo() -> Prompt:
    return workflow(frames=FRAMES["demo"])


def video() -> Prompt:
    return ours(BALANCED, frames=FRAMES["causal"], block=3)


def blocks_in(folder: Path) -> int:
    """Blocks on disk, as far as parts are whole."""
    return sum(len(read_blocks(run).blocks) for run in folder.glob("unfinished-*"))


@pytest.mark.parametrize(
    ("end", "make"),
    [(signal.SIGINT, demo), (signal.SIGTERM, demo), (signal.SIGKILL, demo), (signal.SIGKILL, video)],
    ids=["ctrl-c", "term", "kill", "kill causal"],
)
def test_a_comfyui_that_ends_hard_loses_the_block_in_work_alone(base: Path, end: signal.Signals, make: Any) -> None:
    folder = base / "output" / "QVG"
    (base / "models" / "diffusion_models").mkdir(parents=True)
    tiny_wan.write(base / "models" / "diffusion_models" / "causal.safetensors")
    with started(base) as client:
        client.queue(between(make(), "TestingPasses"))
        client.until(lambda: folder.is_dir() and blocks_in(folder) >= 8, "eight blocks on disk")
        client.process.send_signal(end)
        client.process.wait(30)
        finished = blocks_in(folder)
        assert f"finished blocks are in {folder}{os.sep}unfinished-" in client.log()
    assert finished >= 8
    with started(base) as client:
        (said,) = KEPT.findall(client.log())
        (file,) = folder.iterdir()
        assert said[1] == str(file) and file.name == "interrupted_00001_.latent"
        kept = load_file(str(file))["latent_tensor"]
        assert kept.shape[2] == int(said[0]) >= finished
        whole = client.latent(make())
        assert torch.equal(kept, whole[:, :, : kept.shape[2]])
        assert list(folder.iterdir()) == [file]  # a run that ends well leaves nothing


def opened_as_the_log_says(client: Client, log: str) -> tuple[int, str]:
    """To the letter: copy, press R, choose it in LoadLatent. -> frames, and the name that it is listed by."""
    frames, file, folder = KEPT.findall(log)[-1]
    shutil.copy(file, folder)
    listed = client.get("/object_info/LoadLatent")["LoadLatent"]["input"]["required"]["latent"][0]
    assert Path(file).name in listed
    return int(frames), Path(file).name


def loaded(client: Client, name: str) -> torch.Tensor:
    prefix = f"latents/{time.monotonic_ns()}"
    prompt: Prompt = {"load": {"class_type": "LoadLatent", "inputs": {"latent": name}}}
    add(prompt, "save", "SaveLatent", samples=["load", 0], filename_prefix=prefix)
    assert client.run(prompt).status == "success"
    (file,) = (client.base / "output").glob(f"{prefix}*")
    return load_file(str(file))["latent_tensor"]


def test_what_the_log_says_works_to_the_letter(client: Client) -> None:
    seen = len(client.log())
    client.run(between(workflow(frames=14), "TestingFailing", call=30))
    frames, name = opened_as_the_log_says(client, client.log()[seen:])
    assert loaded(client, name).shape[2] == frames == 10
    (programs,) = re.findall(r"a program names it '([^']+)'", client.log()[seen:])
    assert torch.equal(loaded(client, programs), loaded(client, name))


def test_a_decode_that_runs_out_of_memory_leaves_the_latents(client: Client) -> None:
    prompt: Prompt = {}
    add(prompt, "latent", "TestingLatent", shape="1,16,5,8,8", seed=3)
    add(prompt, "vae", "TestingAnyVAE", kind="wan 2.1")
    add(prompt, "short", "TestingSmallMemory", vae=["vae", 0], latent_pixels=4)
    add(prompt, "save", "QVGSaveVideo", samples=["latent", 0], vae=["short", 0], fps=16.0, filename_prefix="QVG/short")
    seen = len(client.log())
    with client.new_files("output/QVG") as files:
        assert "there is no memory left" in client.run(prompt).error
    (file,) = files
    assert file.name.startswith("undecoded_")
    frames, name = opened_as_the_log_says(client, client.log()[seen:])
    add(prompt, "plain", "SaveLatent", samples=["latent", 0], filename_prefix="latents/plain")
    del prompt["save"], prompt["short"]
    client.run(prompt)
    (plain,) = (client.base / "output" / "latents").glob("plain*")
    assert frames == 5 and torch.equal(loaded(client, name), load_file(str(plain))["latent_tensor"])


def test_nothing_is_written_where_nothing_is_to_be_kept(client: Client) -> None:
    prompt = workflow(frames=14)
    next(step for step in prompt.values() if step["class_type"] == "QVGSampler")["inputs"]["keep_finished"] = False
    seen = len(client.log())
    with client.new_files("output/QVG") as files:
        client.run(between(prompt, "TestingFailing", call=30))
    assert files == [] and "finished blocks" not in client.log()[seen:]
