"""What kernel tests share: Triton's interpreter, switched on for one test at a time."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from .. import triton_interpreter


@pytest.fixture
def triton_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads an op's Triton module: interpreted without a GPU, compiled with one. Put tensors on `triton_interpreter.DEVICE`."""
    if reason := triton_interpreter.why_not():
        pytest.skip(reason)
    if triton_interpreter.DEVICE == "cpu":
        monkeypatch.setenv(triton_interpreter.VARIABLE, "1")
    return triton_interpreter.load
