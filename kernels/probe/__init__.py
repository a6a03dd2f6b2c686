"""Whether Triton works on this machine: one tiny kernel in a process of its own, whose outcome is remembered.

A broken installation (no C compiler, a driver that is too old, a compiler that aborts) must not take ComfyUI along. It costs
seconds, so what cannot change by itself is kept in the user's cache folder, by versions, device and compiler; what passes (no
memory, no time, no process) and what cannot be written there is found out again by the next process.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ..whole_file import written_whole

PROGRAM = Path(__file__).with_name("triton_kernel.py")
_TIMEOUT_SECONDS = 180
_WORKS = "works"
# What a machine says that has something else to do just now.
_PASSES = re.compile(
    r"out of memory|MemoryError|cannot allocate|busy|unavailable|no space left|disk quota|too many open files|timed? ?out",
    re.IGNORECASE,
)
# Triton takes the first that is there.
_COMPILERS = ("cc", "gcc", "clang", "cl", "tcc")
# Flags of this interpreter that decide which packages the other process imports: it is to try the Triton that this one has.
_FLAGS = {"isolated": "-I", "ignore_environment": "-E", "no_user_site": "-s", "no_site": "-S", "safe_path": "-P"}


def probe(index: int, versions: str) -> str | None:
    """Why Triton does not work on GPU `index`, or None. versions: device, Triton and torch, in words; the outcome is theirs."""
    key = f"{versions}, Python {platform.python_version()}, {platform.platform()}, compiler {_compiler()}"
    outcome, stays = _read(key), True
    if outcome is None:
        outcome, stays = _run(index)
        if stays:
            _write(key, outcome)
    return None if outcome == _WORKS else f"{versions}: {outcome} ({_how_to_try_again(key, stays)})"


def memory(key: str) -> Path:
    """The file that the outcome of `key` is kept in. One each: of processes that write at once, none loses what another found."""
    if os.name == "nt":
        folder = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "comfyui-qvg" / f"triton-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def interpreter_flags() -> list[str]:
    """Those that this process was started with, for a child to import what it would."""
    return [letter for name, letter in _FLAGS.items() if getattr(sys.flags, name, False)]


def _run(index: int) -> tuple[str, bool]:
    """What came of the tiny kernel: `_WORKS`, or one line; and whether it would come out the same another time."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    try:
        done = subprocess.run(
            [sys.executable, *interpreter_flags(), str(PROGRAM), str(index)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"a tiny kernel was not done after {_TIMEOUT_SECONDS} s", False
    except OSError as error:
        return f"no process could be started to try a tiny kernel ({error})", False
    if done.returncode == 0 and done.stdout.strip().endswith(_WORKS):
        return _WORKS, True
    lines = done.stderr.strip().splitlines()
    said = f"a tiny kernel failed with exit code {done.returncode} ({lines[-1][:300] if lines else 'it said nothing'})"
    # Killed from outside, by a system that is short of memory for one.
    killed = done.returncode in (-9, -15, 137, 143)
    return said, not killed and not _PASSES.search(done.stderr)


def _compiler() -> str:
    """Where it is, so that installing one is another try."""
    chosen = os.environ.get("CC")
    return next((path for name in ((chosen,) if chosen else _COMPILERS) if (path := shutil.which(name))), "none")


def _how_to_try_again(key: str, stays: bool) -> str:
    if not stays:
        return "this may pass: the next start tries again"
    try:
        return f"remembered in {memory(key)}; delete that file to try again"
    except RuntimeError:  # there is no home folder
        return "the next start tries again"


def _read(key: str) -> str | None:
    try:
        known = json.loads(memory(key).read_text(encoding="utf-8"))
        return str(known["outcome"]) if known["of"] == key else None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError):  # RuntimeError: there is no home folder
        return None


def _write(key: str, outcome: str) -> None:
    try:
        file = memory(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as unfinished:
            unfinished.write_text(json.dumps({"of": key, "outcome": outcome}, indent=1), encoding="utf-8")
    except (OSError, RuntimeError):
        pass
