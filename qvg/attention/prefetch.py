"""The next tile is made while the last one is used: on a side stream where there are streams."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import cache
from typing import TypeVar

import torch

from ...kernels.launch import on_gpu

T = TypeVar("T")


def slots(device: torch.device) -> int:
    """Tiles that exist at once."""
    return 2 if on_gpu(device) else 1


def prefetched(make: Callable[[int, int], T], count: int, device: torch.device) -> Generator[T, None, None]:
    """make(index, slot) for every index; what is yielded is valid until the next one is asked for.

    With streams, `make` runs one ahead on a side stream, into the other of two slots. Events keep it from overwriting a tile that
    is still read, and the reader from reading one that is still written.
    """
    if not on_gpu(device) or count < 2:
        for index in range(count):
            yield make(index, 0)
        return
    main, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(main)  # what is decoded was written there
    read: list[torch.cuda.Event | None] = [None, None]

    def start(index: int) -> tuple[T, torch.cuda.Event]:
        done = read[index % 2]
        if done is not None:
            side.wait_event(done)
        with torch.cuda.stream(side):
            return make(index, index % 2), side.record_event()

    try:
        following = start(0)
        for index in range(count):
            tile, ready = following
            if index + 1 < count:
                following = start(index + 1)
            main.wait_event(ready)
            yield tile
            read[index % 2] = main.record_event()
    finally:
        main.wait_stream(side)  # also when the reader gave up: buffers go back to the main stream


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
