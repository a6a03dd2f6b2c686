"""The pack on a counting GPU (`counting_gpu.py`): its Triton kernels count instead of starting, torch.cuda answers for a card
like an H100, and attention by a library is one kernel.

    with counting() as gpu:
        counts = gpu.counted(lambda: cache.attend(0, q, k, v))

What a Triton kernel reads and writes are its arguments: those that its source stores to (`stored_arguments.py`) and all others;
of what tables of addresses lead to, the tokens of its tile (`table_traffic.py`). With `values=True` its reference computes what
it would have written.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import bootstrap_package  # noqa: F401
import torch
from comfyui_qvg.kernels import dispatch
from comfyui_qvg.kernels.attention import library
from counting_gpu import CountingGpu, OnGpu, pointed_to, tensors_in, traffic
from stored_arguments import stored_arguments
from table_traffic import moved_by_table
from torch import Tensor

# Attention that every such card has: torch's, and our own.
_THERE = ("torch", "aten", "the pack's")


@contextlib.contextmanager
def counting(values: bool = False) -> Iterator[CountingGpu]:
    """See the module docstring."""
    gpu = CountingGpu(values)
    with _nothing_remembered(), contextlib.ExitStack() as patches:
        for patch in (*_launches(gpu), *_backends(gpu)):
            patches.enter_context(patch)
        with gpu:
            yield gpu


@contextlib.contextmanager
def _nothing_remembered() -> Iterator[None]:
    """What the pack keeps for a whole process (tables on a device, what a device can) is made anew, so that counts do not depend
    on what was counted before; and forgotten afterwards, because it is of no real device."""
    _forget()
    try:
        yield
    finally:
        _forget()


def _forget() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("comfyui_qvg.kernels") or name.startswith("comfyui_qvg.qvg"):
            for value in list(vars(module).values()):
                if callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()


def _launches(gpu: CountingGpu) -> Iterator[Any]:
    """Triton's."""
    from triton.runtime.jit import JITFunction

    yield mock.patch.object(JITFunction, "run", lambda kernel, *args, **options: _launch(gpu, kernel, args, options))


def _launch(gpu: CountingGpu, kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """A Triton launch: arguments that the kernel's source stores to are written, all others read."""
    named = dict(zip(kernel.arg_names, args, strict=False))
    named |= {name: options[name] for name in kernel.arg_names if name in options}
    missing = [name for name in kernel.arg_names if name not in named]
    if missing:
        raise TypeError(f"{kernel.__name__} was launched without {', '.join(missing)}")
    stored = stored_arguments(kernel)
    parts = {name: tensors_in(value) for name, value in named.items()}
    for name, tensors in parts.items():
        if strangers := [x for x in tensors if not isinstance(x, OnGpu)]:
            raise RuntimeError(f"{kernel.__name__} got {name} on {strangers[0].device}; kernels read the GPU's memory alone")
    reads = {name: tensors for name, tensors in parts.items() if name not in stored}
    writes = [x for name, tensors in parts.items() if name in stored for x in tensors]
    moved = moved_by_table(named, reads, options.get("grid"))
    if moved is None:
        whole = [x for tensors in reads.values() for x in tensors]
        gpu.kernel(kernel.__name__.lstrip("_"), whole, writes, traffic(pointed_to(whole)))
    else:
        gpu.kernel(kernel.__name__.lstrip("_"), moved.reads, writes, moved.more, moved.share)


def _backends(gpu: CountingGpu) -> Iterator[Any]:
    """The pack's choices: Triton for kernels, cuDNN for attention, as on a card without further packages."""
    yield mock.patch.object(dispatch, "_device_refusal", lambda device: None if device.type == "cuda" else "no GPU")
    there = lambda op, *arguments, **options: None if op.name.startswith(_THERE) else "is not installed"  # noqa: E731
    yield mock.patch.object(library, "_trial", there)
    for attribute in ("_SDPA", "_CUDNN", "_FLASH", "_EFFICIENT"):
        op = getattr(library, attribute)
        yield mock.patch.object(library, attribute, op._replace(call=_attention(gpu, op.name, attribute != "_SDPA")))
    if gpu.values:
        for op in dispatch.OPS:
            module = importlib.import_module(f"comfyui_qvg.kernels.{op}")
            if hasattr(module, "implementation"):
                yield mock.patch.object(module, "implementation", _computing(gpu, module.implementation))


def _attention(gpu: CountingGpu, name: str, has_lse: bool) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        with gpu.paused():
            out = torch.empty_like(q)
            lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device) if has_lse else None
        gpu.kernel(name.rsplit(".", 1)[-1].lstrip("_"), [q, k, v], [out] if lse is None else [out, lse])
        return out, lse

    return call


def _computing(gpu: CountingGpu, choose: Callable[..., ModuleType]) -> Callable[..., Any]:
    """Triton's module counts, the reference computes."""

    def chosen(op: str, x: Tensor, backend: str, refusal: str | None = None) -> Any:
        module = choose(op, x, backend, refusal)
        reference = importlib.import_module(f"comfyui_qvg.kernels.{op}.reference")

        def named(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                getattr(module, name)(*arguments, **options)
                with gpu.paused():
                    return getattr(reference, name)(*arguments, **options)

            return call

        return module if module is reference else _Both(named)

    return chosen


class _Both:
    """A module whose functions are made on demand."""

    def __init__(self, named: Callable[[str], Callable[..., Any]]):
        self._named = named

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._named(name)
