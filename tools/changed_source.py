"""A module made of somebody else's file with some of its text changed, for tools that run official code at small sizes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any


class _Changed(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, change: Callable[[str], str]):
        super().__init__(name, path)
        self._change = change

    def get_code(self, fullname: str) -> types.CodeType:
        """Of the text as it is changed; a compiled file that lies beside it is not read."""
        return self.source_to_code(self._change(Path(self.path).read_text(encoding="utf-8")).encode(), self.path)


def changed_module(name: str, file: Path, change: Callable[[str], str], **members: Any) -> types.ModuleType:
    """The module of `file`'s text after `change`, known by `name`; `members` are there before it runs."""
    loader = _Changed(name, str(file), change)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    vars(made).update(members)
    loader.exec_module(made)
    return made
