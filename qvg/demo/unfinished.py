"""Walks that did not end: their finished frames lie in `DIR/unfinished`, and the same command goes on behind them.

A frame that is handed over instead of being painted leaves the same memory behind: what comes after it is the same, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..models.demo_world import WEIGHTS
from ..session.finished_blocks import FinishedBlocks, Kept, read_blocks, remove_blocks

FOLDER = "unfinished"
# Of walks of other seeds, paths and lengths; older ones go.
KEPT_WALKS = 3
_FRAMES_AXIS = 1


class Unfinished:
    """Finished frames of the runs of one walk. `plan`: all that they depend on, beside the model's `weights`."""

    def __init__(self, out: Path, plan: Sequence[Any], runs: Sequence[str], weights: Path = WEIGHTS):
        facts = json.dumps([*plan, hashlib.sha256(weights.read_bytes()).hexdigest(), torch.__version__])
        self.folder = out / FOLDER / hashlib.sha256(facts.encode()).hexdigest()[:12]
        self._runs = runs
        self._found = {run: read_blocks(self.folder / run) for run in runs}
        self._open: list[FinishedBlocks] = []
        _forget_old(out / FOLDER, self.folder, runs)

    @property
    def frames(self) -> int:
        """How many an earlier run of this walk has left."""
        return sum(len(kept.blocks) for kept in self._found.values())

    def of(self, run: str) -> Kept:
        """What it has left of this run: latents [1, 1, C, P, P], and the seconds that each took."""
        return self._found[run]

    def begin(self, run: str) -> FinishedBlocks:
        """Where this run's frames are put behind those."""
        self._open.append(FinishedBlocks(self.folder / run, _FRAMES_AXIS, after=self.of(run)))
        return self._open[-1]

    def keep(self) -> bool:
        """The walk was broken off: all frames so far go to the disk. -> whether some are there"""
        for each in self._open:
            each.write()
        return any((self.folder / run).is_dir() for run in self._runs)

    def remove(self) -> None:
        """The walk has ended and its results are there."""
        _remove(self.folder, self._runs)
        with suppress(OSError):
            self.folder.parent.rmdir()


def _remove(folder: Path, runs: Sequence[str]) -> None:
    for run in runs:
        remove_blocks(folder / run)
    with suppress(OSError):
        folder.rmdir()


def _forget_old(parent: Path, own: Path, runs: Sequence[str]) -> None:
    with suppress(OSError):
        others = [path for path in parent.iterdir() if path.is_dir() and path != own]
        for path in sorted(others, key=lambda path: path.stat().st_mtime)[: -(KEPT_WALKS - 1)]:
            _remove(path, runs)
