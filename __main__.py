"""`python -m comfyui_qvg`, and the `qvg` command, which begins here: what it is made of takes seconds to import, and who presses
Ctrl-C meanwhile is answered too."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """See `qvg/cli.py`."""
    before = signal.signal(signal.SIGINT, _leave)
    try:
        from .qvg.cli import main as qvg
    finally:
        signal.signal(signal.SIGINT, before)
    return qvg(arguments)


def _leave(_number: int, _frame: object) -> None:
    # No exception: some of what is imported would take it for an error of its own.
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
