"""What several tests need: tolerances, a watch on live memory, programs of tools/ as modules."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]


def tool_module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A program of tools/, which imports its neighbours by their bare names."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module(name)


def relative_error(reference: Tensor, estimate: Tensor) -> float:
    """Squared error as a share of the reference's variance."""
    return float((estimate - reference).square().sum() / (reference - reference.mean()).square().sum())


def assert_close(name: str, reference: Tensor, estimate: Tensor, relative: float) -> None:
    """Relative RMS error of a tensor, with its name in the message; NaN fails."""
    assert estimate.isfinite().all(), f"{name} holds NaN or infinity"
    error = float((estimate.double() - reference.double()).square().mean().sqrt() / reference.double().square().mean().sqrt())
    assert error <= relative, f"{name}: relative RMS error {error:.2e}, allowed {relative:.0e}"


class LiveBytes(TorchDispatchMode):
    """Watches every tensor that torch makes inside the `with`: `peak` is the most bytes alive at once, views not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:
                storage = leaf.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.storages = {key: entry for key, entry in self.storages.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return result
