"""Ends programs at any moment, from a seed, and looks at what they leave: nothing by half, nothing lost but the last.

    python tools/kills.py                      20 ends: of `qvg demo` and of a program that saves a cache again and again
    python tools/kills.py --seed 7 --count 100

`qvg demo` is ended by SIGINT, SIGTERM, SIGHUP and SIGKILL, its imports included, and started again in the same folder each time:
it goes on behind the frames that it finds. In the end its results are those of a run that nobody ended. A saved cache is the one
before or the one after, whole. The exit code says whether all was so. Not on Windows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bootstrap_package import comfyui_qvg  # noqa: F401  (first: it names the repository `comfyui_qvg`)
from comfyui_qvg.qvg.session import load_cache
from comfyui_qvg.qvg.session.finished_blocks import read_blocks
from comfyui_qvg.tests.earlier import CACHES

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
PRELUDE = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import bootstrap_package\n"
DEMO = "from comfyui_qvg.__main__ import main\nraise SystemExit(main(sys.argv[1:]))\n"
SAVING = """
import pathlib
from comfyui_qvg.qvg.session import load_cache, save_cache
caches = [load_cache(pathlib.Path(name)) for name in sys.argv[2:]]
while True:
    for cache in caches:
        save_cache(cache, pathlib.Path(sys.argv[1]))
"""
WALK = ["--frames", "24", "--seed", "3", "--path", "d-4,a-4"]


def _started(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRELUDE + program, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _ended(process: subprocess.Popen[str], seconds: float, number: signal.Signals) -> tuple[int, str]:
    """Its exit code and what it said on stderr, after a signal at that moment."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    try:
        said = process.communicate(timeout=PATIENCE)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return 0, f"hangs: not done {PATIENCE} s after {number.name}"
    except ValueError:  # it had ended before
        said = ""
    return process.returncode, said


def end_demo(out: Path, seconds: float, number: signal.Signals) -> tuple[str, bool]:
    """(what is wrong or "", whether it had ended by itself) of one end of the demo."""
    code, said = _ended(_started(DEMO, "demo", "--out", str(out), *WALK), seconds, number)
    if "Traceback" in said or said.startswith("hangs"):
        return f"{number.name} after {seconds:.1f} s: {said}", False
    early = number in (signal.SIGTERM, signal.SIGHUP) and code == -number  # before anybody listens, with nothing to lose
    if code not in (0, 130, -signal.SIGKILL) and not early:
        return f"{number.name} after {seconds:.1f} s: exit code {code}: {said}", False
    for run in (out / "unfinished").glob("*/*"):
        if len(list(run.iterdir())) < read_blocks(run).parts:
            return f"{number.name} after {seconds:.1f} s: parts that cannot be read in {run}", False
    return "", code == 0


def end_saving(folder: Path, seconds: float, number: signal.Signals) -> str:
    """What is wrong with a cache's file after one end of a program that writes it."""
    file, sources = folder / "cache", [CACHES[3] / f"{name}.safetensors" for name in ("none", "klt_learned")]
    if not file.exists():
        file.write_bytes(sources[0].read_bytes())
    _ended(_started(SAVING, str(file), *map(str, sources)), seconds, number)
    try:
        load_cache(file)
    except Exception as error:
        return f"{number.name} after {seconds:.1f} s: {error}"
    if file.read_bytes() not in [source.read_bytes() for source in sources]:
        return f"{number.name} after {seconds:.1f} s: neither of the two caches is there"
    return "" if len(list(folder.iterdir())) <= 2 else f"left: {sorted(path.name for path in folder.iterdir())}"


def _results(out: Path) -> Any:
    """What a demo has found, but for the times that it took."""
    found = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    for run in found["runs"]:
        del run["seconds_per_frame"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder, whole = Path(name), Path(name) / "whole"
        (folder / "caches").mkdir()
        begun = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", PRELUDE + DEMO, "demo", "--out", str(whole), *WALK], check=True, capture_output=True
        )
        takes = time.monotonic() - begun
        ended = False
        for trial in range(options.count):
            number = SIGNALS[trial % len(SIGNALS)]
            if trial % 2 == 0 and ended:
                (folder / "demo" / "demo.json").unlink()
            if trial % 2 == 0 or number is signal.SIGINT:
                complaint, ended = end_demo(folder / "demo", dice.uniform(0.0, 0.6) * takes, number)
            else:
                complaint = end_saving(folder / "caches", dice.uniform(0.2, 1.0) * min(takes, 6), number)
            wrong += [complaint] if complaint else []
        complaint, _ = end_demo(folder / "demo", 10 * PATIENCE, signal.SIGKILL)
        wrong += [complaint] if complaint else []
        if not complaint and _results(folder / "demo") != _results(whole):
            wrong.append("the demo's results are not those of a run that nobody ended")
        if (folder / "demo" / "unfinished").exists():
            wrong.append("unfinished frames are left after the end")
    for complaint in wrong:
        print(complaint, file=sys.stderr)
    print(f"{options.count} ends, seed {options.seed}: {len(wrong)} wrong; a whole demo took {takes:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
