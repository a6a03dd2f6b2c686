"""Models in several files: `name-00001-of-00003.safetensors` and its siblings, with an index or without."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import UnsupportedModelError
from .packing import LAYERS_KEY
from .tensor_names import require_bounded, shown, some

_PART = re.compile(
    r"(?P<stem>.*?)(?P<before>[-_.])(?P<number>\d{1,6})(?P<of>[-_]of[-_])(?P<count>\d{1,6})(?P<ending>\.\w+)", re.IGNORECASE
)
_INDEX = re.compile(r"(?P<whole>.*)\.index(\.\w+)?\.json", re.IGNORECASE)
_MOST_PARTS = 1000
_MOST_INDEX = 16 << 20


@dataclass(frozen=True)
class Parts:
    """Files that are one model, in order. `names`: tensors that an index says they have, where there is one."""

    paths: tuple[Path, ...]
    names: frozenset[str] = frozenset()


def whole_name(path: Path) -> Path:
    """The name that a model would have in one file: what `model-00001-of-00002.safetensors` and its index are named after."""
    index, part = _INDEX.fullmatch(path.name), _PART.fullmatch(path.name)
    if index:
        return path.with_name(index["whole"])
    return path.with_name(part["stem"] + part["ending"]) if part else path


def parts_of(path: Path) -> Parts | None:
    """All parts of the model that `path` is one of, or the index of; None: it is a file of its own.

    UnsupportedModelError: some are not there, or the index cannot be read.
    """
    if _INDEX.fullmatch(path.name):
        return _of_index(path)
    named = _PART.fullmatch(path.name)
    if not named or int(named["number"]) > int(named["count"]) or int(named["count"]) < 2:
        return None
    index = path.with_name(f"{named['stem']}{named['ending']}.index.json")
    try:
        listed = _of_index(index) if index.is_file() else None
    except UnsupportedModelError:  # of another model, or broken: the parts' own names say enough
        listed = None
    if listed and path in listed.paths:
        return listed
    count = int(named["count"])
    if count > _MOST_PARTS:
        raise UnsupportedModelError(f"{path.name} says that it is one of {count} parts, and models have at most {_MOST_PARTS}")
    paths = _siblings(path, named, range(count + 1))
    # Most writers count from 1. A part 0 tells of one that does not.
    from_one = int(named["number"]) == count or (int(named["number"]) > 0 and not paths[0].is_file())
    paths = paths[1:] if from_one else paths[:-1]
    which = f"part {int(named['number'])} of {count}" if from_one else f"number {int(named['number'])} of {count} parts (from 0)"
    _require_all(path, paths, f"{path.name} is {which}")
    return Parts(paths)


def _siblings(path: Path, named: re.Match[str], numbers: Iterable[int]) -> tuple[Path, ...]:
    """Files that are named as `path` is, with other numbers."""
    width, stem, ending = len(named["number"]), named["stem"] + named["before"], named["of"] + named["count"] + named["ending"]
    return tuple(path.with_name(f"{stem}{number:0{width}}{ending}") for number in numbers)


def _of_index(path: Path) -> Parts:
    try:
        if path.stat().st_size > _MOST_INDEX:
            raise ValueError(f"{path.stat().st_size} bytes")
        places = json.loads(path.read_text("utf-8"))["weight_map"]
        files = sorted(set(places.values()))
        if not files or any(not name or Path(name).name != name or "\\" in name for name in files):
            raise ValueError("it names no files of its own folder")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UnsupportedModelError(
            f"{path.name} is an index of a model's parts that cannot be read ({shown(str(error), 120)}); give one of the parts, "
            "or download it again"
        ) from error
    if len(files) > _MOST_PARTS:
        raise UnsupportedModelError(f"{path.name} lists {len(files)} parts, and models have at most {_MOST_PARTS}")
    require_bounded(places, path.name)
    paths = tuple(path.with_name(name) for name in files)
    _require_all(path, paths, f"{path.name} is the index of a model in {len(files)} parts")
    return Parts(paths, frozenset(places))


def _require_all(path: Path, paths: Sequence[Path], what: str) -> None:
    absent = [each.name for each in paths if not each.is_file()]
    if absent:
        are = "is not" if len(absent) == 1 else "are not"
        raise UnsupportedModelError(f"{what}, and {some(absent)} {are} beside it; put all parts into one folder")


def joined(
    path: Path, parts: Parts, read: Callable[[Path], tuple[dict[str, Any], dict[str, str]]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What is in all parts, as if it were in one file. UnsupportedModelError: two have the same tensor, or they lack some."""
    content: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for part in parts.paths:
        tensors, said = read(part)
        twice = content.keys() & tensors.keys()
        if twice:
            names = some(sorted(map(str, twice)))
            raise UnsupportedModelError(
                f"{path.name} is one of several parts, and two of them have {names}; they belong to different "
                "models: put each model's parts into a folder of their own"
            )
        content |= tensors
        require_bounded(content, path.name)
        metadata = {**said, **metadata, **_layers(metadata, said)}
    lacks = sorted(parts.names - {name for name, each in content.items() if isinstance(each, Tensor)})
    if lacks:
        raise UnsupportedModelError(
            f"{path.name}: the index lists {len(lacks)} tensors that no part has ({some(lacks)}); the parts are of another "
            "model, or damaged: download them again"
        )
    return content, metadata


def _layers(first: dict[str, str], second: dict[str, str]) -> dict[str, str]:
    """Packed layers of both parts. Records that cannot be read are left to who reads the model."""
    if LAYERS_KEY not in first or LAYERS_KEY not in second:
        return {}
    try:
        records = [json.loads(each[LAYERS_KEY]) for each in (first, second)]
        return {LAYERS_KEY: json.dumps({**records[0], "layers": {**records[0]["layers"], **records[1]["layers"]}})}
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
