"""`qvg run` with a real ComfyUI, and the pack as it is published."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest

from ..archive import unpack
from .client import ROOT, Client, node, workflow
from .conftest import started

PRELUDE = f"""
import sys, types
package = sys.modules["comfyui_qvg"] = types.ModuleType("comfyui_qvg")
package.__path__ = [{str(ROOT)!r}]
"""
CALL = "from comfyui_qvg.qvg.cli import main; sys.exit(main(sys.argv[1:]))"
SHORT = ["--set", "QVG Camera Path.frames=20", "--set", "3.path=d-4,a-4", "--set", "QVGKVCache.span_frames=6"]
# No latent of what was interrupted: the server is shared, and another test counts those.
LONG = ["--set", "QVGCameraPath.frames=2000", "--set", "QVGSampler.keep_finished=false"]


def start(client: Client, out: Path, *more: str, before: str = "") -> subprocess.Popen[str]:
    """`qvg run workflows/api/demo_world.json` in a process of its own."""
    workflow_file = ROOT / "workflows" / "api" / "demo_world.json"
    command = [sys.executable, "-c", f"{PRELUDE}\n{before}\n{CALL}", "run", str(workflow_file)]
    command += ["--server", client.url, "--out", str(out), "--json", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(client: Client, out: Path, *more: str, before: str = "") -> tuple[int, str, dict[str, Any]]:
    """(exit code, what was said, the result)."""
    printed, said = (process := start(client, out, *more, before=before)).communicate(timeout=240)
    return process.returncode, said, json.loads(printed)


def until_sampling(client: Client, out: Path, process: subprocess.Popen[str], seen: int = 0) -> None:
    """Wait until the first output, the picture of the path, has come, and the sampler has begun behind the log's first `seen`
    letters: a cache says how it is read."""
    client.until(
        lambda: bool(list(out.glob("*.png"))) and "the cache is read" in client.log()[seen:], "the sampler of an own process"
    )
    assert process.poll() is None


def test_the_shipped_workflow_runs_and_its_files_come(client: Client, tmp_path: Path) -> None:
    code, said, result = run(client, tmp_path, *SHORT)
    assert (code, result["status"]) == (0, "done"), said
    (video,) = (file["path"] for file in result["files"] if file["title"] == "Save Video")
    with av.open(video) as container:
        assert sum(1 for _ in container.decode(video=0)) == 20
    saved = [Path(file["path"]) for file in result["files"]]
    assert {file.suffix for file in saved} == {".mp4", ".png", ".txt"} and sorted(tmp_path.iterdir()) == sorted(saved)
    assert "20 latent frames (4 given)" in (tmp_path / "QVG Cache Report.txt").read_text(encoding="utf-8")
    assert "SamplerCustomAdvanced" in said
    assert re.search(r"[\d.]+ MB instead of [\d.]+ MB \([\d.]+x\), [\d.]+ s/frame, 20 frames", said), said  # the sampler's line
    # Once more: nothing is computed, and everything comes all the same, beside what is there.
    code, said, result = run(client, tmp_path, *SHORT)
    assert code == 0 and node(workflow(), "SamplerCustomAdvanced") in result["cached"], said
    assert len(list(tmp_path.iterdir())) == 2 * len(saved)


def test_without_websockets_it_works_by_asking(client: Client, tmp_path: Path) -> None:
    code, said, result = run(client, tmp_path, *SHORT, before="sys.modules['websocket'] = None")
    assert code == 0 and len(result["files"]) == 4
    assert "no progress of single steps without the package websocket-client" in said


def test_a_failing_node_is_named(client: Client, tmp_path: Path) -> None:
    code, said, _ = run(client, tmp_path, *SHORT, "--set", '11.model=["1", 0]')
    assert code == 1 and "error: node 11 (QVG Cache Report): this LATENT was not sampled with this MODEL" in said


def test_wrong_values_are_refused_node_by_node(client: Client, tmp_path: Path) -> None:
    code, said, result = run(client, tmp_path, "--set", "3.path=d-14,x-3", "--set", "RandomNoise.noise_seed=-1")
    assert code == 2 and result["files"] == []
    assert "node 3 (QVG Camera Path): part 2 of the camera path, 'x-3'" in said and said.count("'x-3'") == 1
    assert "node 5 (RandomNoise): input 'noise_seed': Value -1 smaller than min of 0" in said
    code, said, _ = run(client, tmp_path, "--set", "3.frams=20")
    assert code == 2 and "has no input 'frams'; it has path, frames" in said


def test_a_workflow_that_could_only_run_in_part_is_not_run(client: Client, tmp_path: Path) -> None:
    code, said, _ = run(client, tmp_path, "--set", "BasicScheduler.scheduler=none")
    assert code == 2 and "node 6 (BasicScheduler)" in said and "'none' not in" in said
    queue = client.get("/queue")
    assert queue["queue_running"] == [] and queue["queue_pending"] == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_stops_our_run_and_not_the_one_before_it(client: Client, tmp_path: Path) -> None:
    theirs = client.queue(workflow(frames=60))
    ours = start(client, tmp_path, *LONG)
    client.until(lambda: bool(client.get("/queue")["queue_pending"]), "our run in the queue")
    ours.send_signal(signal.SIGINT)
    printed, said = ours.communicate(timeout=60)
    assert ours.returncode == 130 and "the run is off the server's queue" in said, said
    assert client.wait(theirs).status == "success"
    seen = len(client.log())
    ours = start(client, tmp_path, *LONG, "--set", "RandomNoise.noise_seed=8")
    until_sampling(client, tmp_path, ours, seen)
    ours.send_signal(signal.SIGINT)
    printed, said = ours.communicate(timeout=60)
    assert ours.returncode == 130 and "the run was stopped on the server" in said, said
    assert json.loads(printed)["status"] == "interrupted" and client.get("/queue")["queue_running"] == []


def test_the_published_files_are_a_working_pack_and_a_killed_server_is_noticed(tmp_path: Path) -> None:
    """What ComfyUI-Manager unpacks, and nothing else of this checkout, in a server of its own."""
    base = tmp_path / "comfyui"
    unpack(base / "custom_nodes")
    with started(base) as client:
        assert "demo_world" in client.get("/api/workflow_templates")["qvg"]
        code, said, result = run(client, tmp_path / "out", *SHORT)
        assert code == 0 and len(result["files"]) == 4, said
        seen = len(client.log())
        process = start(client, tmp_path / "gone", *LONG, "--timeout", "2")
        until_sampling(client, tmp_path / "gone", process, seen)
        client.process.kill()
        printed, said = process.communicate(timeout=60)
    assert process.returncode == 3 and json.loads(printed)["status"] == "gone"
    assert (
        "waiting up to 2 s for it" in said
        and "has given no whole answer for 2 s" in said
        and "1 output had come and is in" in said
    )
