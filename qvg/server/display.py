"""What a person sees while a server works: a line for each node that has run, and a bar for the one that runs."""

from __future__ import annotations

import sys
import time
from typing import Any

from ..errors import shown

LABEL_LETTERS, LINE_LETTERS = 32, 1000
MOST_STEPS = 10**12  # of a bar; a whole number of thousands of digits is no float any more


class Display:
    """Lines and a bar on stderr. The bar only on a terminal, and where tqdm is."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._node, self._text, self._since = "", "", 0.0

    def say(self, text: str) -> None:
        """A line above the bar; of what others wrote only what a terminal does not obey."""
        text = shown(text, LINE_LETTERS)
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def node(self, name: str) -> None:
        """This node runs now, or none does (""); what is known of the one before becomes a line."""
        name = shown(name)
        if name == self._node:
            return
        if self._node:
            took = time.monotonic() - self._since
            self._drop_bar()
            self.say(f"  {self._node:<{LABEL_LETTERS}} {took:7.1f} s  {self._text}".rstrip())
        self._node, self._text, self._since = name, "", time.monotonic()
        if name:
            self._make_bar(name)

    def steps(self, done: float, total: float) -> None:
        """So many steps of the node that runs are done."""
        if self._bar is not None and 0 <= done <= total <= MOST_STEPS:
            self._bar.total, self._bar.n = total, done
            self._bar.refresh()

    def text(self, text: str) -> None:
        """The line that the running node shows, such as `block 3/97, cache 4.1 MB`."""
        self._text = shown(next(iter(text.splitlines()), ""), LINE_LETTERS)
        if self._bar is not None and self._text:
            self._bar.set_postfix_str(self._text)

    def waiting(self, before: int) -> None:
        """The run stands in the queue behind so many others."""
        self.node("")
        text = f"  waiting in the queue, {before} before this one"
        if text != self._text:
            self._text = text
            self.say(text)

    def close(self) -> None:
        """Finish the line of the last node."""
        self.node("")
        self._drop_bar()

    def _make_bar(self, name: str) -> None:
        if not sys.stderr.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        form = "  {desc} {percentage:3.0f}%|{bar:20}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}]{postfix}"
        self._bar = tqdm(
            total=1, desc=f"{name:<{LABEL_LETTERS}}", bar_format=form, leave=False, file=sys.stderr, dynamic_ncols=True
        )

    def _drop_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
