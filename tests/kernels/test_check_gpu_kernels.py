"""What `qvg check-gpu` compares, with the kernels themselves: interpreted here, compiled on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from comfyui_qvg.kernels import dispatch
from comfyui_qvg.kernels.attention import library
from comfyui_qvg.qvg.bench.gpu.correctness import check_kernels
from comfyui_qvg.qvg.bench.gpu.layer_run import Shape

from ..triton_interpreter import DEVICE


@pytest.fixture
def nothing_chosen() -> Iterator[None]:
    """What is chosen while a CPU passes for a GPU is for this test alone."""
    library._choose.cache_clear()
    yield
    library._choose.cache_clear()


@pytest.mark.usefixtures("nothing_chosen")
@pytest.mark.parametrize("preset", ["qvg", "balanced"])
def test_kernels_are_right(triton_kernel: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    triton_kernel("attention")
    monkeypatch.setattr(dispatch, "_device_refusal", lambda device: None)
    with torch.no_grad():
        checks = list(check_kernels(torch.device(DEVICE), "triton", Shape("tiny", 1, 4, 4, chunk_frames=1), 12, (preset,)))
    assert len(checks) == 12 and all(one.is_right for one in checks), [one.text() for one in checks if not one.is_right]
    # It is Triton's numbers that were compared: sums in another order than torch's.
    assert any(one.error > 0 for one in checks if "read exact" in one.name)
