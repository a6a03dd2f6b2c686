"""What several tests need: tensors that look like a video model's keys and values, tolerances, and a watch on live memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]


def make_kv(
    seed: int = 0, frames: int = 8, rows: int = 30, cols: int = 52, heads: int = 1, channels: int = 128
) -> tuple[Tensor, Tensor]:
    """Keys and values [1, H, S, D] with the statistics of real ones (docs/quality.md, "Synthetic keys and values").

    Smooth fields that drift over the frames, a dozen objects, Student-t noise; keys with unequal channels and four that stand far
    off zero, values with a spread of token norms. The noise is set so that the published codec gains here what it gains on
    real tensors (6.9x for keys, 2.2x to 2.6x for values).
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    t, r, c = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(cols), indexing="ij")
    phases = torch.stack([t * 0.08, r * 0.2, c * 0.15], -1).float().flatten(0, 2)
    fields = torch.sin(phases @ randn(3, 40) + randn(40) * 3) * 2**0.5
    objects = torch.randint(0, 12, (rows // 5 + 1, cols // 5 + 1), generator=generator)[r // 5, c // 5].flatten()

    def tensor(noise: float) -> Tensor:
        chi = torch.stack([randn(heads, len(phases), channels).square() for _ in range(4)]).mean(0)
        smooth = fields @ randn(heads, 40, channels) / 40**0.5 + 0.6 * randn(heads, 12, channels)[:, objects]
        return smooth + noise * randn(heads, len(phases), channels) / chi.sqrt()

    walls = torch.zeros(channels)
    walls[:: channels // 4] = 4.0
    keys = tensor(0.35) * torch.exp(randn(heads, 1, channels) * 0.3) + walls
    values = tensor(0.7) * torch.exp(torch.sin(phases @ randn(3, heads)).T[..., None] * 0.6)
    return keys[None], values[None]


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
