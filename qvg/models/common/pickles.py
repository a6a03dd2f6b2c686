"""Pickles read without running them: what torch.save writes is taken apart opcode by opcode, and nothing in it is ever called.

Of the classes that a file names, tensors and plain containers are made; all others become `Thing`, which does nothing. So
settings and optimizers that a trainer has saved beside its weights do no harm, and work and memory are bounded whatever the file
says.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Any

# A trainer's checkpoint of 5,000 tensors has 160,000 operations in 0.7 MB. An entry that an object is filled with counts as one.
MOST_OPERATIONS = 1_000_000
_MOST_LETTERS = 1000  # of a class's name
_MOST_BITS = 64  # of a number that is a key
_MOST_ODD_KEYS = 1000
# Callables that stand in checkpoints beside weights, by the beginning of their names. None is called.
_HARMLESS = (
    *("torch.", "numpy.", "collections.", "datetime.", "pathlib.", "enum.", "decimal.", "uuid.", "copyreg._reconstructor"),
    *("copy_reg._reconstructor", "_codecs.encode", "argparse.", "typing.", "omegaconf.", "hydra.", "yacs.", "ml_collections."),
    *("easydict.", "addict.", "mmengine.", "lightning", "pytorch_lightning.", "transformers.", "diffusers.", "accelerate."),
    *("deepspeed.", "peft.", "functools.partial", "operator.attrgetter", "types.SimpleNamespace"),
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "list", "dict", "tuple", "bytearray", "complex", "slice", "range", "object", "bytes")
    ),
)
_DICTIONARIES = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict")


class DamagedPickleError(Exception):
    """No pickle, or a broken one; says why."""


class ForeignPickleError(Exception):
    """The pickle wants something to be called that is no part of a checkpoint; names it."""


class LargePickleError(Exception):
    """The pickle is larger than any checkpoint's; says what it takes."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, by its full name."""

    full: str


class Thing(dict[Any, Any]):
    """An object of a class that is not made. What it is filled with is kept, as in a dictionary."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def fill(self, state: Any) -> int:
        """Its attributes, as pickles give them: a dictionary, or a pair of two. -> how many there were"""
        given = [each for each in (state[:2] if isinstance(state, tuple) else (state,)) if isinstance(each, dict)]
        for each in given:
            _put(self, each.items())
        return sum(map(len, given))


# call(full name, arguments) -> what stands for the result, or NotImplemented
Call = Callable[[str, tuple[Any, ...]], Any]


def read_pickle(file: IO[bytes], call: Call, persistent: Callable[[Any], Any]) -> tuple[Any, set[str]]:
    """One pickle, read to its end: its value, and the full names of what it names. `call` makes what it can of a named callable;
    `persistent` what an id stands for.

    Raises DamagedPickleError, ForeignPickleError and LargePickleError.
    """
    machine = _Machine(call, persistent)
    return machine.run(file), machine.names


# What broken operations trip over, in the machine and in torch.
_TRIPPED = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError)


class _Machine:
    def __init__(self, call: Call, persistent: Callable[[Any], Any]):
        self.call, self.persistent = call, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()
        self.operations = 0

    def run(self, file: IO[bytes]) -> Any:
        """The value that the pickle leaves."""
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if self.operations >= MOST_OPERATIONS:
                    raise LargePickleError(f"more than {MOST_OPERATIONS} steps")
                self.operations += 1
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._step(opcode.name, argument)
        except _TRIPPED as error:
            raise DamagedPickleError(str(error).strip().partition("\n")[0] or type(error).__name__) from error
        raise DamagedPickleError("it has no end")

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _GET:
            self.stack.append(self.memo[int(argument)])
        elif name in _PUT:
            self.memo[int(argument)] = self.stack[-1]
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise DamagedPickleError(f"{name} is in it, which no checkpoint has")

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def marked(self) -> list[Any]:
        """What lies above the newest mark, taken off."""
        begin = self.marks.pop()
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def pop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def pop_marked(self, _: Any) -> None:
        self.marked()

    def gather(self, count: int) -> None:
        if len(self.stack) < count:
            raise DamagedPickleError("a tuple lacks a part")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, values: Iterable[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            _put(self.stack[-1], zip(values[::2], values[1::2], strict=True))

    def reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._made(function, arguments))

    def _made(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name):
            raise DamagedPickleError("what it calls is no function")
        made = self.call(function.full, arguments if isinstance(arguments, tuple) else ())
        if made is not NotImplemented:
            return made
        if function.full in _DICTIONARIES:
            return {}
        if not function.full.startswith(_HARMLESS):
            raise ForeignPickleError(function.full)
        return Thing(function.full)

    def instance(self, _: Any) -> None:
        """An object of a class, without its class: arguments do not matter."""
        self.stack.pop()
        kind = self.stack.pop()
        self.stack.append({} if getattr(kind, "full", "") in _DICTIONARIES else Thing(getattr(kind, "full", "something")))

    def instance_of_three(self, _: Any) -> None:
        self.stack.pop()
        self.instance(None)

    def called(self, _: Any) -> None:
        kind, *arguments = self.marked()
        self.stack.append(self._made(kind, tuple(arguments)))

    def called_by_name(self, argument: str) -> None:
        self.named(argument)
        self.stack.append(self._made(self.stack.pop(), tuple(self.marked())))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Thing):
            self.operations += self.stack[-1].fill(state)

    def named(self, argument: str) -> None:
        name = Name(argument.replace(" ", ".", 1))
        self.names.add(name.full)
        self.stack.append(name)

    def named_on_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        # Written out, one that is no text, or long, could fill the memory.
        if not isinstance(name, str) or not isinstance(module, str) or len(name) + len(module) > _MOST_LETTERS:
            raise DamagedPickleError("a class has no name")
        self.named(f"{module} {name}")


def _put(into: dict[Any, Any], items: Iterable[tuple[Any, Any]]) -> None:
    """Keys that are no text are kept while they are few and short: others could make every look-up slow."""
    for key, value in items:
        if isinstance(key, str) or (isinstance(key, int) and key.bit_length() <= _MOST_BITS and len(into) < _MOST_ODD_KEYS):
            into[key] = value


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MEMOIZE": _Machine.memoize,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_marked,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.append(machine.marked()),
    "LIST": lambda machine, _: machine.stack.append(machine.marked()),
    "FROZENSET": lambda machine, _: machine.stack.append(machine.marked()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.gather(1),
    "TUPLE2": lambda machine, _: machine.gather(2),
    "TUPLE3": lambda machine, _: machine.gather(3),
    "DICT": lambda machine, _: machine.stack.append(_dictionary(machine.marked())),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.named_on_stack,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.instance,
    "NEWOBJ_EX": _Machine.instance_of_three,
    "OBJ": _Machine.called,
    "INST": _Machine.called_by_name,
    "BUILD": _Machine.build,
    "PERSID": lambda machine, argument: machine.stack.append(machine.persistent(argument)),
    "BINPERSID": lambda machine, _: machine.stack.append(machine.persistent(machine.stack.pop())),
}


def _dictionary(values: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _put(made, zip(values[::2], values[1::2], strict=True))
    return made
