"""Whether Triton works on this machine: one tiny kernel in a process of its own, whose outcome is remembered.

A broken installation (no C compiler, a driver that is too old, a compiler that aborts) must not take ComfyUI along. It costs
seconds, so the outcome is kept in the user's cache folder, by versions and device; where that cannot be written, it is found out
again by the next process.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from ..whole_file import written_whole

PROGRAM = Path(__file__).with_name("triton_kernel.py")
_TIMEOUT_SECONDS = 180
_WORKS = "works"


def probe(index: int, versions: str) -> str | None:
    """Why Triton does not work on GPU `index`, or None. versions: device, Triton and torch, in words; the outcome is theirs."""
    key = f"{versions}, Python {platform.python_version()}, {platform.platform()}"
    known = _read()
    outcome = known.get(key) or _run(index)
    if key not in known:
        _write({**_read(), key: outcome})  # read again: another process may have found something out meanwhile
    if outcome == _WORKS:
        return None
    return f"{versions}: {outcome} (remembered in {memory()}; delete that file to try again)"


def memory() -> Path:
    """The file that outcomes are kept in."""
    if os.name == "nt":
        folder = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "comfyui-qvg" / "triton.json"


def _run(index: int) -> str:
    """What came of the tiny kernel: `_WORKS`, or one line."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    try:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), str(index)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"a tiny kernel was not done after {_TIMEOUT_SECONDS} s"
    except OSError as error:
        return f"no process could be started to try a tiny kernel ({error})"
    if done.returncode == 0 and done.stdout.strip().endswith(_WORKS):
        return _WORKS
    lines = done.stderr.strip().splitlines()
    return f"a tiny kernel failed with exit code {done.returncode} ({lines[-1][:300] if lines else 'it said nothing'})"


def _read() -> dict[str, str]:
    try:
        known = json.loads(memory().read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in known.items()}
    except (OSError, RuntimeError, ValueError, AttributeError):  # RuntimeError: there is no home folder
        return {}


def _write(known: dict[str, str]) -> None:
    try:
        file = memory()
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as unfinished:
            unfinished.write_text(json.dumps(known, indent=1), encoding="utf-8")
    except (OSError, RuntimeError):
        pass
