"""A study's folder: what is finished is there once, whole or not at all, and is found again by what it depends on.

plan.json      what was asked for
rows/          one JSON file a video
exact/         pictures of the exact videos, that others are compared with
videos/        what people see

A row's name holds what the video depends on and the version that made it: rows of another version stay, are counted, and are
never mixed with this one's.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..bench.judge import source_digest
from ..errors import ConfigError, MediaError
from ..files import try_folder, written_new, written_whole
from ..models.demo_film.weights import WEIGHTS as FILM_WEIGHTS
from ..models.demo_world import WEIGHTS as WORLD_WEIGHTS
from ..study.run import StudyRun
from .choices import Choice
from .plan import FILES, Case, StudyPlan, Target

# Of what a row holds: a newer number where a field changes its meaning.
ROW_FORMAT = 1
PLAN, ROWS, EXACT, VIDEOS = "plan.json", "rows", "exact", "videos"


@cache
def version(kind: str) -> str:
    """Of everything of ours that a video of this kind of target is made by, and what is said of it: twelve digits."""
    files = {"world": WORLD_WEIGHTS, "film": FILM_WEIGHTS}
    weights = hashlib.sha256(files[kind].read_bytes()).hexdigest() if kind in files else ""
    facts = [ROW_FORMAT, source_digest(), weights, torch.__version__.partition("+")[0]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def key(plan: StudyPlan, target: Target, case: Case, choice: Choice) -> str:
    """Everything that a row depends on beside the version. Methods that are the same under two names share one."""
    settings = choice.settings.same_as if isinstance(choice.settings, StudyRun) else choice.settings
    kept = choice.node if target.kind == "comfyui" else asdict(settings)
    options = {name: _content(name, value) for name, value in sorted(target.options.items())}
    facts = [target.kind, options, case.prompt, case.seed, case.frames, kept, sorted(plan.metrics), plan.window_frames]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def _content(name: str, value: Any) -> Any:
    """Of a file what is in it, not where it lies; of large ones the beginning and the size."""
    if name not in FILES or not Path(str(value)).is_file():
        return value
    with Path(value).open("rb") as file:
        return [hashlib.sha256(file.read(1 << 20)).hexdigest(), Path(value).stat().st_size]


class Store:
    """A folder of results."""

    def __init__(self, folder: Path):
        self.folder = folder

    def prepare(self, plan: StudyPlan) -> None:
        """Make the folder, and be sure that it can be written to. MediaError."""
        try:
            for name in (ROWS, EXACT, VIDEOS):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            try_folder(self.folder)
            with written_whole(self.folder / PLAN) as unfinished:
                unfinished.write_text(plan.to_json(), encoding="utf-8")
        except OSError as error:
            raise MediaError(f"{self.folder} cannot be written to ({error.strerror}); choose another --out") from None

    def plan(self) -> StudyPlan:
        """What was asked for last. ConfigError."""
        path = self.folder / PLAN
        try:
            return StudyPlan.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); begin with `qvg study run PLAN --out DIR`") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{path} is no plan of this version; run the plan's own file again with --out {self.folder}"
            ) from None

    def row_path(self, key: str, version: str) -> Path:
        """Where a row is, or will be."""
        return self.folder / ROWS / f"{key}-{version}.json"

    def row(self, key: str, version: str) -> dict[str, Any] | None:
        """A finished row; None where there is none that can be read."""
        try:
            found = json.loads(self.row_path(key, version).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("format") == ROW_FORMAT else None

    def has(self, key: str, version: str) -> bool:
        """Whether a row is finished."""
        return self.row_path(key, version).is_file()

    def others(self, key: str, version: str) -> int:
        """How many rows of other versions there are of the same video."""
        return sum(path.name != f"{key}-{version}.json" for path in (self.folder / ROWS).glob(f"{key}-*.json"))

    def exact(self, key: str, version: str) -> bytes | None:
        """Pictures of an exact video, packed."""
        with suppress(OSError):
            return (self.folder / EXACT / f"{key}-{version}.npz").read_bytes()
        return None

    def video(self, key: str, version: str) -> Path:
        """What people see of a row."""
        return self.folder / VIDEOS / f"{key}-{version}.mp4"

    def put(self, key: str, version: str, row: Mapping[str, Any], video: bytes, exact: bytes | None) -> bool:
        """Keep a result; its row comes last. -> False where somebody else had finished it meanwhile. MediaError: a full disk;
        what was finished before stays."""
        with _said(self.folder):
            if exact is not None:
                _write(self.folder / EXACT / f"{key}-{version}.npz", exact)
            if video:
                _write(self.video(key, version), video)
            try:
                with written_new([self.row_path(key, version)]) as new:
                    new.unfinished.write_text(json.dumps(row), encoding="utf-8")
            except FileExistsError:
                return False
        return True


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content)


@contextmanager
def _said(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        way = "free space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        raise MediaError(
            f"a result cannot be written to {folder} ({error.strerror}); finished rows are kept: {way}, then `qvg study resume`"
        ) from None
