"""Names the repository `comfyui_qvg` whatever the clone is called, keeps torch modest, and poisons memory for kernel tests."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read once, when torch is loaded: idle threads must not spin beside other jobs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# An empty module with a path: the root's own __init__ stays out of it, and so does an installed comfyui_qvg, which may be another
# clone's. The root itself never goes on sys.path, where `nodes` and `kernels` would shadow other people's modules.
_package = types.ModuleType("comfyui_qvg")
_package.__path__ = [str(ROOT)]
sys.modules["comfyui_qvg"] = _package

# Two threads find races that one cannot, and more do not make tensors of test size any faster. Where the suite is shared out, a
# process gets its share of the cores: threads beyond them wait for each other.
CORES = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or min(2, CORES)))

# torch imports Triton when it feels like it. What Triton defines on import runs in its interpreter only if that is on by then.
if importlib.util.find_spec("triton") and not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"
    importlib.import_module("triton.language")
    del os.environ["TRITON_INTERPRET"]

# Started in the background by a script, a process inherits "ignore SIGINT", and so would every child that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples everywhere, and no verdict on the speed of a busy machine.
hypothesis.settings.register_profile("house", derandomize=True, deadline=None)
hypothesis.settings.load_profile("house")


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    """Fill with what no honest result holds: NaN, or the largest number of an integer type."""
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(float("nan"))
    return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max)


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uninitialised memory is full of NaN (integers: of their largest value), so that reading what was never written shows."""

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *args, **kwargs: _poison(make(*args, **kwargs))

    places: list[tuple[Any, str]] = [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ]
    for place, name in places:
        monkeypatch.setattr(place, name, poisoned(getattr(place, name)))
    yield
