"""Consoles and pipes that have the letters of one part of the world, and files with names of another: done is done, in every
command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg.cli import main
from safetensors.torch import load_file

from ..helpers import ROOT
from ..integration import tiny_wan

NAME = "видео猫é"
ENCODINGS = ["cp1252", "gbk", "cp932", "ascii", "utf-8"]


class Console:
    """What `sys.stdout` and `sys.stderr` are where a program is piped, and what has come out."""

    def __init__(self, encoding: str, monkeypatch: pytest.MonkeyPatch):
        self.encoding, self._raw = encoding, {name: io.BytesIO() for name in ("stdout", "stderr")}
        for name, raw in self._raw.items():
            monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding, errors="strict", newline="\n"))

    def shown(self, text: str) -> str:
        """`text` as this console shows it."""
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def said(self, name: str = "stdout") -> str:
        getattr(sys, name).flush()
        return self._raw[name].getvalue().decode(self.encoding)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / f"{NAME}_self_forcing.pt"
    torch.save(tiny_wan.state_dict(seed=1), path)
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_convert(source: Path, tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lora, out = tmp_path / f"{NAME}_lora.pt", tmp_path / f"{NAME}.safetensors"
    torch.save(tiny_wan.lora(rank=4), lora)
    console = Console(encoding, monkeypatch)
    assert main(["convert", str(source), str(out), "--lora", str(lora)]) == 0
    assert console.said().startswith(console.shown(f"{out}: self-forcing"))
    assert console.shown(f"with {lora.name} merged") in console.said()
    assert len(load_file(out)) == len(tiny_wan.state_dict())
    assert main(["convert", str(source), str(out)]) == 2
    assert console.said("stderr") == console.shown(
        f"error: {out} is there already and is not overwritten; give another name, or delete it first\n"
    )


@pytest.mark.parametrize("encoding", ["cp1252", "gbk"])
def test_demo(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(encoding, monkeypatch)
    assert main(["demo", "--out", str(tmp_path / NAME), "--frames", "6"]) == 0
    assert console.shown(f"wrote {tmp_path / NAME / 'walk.mp4'}\n") in console.said()
    assert {file.name for file in (tmp_path / NAME).iterdir()} == {"demo.json", "demo.png", "walk.mp4"}


def test_the_streams_are_left_as_they_were(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Console("ascii", monkeypatch)
    main(["convert", str(source), str(tmp_path / "out.pt")])
    assert (sys.stdout.errors, sys.stderr.errors) == ("strict", "strict")


@pytest.mark.parametrize("encoding", ["cp1252", "gbk"])
def test_a_real_pipe(source: Path, tmp_path: Path, encoding: str) -> None:
    out = tmp_path / f"{NAME}.safetensors"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import bootstrap_package; from comfyui_qvg.qvg.cli import main; "
        "raise SystemExit(main(sys.argv[2:]))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tools"), "convert", str(source), str(out), "--json"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode(encoding))["out"] == str(out) and out.is_file()


@pytest.mark.skipif(os.name == "nt", reason="names that only other systems have")
@pytest.mark.parametrize("odd", ["\x1b[2J", "a\nerror: b", "\u202egnp", os.fsdecode(b"\xff"), "\x9b"], ids=ascii)
def test_names_that_would_move_the_cursor(source: Path, tmp_path: Path, odd: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the sentence of what is done, of a note, and of what is wrong."""
    file, out = source.rename(tmp_path / f"{odd}self_forcing.pt"), tmp_path / f"{odd}.safetensors"
    torch.save({"generator": tiny_wan.state_dict(seed=1)}, file)
    for code in (0, 2):
        assert main(["convert", str(file), str(out)]) == code
    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    assert len(lines) == 3 and all(line.isprintable() and ascii(odd)[1:-1] in line for line in lines)


@pytest.mark.skipif(os.name == "nt", reason="shells of other systems")
@pytest.mark.parametrize(
    ("to", "unbuffered", "code"),
    [("| true", "1", 0), ("> /dev/full", "1", 1), ("> /dev/full", "", 1), (">&-", "", 0), ("2>&-", "", 0)],
)
def test_streams_that_take_nothing(source: Path, tmp_path: Path, to: str, unbuffered: str, code: int) -> None:
    """What can be done is done, and no one sees a traceback."""
    if "full" in to and not Path("/dev/full").exists():
        pytest.skip("this system has no full device")
    out = tmp_path / "out.safetensors"
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import bootstrap_package\n"
    program += f"from comfyui_qvg.qvg.cli import main; sys.exit(main(['convert', {str(source)!r}, {str(out)!r}, '--json']))"
    ran = subprocess.run(
        f"{sys.executable} - {to}",
        shell=True,
        input=program,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        timeout=120,
    )
    assert ran.returncode == code and len(load_file(out)) == len(tiny_wan.state_dict())
    said = ran.stderr.strip().splitlines()
    assert not said or (len(said) == 1 and said[0].startswith("error: what was to be said cannot be written (")), ran.stderr
    assert not ran.stdout or json.loads(ran.stdout)["out"] == str(out)
