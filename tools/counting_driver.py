"""torch.cuda for `counting_gpu.py`: a card like an H100 that never waits, and streams that do nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch


class _Stream:
    """A stream or an event: nothing to wait for."""

    def __init__(self, *arguments: Any, **options: Any):
        pass

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments, **options: _Stream()


def driver() -> Iterator[Any]:
    """torch.cuda."""
    properties = SimpleNamespace(name="counting GPU", multi_processor_count=132, major=9, minor=0, warp_size=32)
    nothing: Callable[..., Any] = lambda *arguments, **options: contextlib.nullcontext()  # noqa: E731
    for name, stand_in in {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: properties.name,
        "current_stream": _Stream,
        "Stream": _Stream,
        "Event": _Stream,
        "stream": nothing,
        "device_of": nothing,
        "synchronize": lambda device=None: None,
    }.items():
        yield mock.patch.object(torch.cuda, name, stand_in)
    yield _lifting()


@contextlib.contextmanager
def _lifting() -> Iterator[None]:
    """torch.tensor(..., device="cuda") makes its numbers on the host and copies them where the mode sees it."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
