"""What a person sees: lines where nobody looks, a bar on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from comfyui_qvg.qvg.server.display import Display

from ...helpers import ROOT


def test_one_line_for_each_node_and_place_in_the_queue(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    for before in (2, 2, 1):
        display.waiting(before)
    display.node("Load")
    display.node("Sampler")
    display.steps(3, 9)
    display.text("block 3/9, cache 1.0 MB\nmore")
    display.close()
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["waiting", "waiting", "Load", "Sampler"]
    assert lines[0].endswith("2 before this one") and lines[3].endswith("block 3/9, cache 1.0 MB")


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX terminal")
def test_a_terminal_gets_a_bar_with_steps_and_block() -> None:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    code = f"""
import sys, types
package = sys.modules["comfyui_qvg"] = types.ModuleType("comfyui_qvg")
package.__path__ = [{str(ROOT)!r}]
from comfyui_qvg.qvg.server.display import Display
display = Display()
display.node("Sampler")
display.steps(1, 10**4000)
display.steps(3, 9)
display.text("block 1/3")
display.close()
"""
    done: Any = subprocess.run([sys.executable, "-c", code], stderr=theirs, check=False, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    text = shown.decode()
    assert done.returncode == 0 and "Sampler" in text and "33%" in text and "3/9" in text and "block 1/3" in text
