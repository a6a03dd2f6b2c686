"""`qvg demo` as a user runs it: results, bad arguments, Ctrl-C, a full disk. Short walks; the long one is in test_demo_world."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.demo.memories import RUNS
from comfyui_qvg.qvg.demo.unfinished import Unfinished
from PIL import Image

from ...helpers import ROOT

# A process of its own, in which the repository is called comfyui_qvg as the tests call it.
PRELUDE = f"""
import sys, types
package = sys.modules["comfyui_qvg"] = types.ModuleType("comfyui_qvg")
package.__path__ = [{str(ROOT)!r}]
import torch
torch.set_num_threads(1)
from comfyui_qvg.qvg.cli import main
"""


def _frames_of(video: Path) -> int:
    with av.open(os.fspath(video)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(out), "--frames", "50", "--seed", "3", "--path", "d-9,s-9,a-9,w-9"]) == 0
    return out


def test_writes_what_it_promises(finished: Path) -> None:
    assert _frames_of(finished / "walk.mp4") == 50
    assert Image.open(finished / "demo.png").size[0] >= 1000
    summary: dict[str, Any] = json.loads((finished / "demo.json").read_text())
    assert set(summary) >= {"runs", "device", "versions", "seed"} and summary["seed"] == 3
    assert [run["name"] for run in summary["runs"]] == ["exact", "qvg", "balanced", "window"]
    keys = {
        "name",
        "codec",
        "bits",
        "cache_bytes",
        "exact_bytes",
        "ratio",
        "psnr_db",
        "revisit_psnr_db",
        "seconds_per_frame",
        "frames",
    }
    exact, qvg, balanced, window = summary["runs"]
    for run in summary["runs"]:
        assert set(run) >= keys and run["frames"] == 50 and run["exact_bytes"] == exact["cache_bytes"]
        assert run["ratio"] == pytest.approx(run["exact_bytes"] / run["cache_bytes"], abs=1e-3)
        assert sum(run["bytes"].values()) == run["cache_bytes"]
    assert exact["psnr_db"] is None and (exact["bits"], qvg["bits"], qvg["codec"], balanced["codec"]) == (16, 2, "qvg", "klt")
    assert window["cache_bytes"] <= balanced["cache_bytes"] < qvg["cache_bytes"] < exact["cache_bytes"]
    for better, worse in ((balanced, qvg), (qvg, window)):
        assert better["psnr_db"] > worse["psnr_db"] and better["revisit_psnr_db"] > worse["revisit_psnr_db"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--path", "d-12,x-3"], "part 2 of the camera path, 'x-3'"),
        (["--path", "d-12,,s-3"], "part 2 of the camera path, '', is empty"),
        (["--path", "d-1.5"], "part 1 of the camera path, 'd-1.5'"),
        (["--path", "d-0"], "part 1 of the camera path, 'd-0'"),
        (["--path", "d--3"], "part 1 of the camera path, 'd--3'"),
        (["--path", "left-3"], "the demo world looks straight down"),
        (["--frames", "4"], "frames is 4, but 4 are given and at least one must be generated; use 5 or more"),
        (["--frames", "100001"], "frames is 100001, but a walk has at most 100000, which is hours of video; use fewer"),
        (["--frames", "1" + "0" * 400], "frames is 10000000000000000000..., but a walk has at most 100000"),
        (["--seed", "-1"], "seed is -1"),
    ],
    ids=[
        "unknown_key",
        "empty_part",
        "fraction",
        "zero",
        "negative",
        "key_of_another_world",
        "too_short",
        "too_long",
        "huge",
        "seed",
    ],
)
def test_bad_arguments_get_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def _runs(out: Path, frames: int) -> list[dict[str, Any]]:
    assert main(["demo", "--out", str(out), "--frames", str(frames)]) == 0
    runs: list[dict[str, Any]] = json.loads((out / "demo.json").read_text())["runs"]
    return runs


@pytest.mark.parametrize("frames", [5, 6])
def test_the_shortest_walks_are_encoded_too(frames: int, tmp_path: Path) -> None:
    exact, qvg, balanced, window = _runs(tmp_path, frames)
    assert "codes" in qvg["bytes"] and "codes" in balanced["bytes"] and window["cache_bytes"] <= exact["cache_bytes"]


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    """Of a walk in which every memory has encoded something."""
    first, second = (_runs(tmp_path / name, 13) for name in ("first", "second"))
    assert all("codes" in run["bytes"] for run in first[1:3])
    for a, b in zip(first, second, strict=True):
        assert {**a, "seconds_per_frame": 0} == {**b, "seconds_per_frame": 0}


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file" / "out"), "--frames", "5"]) == 1
    assert "choose another --out" in capsys.readouterr().err


def test_help_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["demo", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    text = capsys.readouterr().out
    assert "walk through a small world" in text and "d-12,s-10,a-12,w-10" in text


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a process")
def test_ctrl_c_keeps_what_there_is(tmp_path: Path) -> None:
    command = PRELUDE + f"raise SystemExit(main(['demo', '--out', {str(tmp_path)!r}, '--frames', '400']))"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = ""
    while "s/frame" not in seen and process.poll() is None:  # the bar moves: a block is done
        seen += process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    summary = json.loads((tmp_path / "demo.json").read_text())
    frames = summary["runs"][0]["frames"]
    assert 1 <= frames < 400 and _frames_of(tmp_path / "walk.mp4") == frames


def _started(out: Path, *more: str) -> subprocess.Popen[str]:
    command = PRELUDE + f"raise SystemExit(main(['demo', '--out', {str(out)!r}, *{[*SHORT, *more]!r}]))"
    return subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


SHORT = ["--frames", "24", "--seed", "3", "--path", "d-4,a-4"]


@pytest.mark.skipif(os.name == "nt", reason="sends signals to a process")
def test_a_walk_that_was_ended_goes_on(tmp_path: Path) -> None:
    """SIGKILL says nothing and leaves finished frames, SIGTERM leaves results too; the end is as if nobody had ended it.
    `tools/kills.py` does it more often."""
    killed, found = tmp_path / "killed", []
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = _started(killed)
        assert process.stdout is not None
        found.append(process.stdout.readline())
        parts = len(list(killed.rglob("part-*.latent")))
        while len(list(killed.rglob("part-*.latent"))) < parts + 3 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL) and "Traceback" not in errors, errors
        assert (killed / "walk.mp4").exists() == (number != signal.SIGKILL)
    assert "finished frames are kept in" in found[0] and "going on behind 3 finished" not in found[0]
    assert all("going on behind" in line for line in found[1:])
    left = [path for path in killed.iterdir() if path.name not in ("demo.json", "walk.mp4", "unfinished")]
    assert not left
    summaries = []
    for out in (killed, tmp_path / "whole"):
        assert main(["demo", "--out", str(out), *SHORT]) == 0
        assert not (out / "unfinished").exists()
        summary = json.loads((out / "demo.json").read_text())
        summaries.append([{**run, "seconds_per_frame": 0} for run in summary["runs"]])
    assert summaries[0] == summaries[1]


def test_walks_of_other_plans_are_kept_a_while(tmp_path: Path) -> None:
    for seed in range(6):
        unfinished = Unfinished(tmp_path, [seed], RUNS)
        assert unfinished.frames == 0
        run = unfinished.begin("exact")
        run.add(torch.zeros(1, 1, 3, 4, 4), seconds=0.5)
        assert unfinished.keep() and Unfinished(tmp_path, [seed], RUNS).frames == 1
        os.utime(unfinished.folder, (seed, seed))
    assert len(list((tmp_path / "unfinished").iterdir())) == 3
    assert Unfinished(tmp_path, [5], RUNS).of("exact").facts == [{"seconds": 0.5, "frames": 1}]
    assert Unfinished(tmp_path, [0], RUNS).frames == 0


@pytest.mark.skipif(os.name == "nt", reason="limits file sizes the POSIX way")
@pytest.mark.parametrize("limit_bytes", [6000, 500], ids=["video_and_picture", "json_too"])
def test_a_full_disk_loses_nothing_else(limit_bytes: int, tmp_path: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
    (tmp_path / "demo.json").write_text("of an earlier run")
    run = f"raise SystemExit(main(['demo', '--out', {str(tmp_path)!r}, '--frames', '24', '--path', 'd-4,a-4']))"
    done = subprocess.run([sys.executable, "-c", PRELUDE + limit + run], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert any("walk.mp4" in line for line in errors) and "Traceback" not in done.stderr
    assert "between visits" in done.stdout, "the table is printed whatever happens to the files"
    if limit_bytes == 500:
        assert "demo.json could not be written (File too large)" in done.stderr
        assert (tmp_path / "demo.json").read_text() == "of an earlier run"
    else:
        assert json.loads((tmp_path / "demo.json").read_text())["runs"][2]["frames"] == 24
