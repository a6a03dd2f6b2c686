"""Ctrl-C, once however often it is sent."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

ONE_SECONDS = 1.0  # a shell, `timeout` and a service manager each send what was sent to them, to the same program


@contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Inside, each of these signals raises KeyboardInterrupt, but not twice within a second: echoes do not disturb who tidies up.

    Also where they were ignored, as they are in what a script starts in the background.
    """
    last = float("-inf")

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= ONE_SECONDS:
            last = now
            raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
