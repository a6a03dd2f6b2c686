"""`klt` on a device that has no float64 (Apple's GPUs), played by tensors that say they lie there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from comfyui_qvg.qvg import QVGConfig
from comfyui_qvg.qvg.codec import KLTCodec
from comfyui_qvg.qvg.codec.base import EncodeHint
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

APPLE = torch.device("mps")


class AppleTensors(TorchFunctionMode):
    """What is made of tensors that are "there" is there, until it is copied to the CPU. Nothing there becomes float64, and no
    operation takes tensors of both devices (but for numbers)."""

    there: ClassVar[dict[int, Tensor]] = {}  # of all of them, as tables that kernels keep are

    def put(self, x: Tensor) -> Tensor:
        self.there[id(x)] = x  # kept, so that no other tensor gets its id
        return x

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tree_flatten((args, kwargs or {}))[0]
        tensors = [x for x in given if isinstance(x, Tensor)]
        there = any(id(x) in self.there for x in tensors)
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return APPLE if there else torch.device("cpu")
        if there and func is Tensor.cpu:
            return func(*args).clone()
        asked = [x for x in given if isinstance(x, torch.device)]
        moved = bool(asked) and func is Tensor.to
        if there and not moved:
            mixed = [x for x in tensors if id(x) not in self.there and x.ndim]
            assert not mixed, f"{func} takes tensors of two devices"
        out = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs or {}))
        out = out.clone() if moved else out  # `to` gives back what is on the CPU already
        if APPLE in asked or (there and not asked):
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, Tensor):
                    assert x.dtype != torch.float64, f"{func} makes float64 where there is none"
                    self.put(x)
        return out


def _on_cpu(x: Any) -> Any:
    return torch.device("cpu") if x == APPLE and isinstance(x, torch.device) else x


@pytest.mark.parametrize("preset", ["balanced", "near-exact"])
@pytest.mark.parametrize("opening", ["black", "ordinary"])
def test_the_same_bytes_without_float64(preset: str, opening: str) -> None:
    codec = KLTCodec(QVGConfig.preset(preset))
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, 2, 512, 64, generator=generator) * torch.linspace(0.2, 2, 64).roll(20 * n) for n in range(3)]
    parts[0] = parts[0] * (opening != "black")

    def encoded(put: Callable[[Tensor], Tensor]) -> list[dict[str, Tensor]]:
        hint, spans = EncodeHint(0), []
        for number, x in enumerate(parts):
            x = put(x.clone())
            if hint.reuse is not None:
                codec.is_new(x, hint.reuse)
            spans.append(codec.encode(x, hint))
            hint = EncodeHint(number + 1, reuse=spans[-1].codebook)
        return [span.tensors() for span in spans]

    wanted = encoded(lambda x: x)
    with AppleTensors() as apple:
        found = encoded(apple.put)
        assert all(tensor.device == APPLE for span in found for tensor in span.values())
    for one, other in zip(wanted, found, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
