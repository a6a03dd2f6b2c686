"""A GPU that computes nothing and counts everything: which kernels a program would start, and what they would read and write.

Tensors on it say that they are on `cuda:0`, so that a program takes its GPU's paths. Behind each is one on torch's `meta` device
or, where a few numbers came from the host, those numbers. Views, allocations and shapes cost nothing. Every other operation of
torch counts as one kernel (some of a library's are several), every copy between host and device as one, and everything that makes
the host wait as a synchronisation. Traffic counts what an operation is given and what it writes, each tensor once: what caches
make of repeated reads is not known here. `counting_pack.py` adds the pack's own kernels.

`values=True` keeps all numbers in CPU memory instead and really computes, for programs that look at them.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from counting_driver import driver
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)
# Numbers that the host made: so many at most are known on the device, too.
_KNOWN = 1 << 16
# Allocations, and what only changes how a tensor is looked at without saying so in its schema.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "sym_size", "resize_", "set_"}
_WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}


@dataclass
class Counts:
    """What a program did. `kernels`: launches by name, `traffic`: bytes that they read and write."""

    kernels: Counter[str] = field(default_factory=Counter)
    traffic: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    written_bytes: int = 0
    syncs: int = 0

    @property
    def launches(self) -> int:
        """All of them."""
        return sum(self.kernels.values())

    def row(self) -> dict[str, int]:
        """As it is frozen."""
        return {"launches": self.launches, "read": self.read_bytes, "written": self.written_bytes, "syncs": self.syncs}


# By their storage, the numbers of tensors whose address was asked for; and by address those tensors, which keeps them alive.
_NUMBERS: dict[int, int] = {}
_ADDRESSES: dict[int, OnGpu] = {}


class OnGpu(Tensor):
    """A tensor that says it is on `cuda:0`; `inner` is what is behind it."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGpu:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE, requires_grad=False
        )
        made.inner = inner
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} was called outside of the counting GPU; keep its tensors inside the `with`")

    def data_ptr(self) -> int:
        """An address that no other tensor has, for tables that kernels find their tensors by; `pointed_to` is the way back."""
        storage = self.inner.untyped_storage()
        number = _NUMBERS.setdefault(storage._cdata, len(_NUMBERS) + 1)
        address = (number << 40) + self.inner.storage_offset() * self.inner.element_size()
        _ADDRESSES[address] = self
        return address

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"

    def __getitem__(self, key: Any) -> Tensor:
        """As torch's own, which asks the driver for the current device first."""
        return _indexed(self, key if isinstance(key, tuple) else (key,))

    def __setitem__(self, key: Any, value: Any) -> None:
        """The same."""
        if isinstance(key, Tensor) and key.dtype == torch.bool and not isinstance(value, Tensor):
            self.masked_fill_(key, value)
        elif any(isinstance(one, Tensor) for one in (key if isinstance(key, tuple) else (key,))):
            raise NotImplementedError("the counting GPU does not scatter by index; use index_put_ or where")
        elif isinstance(value, Tensor):
            self[key].copy_(value)
        else:
            self[key].fill_(value)

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
        """As torch's own, whose gradients ask for the current device, too."""
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.aten.copy_.default(self, source, non_blocking)  # type: ignore[no-any-return]

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """The same."""
        return self if self.is_contiguous() else self.clone(memory_format=memory_format)

    def __invert__(self) -> Tensor:
        return self.bitwise_not()

    def tolist(self) -> Any:
        """The same."""
        return self.to("cpu").tolist()

    def item(self) -> Any:
        """The same."""
        return torch.ops.aten._local_scalar_dense.default(self)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.unbind(0))


def _indexed(x: Tensor, key: tuple[Any, ...]) -> Tensor:
    """x[key]: integers, slices, None and an ellipsis as views; tensors and lists by `index`."""
    axes = sum(one is not None and one is not Ellipsis for one in key)
    if Ellipsis in [one for one in key if not isinstance(one, Tensor)]:
        at = next(i for i, one in enumerate(key) if one is Ellipsis)
        key = (*key[:at], *[slice(None)] * (x.dim() - axes), *key[at + 1 :])
    axis, chosen = 0, dict[int, Tensor]()
    for one in key:
        if one is None:
            x = x.unsqueeze(axis)
        elif isinstance(one, slice):
            x = x if one == slice(None) else torch.ops.aten.slice.Tensor(x, axis, one.start, one.stop, one.step or 1)
        elif isinstance(one, Tensor | list):
            chosen[axis] = one if isinstance(one, Tensor) else torch.tensor(one)
        else:
            x = x.select(axis, int(one))
            continue
        axis += 1
    if chosen:
        return torch.ops.aten.index.Tensor(x, [chosen.get(i) for i in range(max(chosen) + 1)])  # type: ignore[no-any-return]
    return x


class CountingGpu(TorchDispatchMode):
    """See the module docstring. `counts` is filled while the mode is on; `paused()` counts nothing for a while."""

    def __init__(self, values: bool = False):
        super().__init__()
        self.values, self.counts, self._quiet = values, Counts(), 0
        self._driver = contextlib.ExitStack()

    def __enter__(self) -> CountingGpu:
        for patch in driver():
            self._driver.enter_context(patch)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._driver.close()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing of what is done in it counts."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    def counted(self, call: Callable[[], object]) -> Counts:
        """What one call does."""
        self.counts = Counts()
        call()
        return self.counts

    def kernel(self, name: str, reads: list[Tensor], writes: list[Tensor], more_read: int = 0, share: float = 1.0) -> None:
        """One launch; `more_read` bytes are not those of whole tensors, and a `share` of what is written is."""
        if not self._quiet:
            read, written = traffic(reads) + more_read, int(traffic(writes) * share)
            self.counts.kernels[name] += 1
            self.counts.traffic[name] += read + written
            self.counts.read_bytes += read
            self.counts.written_bytes += written

    def tensor(self, x: Tensor) -> OnGpu:
        """A CPU tensor's twin on the device, without counting."""
        return OnGpu(x if self.values else x.to("meta"))

    # ---------------------------------------------------------------------------------------------------- operations of torch

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # no compiler is near, and importing it takes longer than counting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_in(args) if not kwargs else tensors_in((*args, *kwargs.values()))
        target = kwargs.get("device")
        here = [x for x in given if isinstance(x, OnGpu)]
        if not here and (target is None or torch.device(target).type != "cuda"):
            return func(*args, **kwargs)
        op = _described(func)
        if op.name == "_local_scalar_dense":
            return self._scalar(here[0])
        if op.name == "_to_copy" and target is not None:
            return self._copied(func, args, kwargs, torch.device(target))
        if len(here) != len(given):
            _one_device(op.name, given)
        inner_args, inner_kwargs = self._inner(args, kwargs, here)
        result = _wrapped(op, args, kwargs, func(*inner_args, **inner_kwargs))
        if not (op.is_free or self._quiet):
            self._count(op, given, here, result)
        return result

    def _inner(self, args: Any, kwargs: dict[str, Any], here: list[OnGpu]) -> tuple[Any, dict[str, Any]]:
        """Arguments for the tensors behind. Numbers that are known stay known as long as they are few."""
        known = self.values or all(not x.inner.is_meta and x.inner.numel() <= _KNOWN for x in here)
        if "device" in kwargs:
            size = args[0] if args and isinstance(args[0], list | tuple) else ()
            known = known and (self.values or math.prod(size) <= _KNOWN)
            kwargs = {**kwargs, "device": torch.device("cpu" if known else "meta")}

        def behind(x: Any) -> Any:
            if isinstance(x, OnGpu):
                x = x.inner
            elif isinstance(x, list | tuple):
                return [behind(one) for one in x]
            elif not isinstance(x, Tensor):
                return x
            return x if known or x.is_meta else x.to("meta")

        return [behind(x) for x in args], {name: behind(x) for name, x in kwargs.items()}

    def _scalar(self, x: OnGpu) -> Any:
        self.counts.syncs += not self._quiet
        if x.inner.is_meta:
            raise RuntimeError("the host waits for a number that is not known here; a read must not wait for the GPU")
        return x.inner.item()

    def _copied(self, func: Any, args: Any, kwargs: dict[str, Any], target: torch.device) -> Tensor:
        """Between host and device, or to another type."""
        x = args[0]
        inner = x.inner if isinstance(x, OnGpu) else x
        if target.type != "cuda":
            self.counts.syncs += not self._quiet
            self.kernel("copy to host", [x], [])
            if inner.is_meta and target.type == "cpu":
                raise RuntimeError("the host asks for numbers that are not known here; a read must not wait for the GPU")
            return func(inner, **{**kwargs, "device": target})  # type: ignore[no-any-return]
        known = self.values or (not inner.is_meta and inner.numel() <= _KNOWN)
        made = OnGpu(func(inner, **{**kwargs, "device": torch.device("cpu" if known else "meta")}))
        from_host = not isinstance(x, OnGpu)
        self.kernel("copy to device" if from_host else "_to_copy", [] if from_host else [x], [made])
        return made

    def _count(self, op: _Op, given: list[Tensor], here: list[OnGpu], result: Any) -> None:
        self.counts.syncs += op.name in _WAITS
        written = given[-op.written :] if op.has_out else given[: op.written]
        made = [x for x in tensors_in(result) if not any(x is other for other in written)]
        reads = [x for x in here if not (op.overwrites and any(x is other for other in written))]
        self.kernel(op.name, reads, [*made, *written])


class _Op(NamedTuple):
    """What an operation's schema says. `written`: arguments that it writes in place, the first tensors of all or, where it
    `has_out`, the last. `aliases`: of every result, the place of the argument that it is, or None."""

    name: str
    is_free: bool
    overwrites: bool
    has_out: bool
    written: int
    aliases: tuple[tuple[int, str] | None, ...]


@cache
def _described(func: Any) -> _Op:
    schema = func._schema
    name = schema.name.removeprefix("aten::")
    changed = [(i, one) for i, one in enumerate(schema.arguments) if one.alias_info is not None and one.alias_info.is_write]
    infos = [one.alias_info for one in schema.returns]
    is_view = bool(infos) and all(info is not None and not info.is_write for info in infos)
    aliases = tuple(
        next((i, one.name) for i, one in changed if one.alias_info.before_set & info.before_set)
        if info is not None and info.is_write
        else None
        for info in infos
    )
    has_out = any(one.is_out for one in schema.arguments)
    return _Op(name, is_view or name in _FREE, name in ("copy_", "fill_", "zero_"), has_out, len(changed), aliases)


def _wrapped(op: _Op, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
    """Results as the device's tensors; what was written in place is the argument itself."""

    def one(place: tuple[int, str] | None, value: Any) -> Any:
        if place is not None:
            return kwargs[place[1]] if place[1] in kwargs else args[place[0]]
        if isinstance(value, list | tuple):
            return [one(None, each) for each in value]
        return OnGpu(value) if isinstance(value, Tensor) else value

    if len(op.aliases) == 1:
        return one(op.aliases[0], result)
    return tuple(map(one, op.aliases, result)) if op.aliases else result


def _one_device(name: str, given: list[Tensor]) -> None:
    """As a GPU does: refuse what lies in two memories."""
    strangers = [x for x in given if not isinstance(x, OnGpu) and x.dim() and not x.is_meta]
    if strangers and name not in ("copy_", "index", "index_put_"):
        raise RuntimeError(f"{name} got tensors on {strangers[0].device} and on {DEVICE}; a GPU refuses that")


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors among arguments, in lists, tuples and dictionaries too, in their order."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        return tensors_in(list(values.values()))
    return [x for value in values for x in tensors_in(value)] if isinstance(values, list | tuple) else []


def at_address(address: int) -> Tensor:
    """The tensor whose address was asked for."""
    return _ADDRESSES[address]


def pointed_to(tensors: list[Tensor]) -> list[Tensor]:
    """What tables of addresses among these lead to."""
    tables = [x.inner for x in tensors if isinstance(x, OnGpu) and x.dtype == torch.int64 and not x.inner.is_meta]
    addresses = {address for table in tables for address in table.flatten().tolist()}
    return [_ADDRESSES[address] for address in sorted(addresses & _ADDRESSES.keys())]


def traffic(tensors: list[Tensor]) -> int:
    """Bytes that these tensors hold: an expanded axis once, and a tensor that is named twice once."""
    seen: dict[tuple[int, ...], int] = {}
    for x in tensors:
        inner = x.inner if isinstance(x, OnGpu) else x
        size = math.prod(count for count, stride in zip(inner.shape, inner.stride(), strict=True) if stride) if x.numel() else 0
        key = (inner.untyped_storage()._cdata, inner.storage_offset(), *inner.shape, *inner.stride())
        seen[key] = size * inner.element_size()
    return sum(seen.values())
