"""Models in several files: `name-00001-of-00003.safetensors` and its siblings, with an index or without."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import UnsupportedModelError
from .packing import LAYERS_KEY
from .tensor_names import require_bounded, shown, some

_PART = re.compile(
    r"(?P<stem>.*?)(?P<before>^|[-_.])(?P<number>\d{1,6})(?P<of>[-_]of[-_])(?P<count>\d{1,6})(?P<ending>\.\w+)", re.IGNORECASE
)
_INDEX = re.compile(r"(?P<whole>.*)\.index(\.\w+)?\.json", re.IGNORECASE)
_MOST_PARTS = 1000
_MOST_INDEX = 16 << 20
_MOST_LOOKED_AT, _MOST_INDICES = 10_000, 10


@dataclass(frozen=True)
class Parts:
    """Files that are one model, in order. `names`: tensors that an index says they have, where there is one."""

    paths: tuple[Path, ...]
    names: frozenset[str] = frozenset()


def whole_name(path: Path) -> Path:
    """The name that a model would have in one file: what `model-00001-of-00002.safetensors` and its index are named after."""
    index, part = _INDEX.fullmatch(path.name), _PART.fullmatch(path.name)
    if index:
        return path.with_name(index["whole"]) if index["whole"] else path
    return path.with_name(part["stem"] + part["ending"]) if part and part["stem"] else path


def parts_of(path: Path) -> Parts | None:
    """All parts of the model that `path` is one of, or the index of; None: it is a file of its own.

    UnsupportedModelError: some are not there, or the index cannot be read.
    """
    if _INDEX.fullmatch(path.name):
        return _of_index(path)
    listed = _listed(path)
    if listed:
        return listed
    named = _PART.fullmatch(path.name)
    if not named or not 0 <= int(named["number"]) <= int(named["count"]) or int(named["count"]) < 2:
        return None
    count = int(named["count"])
    if count > _MOST_PARTS:
        raise UnsupportedModelError(f"{path.name} says that it is one of {count} parts, and models have at most {_MOST_PARTS}")
    width = len(named["number"])
    first, *others, last = (
        path.with_name(f"{named['stem']}{named['before']}{number:0{width}}{named['of']}{named['count']}{named['ending']}")
        for number in range(count + 1)
    )
    # Some count from 0.
    from_0 = path == first or (_is_file(first) and not _is_file(last))
    paths = (first, *others) if from_0 else (*others, last)
    _require_all(path, paths, f"{path.name} is part {int(named['number'])} of {count}" + (", counted from 0" if from_0 else ""))
    return Parts(paths)


def _listed(path: Path) -> Parts | None:
    """What an index beside `path` says that lists it; None: there is none. Of several it is the one named like the file."""
    try:
        with os.scandir(path.parent) as entries:
            names = [each.name for each, _ in zip(entries, range(_MOST_LOOKED_AT), strict=False)]
    except OSError:
        return None
    beginning = whole_name(path).stem
    indices = sorted((name for name in names if _INDEX.fullmatch(name)), key=lambda name: (not name.startswith(beginning), name))
    for name in indices[:_MOST_INDICES]:
        try:
            places = _places(path.with_name(name))
            if path.name in places.values():
                return _of_index(path.with_name(name))
        except UnsupportedModelError:  # of another model, or broken: the parts' own names may say enough
            continue
    return None


def _places(path: Path) -> dict[str, str]:
    """Of an index: the file that each tensor is in. UnsupportedModelError: it cannot be read."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_INDEX:
            raise ValueError(f"{found.st_size} bytes" if stat.S_ISREG(found.st_mode) else "it is no file")
        index = json.loads(path.read_text("utf-8-sig"))
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise ValueError("it has no weight_map of names and files")
        return {name: file.removeprefix("./") for name, file in places.items()}
    except (ValueError, RecursionError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise _unreadable(path, "lists in one another" if isinstance(error, RecursionError) else why or "") from error


def _unreadable(path: Path, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path.name} is an index of a model's parts that cannot be read ({shown(why, 120)}); give one of the parts, "
        "or download it again"
    )


def _of_index(path: Path) -> Parts:
    places = _places(path)
    files = sorted(set(places.values()))
    if not files:
        raise _unreadable(path, "it lists no files")
    strange = [name for name in files if not name or Path(name).name != name or "\\" in name]
    if strange:
        raise UnsupportedModelError(
            f"{path.name} is an index of a model's parts that lists files of other folders ({some(strange)}); put all parts into "
            "one folder, and give one of them"
        )
    if len(files) > _MOST_PARTS:
        raise UnsupportedModelError(f"{path.name} lists {len(files)} parts, and models have at most {_MOST_PARTS}")
    require_bounded(places, path.name)
    paths = tuple(path.with_name(name) for name in files)
    _require_all(path, paths, f"{path.name} is the index of a model in {len(files)} parts")
    return Parts(paths, frozenset(places))


def _require_all(path: Path, paths: Sequence[Path], what: str) -> None:
    absent = [each.name for each in paths if not _is_file(each)]
    if absent:
        are = "is not" if len(absent) == 1 else "are not"
        raise UnsupportedModelError(f"{what}, and {some(absent)} {are} beside it; put all parts into one folder")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no disk takes
        return False


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
                f"{path.name} is one of several parts, and two of them have {names}; they belong to different models, or one "
                "is there twice: put the parts of each model, as they were published, into a folder of their own"
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
