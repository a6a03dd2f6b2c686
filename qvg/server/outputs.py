"""Files and texts of a run, fetched into a folder without overwriting anything."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, shown
from ..file_names import fitted, parts_of, safe_part, stem_and_ending
from ..files import try_folder, written_new
from .connection import NotGivenError, Server
from .http_limits import ElsewhereError
from .prompt import Prompt, label, title

MOST_OUTPUTS = 10_000
FETCHED_TYPES = ("output", "temp")  # "input" is what the user put there
_ROOM = "free space there or choose another --out, and run again"


@dataclass
class Outputs:
    """What has come into `folder` so far. `take` may be given the same output again and fetches it once."""

    server: Server
    prompt: Prompt
    folder: Path
    files: list[dict[str, str]] = field(default_factory=list)  # node, title, type, path
    texts: list[dict[str, str]] = field(default_factory=list)  # node, title, text
    failures: list[dict[str, str]] = field(default_factory=list)  # node, message
    _seen: set[tuple[str, ...]] = field(default_factory=set)
    _numbers: dict[str, int] = field(default_factory=dict)  # of every name, the last number that it was given

    def prepare(self) -> None:
        """Make the folder, and be sure that it can be written to before anything is queued. ConfigError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try_folder(self.folder)
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be written to ({error.strerror}); choose another --out") from None

    def take(self, node: str, output: Any) -> None:
        """Fetch all that a node has put out: `output` is its entry in /history or in an `executed` event. ServerError."""
        for entry in _files(output):
            name, subfolder, kind = (_text(entry.get(key)) for key in ("filename", "subfolder", "type"))
            kind = kind or "output"
            if name and kind in FETCHED_TYPES and self._is_new(node, kind, subfolder, name):
                self._fetch(node, {"filename": name, "subfolder": subfolder, "type": kind})
        for number, text in enumerate(_texts(output)):
            if self._is_new(node, "text", str(number), text):
                self._write_text(node, text)

    def _is_new(self, *key: str) -> bool:
        if key in self._seen or len(self._seen) > MOST_OUTPUTS:
            return False
        self._seen.add(key)
        if len(self._seen) > MOST_OUTPUTS:
            self._fail(key[0], f"the run has more than {MOST_OUTPUTS} outputs, and the others are not fetched")
            return False
        return True

    def _fetch(self, node: str, query: dict[str, str]) -> None:
        where = shown("/".join(part for part in (query["type"], query["subfolder"], query["filename"]) if part), 200)
        try:
            with written_new(self._free_names(query["filename"])) as new:
                self.server.download(query, new.unfinished)
        except ElsewhereError as error:
            self._fail(node, f"the server sends us to {error.place} for {where}, and only its own files are fetched")
            return
        except NotGivenError as status:
            way_out = "if it was deleted there, change a seed to have it made again"
            self._fail(node, f"the server does not give out {where} (HTTP {status}); {way_out}")
            return
        except ConnectionError:
            raise
        except OSError as error:
            self._fail(
                node, f"{where} could not be written to {self.folder} ({error.strerror}); it is still on the server: {_ROOM}"
            )
            return
        self.files.append({"node": node, "title": title(self.prompt, node), "type": query["type"], "path": str(new.path)})

    def _write_text(self, node: str, text: str) -> None:
        name = title(self.prompt, node)
        self.texts.append({"node": node, "title": name, "text": text})
        try:
            with written_new(self._free_names(f"{name or 'text'}.txt")) as new:
                new.unfinished.write_text(text.rstrip("\n") + "\n", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            self._fail(node, f"its text could not be written to {self.folder} ({error.strerror}); {_ROOM}")
            return
        self.files.append({"node": node, "title": name, "type": "text", "path": str(new.path)})

    def _free_names(self, wanted: str) -> Iterator[Path]:
        """`free_names` that does not begin at 2 for the thousandth file of one name."""
        name = safe_name(wanted)
        first = self._numbers.get(name, 0) + 1
        for number, path in enumerate(free_names(self.folder, name, first), first):
            self._numbers[name] = number
            yield path

    def _fail(self, node: str, message: str) -> None:
        self.failures.append({"node": node, "message": f"{label(self.prompt, node)}: {message}"})


def _files(output: Any) -> Iterator[dict[str, Any]]:
    """Every file that an output names, under whatever word: images, gifs, audio, ..."""
    for entries in output.values() if isinstance(output, dict) else ():
        for entry in entries if isinstance(entries, (list, tuple)) else ():
            if isinstance(entry, dict) and entry.get("filename"):
                yield entry


def _texts(output: Any) -> list[str]:
    texts = output.get("text") if isinstance(output, dict) else None
    each = [texts] if isinstance(texts, str) else texts
    return [text for text in each if isinstance(text, str)] if isinstance(each, (list, tuple)) else []


def safe_name(name: str) -> str:
    """A file name for every system, out of one that a server chose: never a path, never empty, never too long."""
    last = safe_part(parts_of(name)[-1].strip(" .") or "output")
    return fitted(*stem_and_ending(last))


def free_names(folder: Path, name: str, first: int = 1) -> Iterator[Path]:
    """`name` in `folder`, then `name` with a number before its ending, for where that is taken; or from a number on."""
    stem, ending = stem_and_ending(name)
    numbered = (folder / fitted(stem, f"-{number}{ending}") for number in itertools.count(max(2, first)))
    return itertools.chain([folder / name], numbered) if first == 1 else numbered


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
