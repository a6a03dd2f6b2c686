"""Ends runs that are kept in sessions by SIGKILL at any moment, from a seed, and goes on with what they leave.

    python tools/killed_sessions.py                        20 kills of each of six runs
    python tools/killed_sessions.py --run longcat --count 5

Every run is a child that is killed at a moment of its own, most of them within a checkpoint or close to one. After each kill the
session opens, its blocks are those of a run that nobody ended, bit for bit, and the next child goes on behind them; when all are
there, another session begins. The exit code says whether all was so. Not on Windows.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import session_runs
import torch
from comfyui_qvg.qvg.errors import SessionError
from comfyui_qvg.qvg.session import Session
from comfyui_qvg.qvg.session.manifest import MANIFEST
from session_runs import RUNS, SessionRun
from torch import Tensor


@dataclass
class Ends:
    """What came of the kills of one run. `resumed`: children that found blocks."""

    kills: int = 0
    resumed: int = 0
    sessions: int = 0
    wrong: int = 0


def _child(run: SessionRun, folder: Path) -> int:
    """Its process number, once it is about to begin."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        for _ in run.go(folder):
            pass
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _ended_at(process: int, seconds: float) -> int | None:
    """The child's exit code, or None: it was killed after so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return None if code == -signal.SIGKILL else code


def _complaint(folder: Path, whole: list[Tensor]) -> str:
    """What is wrong with a session that was left, or nothing."""
    if not (folder / MANIFEST).exists():
        return ""
    try:
        session = Session.look(folder)
        kept = [latent for latent, _ in session.finished()]
        session.restore()
    except SessionError as error:
        return str(error)
    same = all(torch.equal(latent, one) for latent, one in zip(kept, whole, strict=False))
    return "" if same else f"{len(kept)} blocks are not those of the unbroken run"


def kill_runs(name: str, run: SessionRun, count: int, seed: int, folder: Path) -> Ends:
    """`count` kills of one run; what is wrong goes to stderr."""
    dice, ends = random.Random(f"{name} {seed}"), Ends()
    begun = time.monotonic()
    whole = list(run.go(folder / "whole"))
    takes = time.monotonic() - begun
    while ends.kills < count:
        ends.sessions += 1
        session = folder / f"session {ends.sessions}"
        while True:
            ends.resumed += (session / MANIFEST).exists()
            limit = dice.uniform(0.0, 0.4) * takes if ends.kills < count else 100 * takes + 60
            code = _ended_at(_child(run, session), limit)
            ends.kills += code is None
            complaint = f"exit code {code}" if code else _complaint(session, whole)
            if complaint:
                ends.wrong += 1
                print(f"{name}, kill {ends.kills}: {complaint}", file=sys.stderr)
            if code is not None:
                break
        if not ends.wrong and Session.look(session).blocks != run.blocks:
            ends.wrong += 1
            print(f"{name}: a run that ended left {Session.look(session).blocks} blocks of {run.blocks}", file=sys.stderr)
        shutil.rmtree(session)
    return ends


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20, help="kills of each run")
    parser.add_argument("--run", choices=RUNS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    for name in options.run or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            ends = kill_runs(name, session_runs.RUNS[name](), options.count, options.seed, Path(folder))
        wrong += ends.wrong
        print(
            f"{name}: {ends.kills} kills in {ends.sessions} sessions, gone on with {ends.resumed} times, {ends.wrong} wrong",
            flush=True,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
