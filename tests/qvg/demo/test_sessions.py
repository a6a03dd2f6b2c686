"""`qvg demo --session`, `qvg resume`, `qvg sessions`: one walk, left and gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.demo import saved_runs
from comfyui_qvg.qvg.errors import SessionError
from comfyui_qvg.qvg.session import Session
from torch import Tensor


def _latents(folder: Path) -> list[Tensor]:
    return [latent for latent, _ in Session.look(folder).finished()]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames of nine, left as a kill leaves them: behind the second checkpoint."""
    folder = tmp_path_factory.mktemp("sessions") / "walk"
    session = saved_runs.begin(folder, False, 9, 3, "d-3,s-3")
    blocks = saved_runs._walk(session, session.manifest.plan)
    for _ in range(8):
        next(blocks)
    session.close()
    return folder


def test_two_ways_on_from_one_walk(walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = tmp_path / "left"
    assert main(["resume", str(walk), "--branch", str(left), "--frames", "3", "--path", "a-3"]) == 0
    with Session.open(walk):  # a run that writes to it
        assert main(["resume", str(walk)]) == 0
    beside = walk.with_name("walk-2")
    assert f"goes on in {beside}" in capsys.readouterr().out
    assert main(["demo", "--session", str(tmp_path / "whole"), "--frames", "9", "--seed", "3", "--path", "d-3,s-3"]) == 0
    whole = _latents(tmp_path / "whole")
    assert all(torch.equal(one, other) for one, other in zip(_latents(beside), whole, strict=True))
    other = _latents(left)
    assert len(other) == 11 and all(torch.equal(one, same) for one, same in zip(other[:8], whole, strict=False))
    assert not torch.equal(other[8], whole[8])
    assert {"video.mp4", "last.png"} <= {path.name for path in beside.iterdir()}
    capsys.readouterr()
    assert main(["sessions", str(walk.parent), "--verify", "--prune"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "demo world, 8 frames in 8 blocks" in first and "every byte is as it was written" in first
    assert "9 frames" in second and "branched off walk behind block 8" in second and "last.png" in second


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resume", "{walk}", "--frames", "0"], "frames is 0, but at least one more must be made"),
        (["resume", "{walk}", "--path", "q-3"], "has the unknown key 'q'"),
        (["resume", "{walk}x"], "holds no session"),
        (["demo", "--frames", "9"], "give --out DIR, or --session DIR"),
        (["demo", "--session", "{walk}"], "has something in it; name another folder"),
        (["demo", "--session", "x", "--out", "y"], "use one of them"),
        (["sessions", "{walk}x"], "is no folder"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], said: str, walk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([each.format(walk=walk) for each in arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_session_is_named(walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Session.branch(walk, tmp_path / "damaged") as session:
        name = next(name for name in session.index.segments if "-exact-" in name)
    path = tmp_path / "damaged" / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    assert main(["sessions", str(tmp_path / "damaged"), "--verify"]) == 1
    assert "is damaged" in capsys.readouterr().err
    with pytest.raises(SessionError, match="is damaged"):
        Session.look(tmp_path / "damaged").restore()
