"""What commands say of arguments that cannot be: one sentence with the value, short, on one line, before memory is taken."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comfyui_qvg.qvg.cli import main

from ..bounded import bounded
from ..helpers import ROOT

PLAN = ["plan", "--model", "self-forcing-1.3b", "--width", "832", "--height", "480", "--frames", "81", "--vram-gb", "12"]
HUGE = str(10**30)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*PLAN, "--batch", HUGE], "batch is 10000000000000000000..., but must be from 1 to 4096"),
        ([*PLAN, "--width", str(16 * 10**30)], "multiples of 16 pixels up to 16384; use 16384"),
        ([*PLAN, "--frames", str(4 * 10**30 + 1)], "more than the 99997 that are planned for"),
        ([*PLAN, "--block-frames", "0"], "block frames is 0, but must be from 1"),
        ([*PLAN, "--given-frames", HUGE], "given frames is 10000000000000000000..."),
        ([*PLAN, "--preset", ""], "preset is '', but must be one of"),
        ([*PLAN, "--preset", "x" * 10**6], "preset is 'xxx"),
        (["demo", "--out", "x", "--frames", HUGE], "frames is 10000000000000000000..., but a walk has at most"),
        (["demo", "--out", "x", "--path", "w-9," * 10**5], "makes the path longer than 100000"),
        (["bench", "codecs", "--out", "x", "--worlds", HUGE], "but 1 to 1000 can be walked through"),
        (["bench", "codecs", "--out", "x", "--jobs", HUGE], "but 1 to 256 processes can work"),
        (["bench", "codecs", "--out", "x", "--methods", ";;;"], "methods is ';;;', which names none"),
        (["bench", "codecs", "--out", "x", "--methods", "\x1b[2J"], "method is '\\x1b[2J'"),
        (["run", "missing.json", "--server", "x" * 10**6], "missing.json cannot be read"),
        (["convert", "", "x.safetensors"], "is a folder, not a file"),
        (["convert", "x.pt", ""], "'' is to be a name and .safetensors behind it"),
    ],
)
def test_arguments(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with bounded(10, 200):
        assert main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said) < 1500 and said.count("\n") == 1 and said.replace("\n", "").isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["9" * 10**5, "\x1b[2J", "x" * 10**6])
def test_what_the_parser_says(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--width", "--codec", f"--{value}"):
        with pytest.raises(SystemExit, match="2"):
            main(["plan", "--model", "x", "--height", "9", "--frames", "9", option, value])
        said = capsys.readouterr().err
        assert len(said) < 2000 and said.replace("\n", "").isprintable()


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a process")
@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_ctrl_c_while_the_command_is_imported(seconds: float) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import bootstrap_package\n"
        "from comfyui_qvg.__main__ import main\nprint('on', flush=True)\n"
        "sys.meta_path.insert(0, type('Slow', (), {'find_spec': lambda *_: __import__('time').sleep(0.01)})())\n"
        "raise SystemExit(main(['plan', '--help']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        time.sleep(seconds)
        process.send_signal(2)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and errors == "interrupted\n"
