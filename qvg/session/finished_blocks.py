"""Finished blocks of a run, on disk while it goes on: what ends it without a word loses what came after the last part, and
nothing else.

    finished = FinishedBlocks(folder)      # a folder of this run's own
    for block in generate(...):
        finished.add(block.latent)
    finished.remove()            # it ended well
    ...
    kept = read_blocks(folder)             # it did not: kept.blocks are the latents
    FinishedBlocks(folder, after=kept)     # goes on behind them

Every part is a file of its own that is there whole or not at all, and is never written again; ComfyUI's LoadLatent reads it.
Parts are written as often as a share of the run's time allows, whatever the disk takes for one: on a slow disk they are few and
long.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..file_names import in_utf8
from ..files import written_whole
from ..json_text import read_json
from ..safetensors_writer import checksum, in_memory, write_safetensors

_LOG = logging.getLogger(__name__)
SHARE = 0.02
_PREFIX, ENDING = "part-", ".latent"
# ComfyUI's names; the second says that values are not to be scaled.
LATENT, UNSCALED = "latent_tensor", "latent_format_version_0"
_FACTS, _CHECKSUMS, _AXIS = "qvg_blocks", "crc32", "frames_axis"
# A disk that takes nothing any more: so much is kept for it in memory, and then no more.
_MOST_WAITING_BYTES = 256 << 20


class FinishedBlocks:
    """Blocks that were added, in parts in `folder`, which is made with the first.

    frames_axis  along which blocks are joined; ComfyUI's is 2
    share        of the run's time since this was made that writing may take
    after        what an earlier run left there, behind which this one goes on; without it, what is there makes way
    failed       what the disk has refused, if it has; the run goes on without
    """

    failed: OSError | None = None

    def __init__(self, folder: Path, frames_axis: int = 2, share: float = SHARE, after: Kept | None = None):
        self.folder = Path(folder)
        self._axis, self._share = frames_axis, share
        self._started = time.perf_counter()
        self._spent = self._last = 0.0
        self._waiting: list[tuple[Tensor, dict[str, Any]]] = []
        self._parts = self._first = 0 if after is None else after.parts
        self._given_up = False

    def add(self, block: Tensor, **facts: Any) -> None:
        """A finished block [B, C, F, ...], on any device, and what is to be known of it, as JSON has it. It is kept by reference
        until it is written: do not write to it. Raises nothing for a disk that refuses."""
        if self._given_up:
            return
        self._waiting.append((block, facts))
        if self._spent + self._last <= self._share * (time.perf_counter() - self._started):
            self.write()

    def write(self) -> None:
        """What waits becomes a part now: before something that may take the process along."""
        if not self._waiting:
            return
        begun = time.perf_counter()
        try:
            self._write()
        except OSError as error:
            self._refused(error)
        self._last = time.perf_counter() - begun
        self._spent += self._last

    def remove(self) -> None:
        """The run has ended well: its parts go, and so does the folder unless somebody else has put something there."""
        self._waiting.clear()
        remove_blocks(self.folder)

    @property
    def spent_seconds(self) -> float:
        """What all this has taken so far."""
        return self._spent

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._parts == self._first:
            remove_blocks(self.folder, self._parts)
            self.folder.mkdir(exist_ok=True)
        blocks = torch.cat([block.detach().cpu() for block, _ in self._waiting], self._axis)
        facts = json.dumps([{**each, "frames": block.shape[self._axis]} for block, each in self._waiting])
        tensors = {LATENT: blocks, UNSCALED: torch.zeros(0)}
        metadata = {_FACTS: facts, _AXIS: str(self._axis)}
        with written_whole(_part(self.folder, self._parts)) as unfinished:
            write_safetensors(
                unfinished, in_memory(tensors), metadata, checksums=(_CHECKSUMS, {_FACTS: checksum(facts.encode())})
            )
        self._parts += 1
        self._waiting.clear()

    def _refused(self, error: OSError) -> None:
        if self.failed is None:
            _LOG.warning(
                "finished frames cannot be kept in %s while the run goes on (%s); free space there, it goes on without",
                self.folder,
                error.strerror,
            )
        self.failed = error
        if sum(block.nbytes for block, _ in self._waiting) > _MOST_WAITING_BYTES:
            self._given_up = True
            self._waiting.clear()


@dataclass(frozen=True)
class Kept:
    """What a run has left: its blocks in their order, what is known of each, and in how many parts they are."""

    blocks: list[Tensor]
    facts: list[dict[str, Any]]
    parts: int


def read_blocks(folder: Path) -> Kept:
    """The blocks of a run that did not end. A part that is missing or damaged ends them: what came after belongs to nothing."""
    kept = Kept([], [], 0)
    while (part := _read_part(_part(folder, kept.parts))) is not None:
        kept = Kept([*kept.blocks, *part.blocks], [*kept.facts, *part.facts], kept.parts + 1)
    return kept


def remove_blocks(folder: Path, first: int = 0, end: int | None = None) -> None:
    """Parts from the number `first` on, below `end`; with the first part also the folder, unless there is something else."""
    for number, path in _parts(folder):
        if number >= first and (end is None or number < end):
            with suppress(OSError):
                path.unlink()
    if first == 0:
        with suppress(OSError):
            Path(folder).rmdir()


def unread_parts(folder: Path, kept: Kept) -> list[str]:
    """Names of the parts that are there and not in `kept`: a damaged one, and those behind it."""
    return sorted(path.name for number, path in _parts(folder) if number >= kept.parts)


def _parts(folder: Path) -> list[tuple[int, Path]]:
    """With their numbers; nothing else that is in the folder."""
    found = []
    with suppress(OSError):
        for path in Path(folder).iterdir():
            number = path.name.removeprefix(_PREFIX).removesuffix(ENDING)
            if number.isdecimal() and path.name == _part(folder, int(number)).name:
                found.append((int(number), path))
    return found


def _part(folder: Path, number: int) -> Path:
    return Path(folder) / f"{_PREFIX}{number:05}{ENDING}"


def _read_part(path: Path) -> Kept | None:
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            metadata, joined = file.metadata() or {}, file.get_tensor(LATENT).clone()
        sums, text, axis = read_json(metadata[_CHECKSUMS]), metadata[_FACTS], int(metadata[_AXIS])
        if sums[LATENT] != checksum(joined.reshape(-1).view(torch.uint8).numpy().data) or sums[_FACTS] != checksum(text.encode()):
            return None
        facts = read_json(text)
        return Kept(list(joined.split([each["frames"] for each in facts], axis)), facts, 1)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError, RuntimeError):
        return None
