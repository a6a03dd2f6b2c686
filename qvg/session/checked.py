"""JSON that somebody else wrote, taken apart: every value is held to its type and its bounds before anything is made of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import quoted, shown
from ..positions.frames import MOST_TOKENS

T = TypeVar("T")
# Nothing that is counted here comes near it.
MOST = 1 << 40


class MisfitError(ValueError):
    """Something in the file does not go with something else; its argument says what, as half a sentence."""


# Each takes a value and what to call it, and gives the value back in its type. MisfitError.


class Getter:
    """The entries of an object by name."""

    def __init__(self, name: str, value: object):
        self._name, self._entries = name, as_object(value, name)

    def __call__(self, key: str) -> object:
        if key not in self._entries:
            raise MisfitError(f"{self._name} has no {key!r}")
        return self._entries[key]


def as_object(value: object, name: str) -> dict[str, Any]:
    """An object of JSON."""
    if not isinstance(value, dict):
        raise MisfitError(f"{name} is {quoted(value)}, but must be an object")
    return value


def as_list(value: object, name: str, each: Callable[[Any, str], T], length: int | None = None) -> list[T]:
    """A list, of this length if there is one, each entry held to `each`."""
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise MisfitError(f"{shown(name)} is {quoted(value)}, but must be a list{'' if length is None else f' of {length}'}")
    return [each(entry, name) for entry in value]


def each_layer(value: object, name: str, layers: int, each: Callable[[Any, str], T]) -> tuple[T, ...]:
    """One entry for every layer: so there are no more layers than the file has room for."""
    return tuple(as_list(value, name, each, layers))


def as_pair(value: object, name: str, low: int, high: int) -> tuple[int, ...]:
    """Two whole numbers within bounds."""
    return tuple(as_list(value, name, lambda entry, name: as_whole(entry, name, low, high), 2))


def as_whole(value: object, name: str, low: int = 0, high: int = MOST) -> int:
    """A whole number within bounds."""
    if type(value) is not int or not low <= value <= high:
        raise MisfitError(f"{shown(name)} is {quoted(value)}, but must be a whole number from {low} to {high}")
    return value


def as_equal(value: object, wanted: int, name: str) -> int:
    """The number that it must be."""
    if type(value) is not int or value != wanted:
        raise MisfitError(f"{name} is {quoted(value)} for a layer, but must be {wanted}")
    return value


def as_finite(value: object, name: str) -> float:
    """A number that is neither NaN nor infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise MisfitError(f"{name} holds {quoted(value)}, but must hold finite numbers")
    return float(value)


def as_position(value: object, name: str) -> float:
    """A place that positions can tell apart."""
    if not abs(found := as_finite(value, name)) <= MOST_TOKENS:
        raise MisfitError(f"{name} holds {found}, but a position is at most {MOST_TOKENS} tokens away")
    return found


def as_text(value: object, name: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise MisfitError(f"{shown(name)} holds {quoted(value)}, but must hold names")
    return value


def as_it_is(value: object, name: str) -> object:
    """Anything."""
    return value
