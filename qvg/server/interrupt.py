"""Ctrl-C, once however often it is sent."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

ONE_SECONDS = 1.0  # a shell, `timeout` and a service manager each send what was sent to them, to the same program

_HANGUPS = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # Windows has none


@contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Inside, each of these signals raises KeyboardInterrupt, but not twice within a second: echoes do not disturb who tidies up.

    Also where they were ignored, as they are in what a script starts in the background. Closing the terminal (SIGHUP) counts as
    one of them, but not where it is ignored: that is what `nohup` is for.
    """
    last = float("-inf")

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= ONE_SECONDS:
            last = now
            raise KeyboardInterrupt

    heeded = [*signals, *(hangup for hangup in _HANGUPS if signal.getsignal(hangup) is not signal.SIG_IGN)]
    before = {each: signal.signal(each, interrupt) for each in heeded}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
