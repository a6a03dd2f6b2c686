"""What a LoRA file may add to a tensor, of the kinds that are sums: a product of two matrices, two such products multiplied
entry by entry (LoHa) or by Kronecker (LoKr), or the difference itself; and several products, one below the other, for a matrix
that several layers were joined in.

`parts` are the tensors by the names that ComfyUI's own LoRA code knows, for its weight patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Change(Protocol):
    """Something to be added to a tensor."""

    @property
    def parts(self) -> dict[str, Tensor]:
        """What it is made of."""

    def made(self) -> list[int] | None:
        """Shape of what is added, its sides behind the first in one; None: its parts do not go together."""

    def difference(self) -> Tensor:
        """What is added, in float32, in the shape of `made`."""


def fits(change: Change, weight: Tensor) -> bool:
    """Whether it can be added to `weight`; its parts go together."""
    return change.made() == _flat_shape(weight.shape)


def added(change: Change, weight: Tensor) -> Tensor:
    """A new tensor, in float32 whatever `weight` is in."""
    return weight.float() + change.difference().reshape(weight.shape)


def _flat_shape(shape: torch.Size) -> list[int]:
    return list(shape) if len(shape) < 2 else [shape[0], shape[1:].numel()]


def _flat(tensor: Tensor) -> Tensor:
    return tensor.float().flatten(1)


@dataclass(frozen=True)
class LowRank:
    """`scale * up @ down`. down [rank, in, ...], up [out, rank, ...]: of a convolution both have its sides, up's are 1."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Rows of down; of matrices that do not go together, too."""
        return self.down.shape[0] if self.down.ndim else 0

    @property
    def parts(self) -> dict[str, Tensor]:
        return {"lora_down.weight": self.down, "lora_up.weight": self.up, "alpha": torch.tensor(self.scale * self.rank)}

    def made(self) -> list[int] | None:
        if min(self.down.ndim, self.up.ndim) < 2 or not self.rank or self.up.shape[1:].numel() != self.rank:
            return None
        return [self.up.shape[0], self.down.shape[1:].numel()]

    def difference(self) -> Tensor:
        return self.scale * (_flat(self.up) @ _flat(self.down))


@dataclass(frozen=True)
class Stacked:
    """One below the other, each of some rows of a matrix, in order."""

    changes: tuple[LowRank, ...]

    @property
    def parts(self) -> dict[str, Tensor]:
        """As one product, whose `up` is zero off the diagonal: so many times as large. See `rows`."""
        up = torch.block_diag(*(change.up for change in self.changes))
        return LowRank(torch.cat([change.down for change in self.changes]), up, self.changes[0].scale).parts

    @property
    def rows(self) -> list[tuple[int, int, LowRank]]:
        """First row, how many, and what is added to them."""
        counts = [change.up.shape[0] for change in self.changes]
        return [(sum(counts[:at]), count, change) for at, (count, change) in enumerate(zip(counts, self.changes, strict=True))]

    def made(self) -> list[int] | None:
        sides = [change.made() for change in self.changes]
        known = [side for side in sides if side is not None]
        if len(known) < len(sides) or len({side[1] for side in known}) > 1:
            return None
        return [sum(side[0] for side in known), known[0][1]]

    def difference(self) -> Tensor:
        return torch.cat([change.difference() for change in self.changes])


@dataclass(frozen=True)
class Hadamard:
    """`scale * (a1 @ b1) * (a2 @ b2)`, entry by entry. a [out, rank], b [rank, in]."""

    a1: Tensor
    b1: Tensor
    a2: Tensor
    b2: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """That alpha is divided by."""
        return self.b1.shape[0] if self.b1.ndim else 0

    @property
    def parts(self) -> dict[str, Tensor]:
        matrices = {"hada_w1_a": self.a1, "hada_w1_b": self.b1, "hada_w2_a": self.a2, "hada_w2_b": self.b2}
        return {**matrices, "alpha": torch.tensor(self.scale * self.rank)}

    def made(self) -> list[int] | None:
        one, two = _product(self.a1, self.b1), _product(self.a2, self.b2)
        return one if one == two else None

    def difference(self) -> Tensor:
        return self.scale * (self.a1.float() @ self.b1.float()) * (self.a2.float() @ self.b2.float())


@dataclass(frozen=True)
class Kronecker:
    """`scale * kron(w1, w2)`, either given as it is or as a product of two matrices."""

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    scale: float = 1.0

    @property
    def rank(self) -> int | None:
        """That alpha is divided by; None: neither is a product, and alpha has no meaning."""
        split = next((factor for factor in (self.w2, self.w1) if len(factor) == 2), None)
        return None if split is None else (split[1].shape[0] if split[1].ndim else 0)

    @property
    def parts(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, factor in (("lokr_w1", self.w1), ("lokr_w2", self.w2)):
            found |= {name: factor[0]} if len(factor) == 1 else {f"{name}_a": factor[0], f"{name}_b": factor[1]}
        return found if self.rank is None else {**found, "alpha": torch.tensor(self.scale * self.rank)}

    def made(self) -> list[int] | None:
        one, two = (_product(*factor) if len(factor) == 2 else list(factor[0].shape) for factor in (self.w1, self.w2))
        if one is None or two is None or len(one) != 2 or len(two) != 2:
            return None
        return [one[0] * two[0], one[1] * two[1]]

    def difference(self) -> Tensor:
        return self.scale * torch.kron(_whole(self.w1), _whole(self.w2))


@dataclass(frozen=True)
class Difference:
    """The tensor itself."""

    tensor: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        return {"diff": self.tensor}

    def made(self) -> list[int] | None:
        return _flat_shape(self.tensor.shape)

    def difference(self) -> Tensor:
        return self.tensor.float()


def _whole(factor: tuple[Tensor, ...]) -> Tensor:
    return factor[0].float() if len(factor) == 1 else factor[0].float() @ factor[1].float()


def _product(left: Tensor, right: Tensor) -> list[int] | None:
    """Shape of a product of two matrices, if it is one."""
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0] or not right.shape[0]:
        return None
    return [left.shape[0], right.shape[1]]
