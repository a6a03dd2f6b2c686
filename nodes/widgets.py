"""What widgets take, said once, in their declarations, and held to wherever a value comes from.

What is typed ComfyUI compares with `min` and `max` itself, before anything is queued, and shows what is wrong at that input; a
node that names an input in `validate_inputs` takes this off it, and has its sentence shown at every input that it names. So rules
that two numbers do not tell are part of the lower one: `whole` and `number`. What comes over a link ComfyUI does not look at:
`Node` does, before the node runs and before what its lazy inputs come from has run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from ..qvg.errors import ConfigError, quoted
from .api import io

# Of more choices than these, a sentence names none.
_MOST_NAMED = 12
_DYNAMIC = "COMFY_DYNAMICCOMBO_V3"


class _Whole(int):
    """The least of multiples of `multiple`. Asked for `value < min`, Python asks `min > value` of a subclass first."""

    multiple = 1

    def __gt__(self, value: Any) -> bool:
        return bool(int(self) > value or value % self.multiple)

    def __format__(self, how: str) -> str:
        return f"{int(self)}, or no multiple of {self.multiple}"


class _Number(float):
    """The least of numbers, multiples of `multiple` if that is not 0. NaN is none: no comparison with it is true."""

    multiple = 0.0

    def __gt__(self, value: Any) -> bool:
        return not value >= float(self) or bool(self.multiple and value < float("inf") and value % self.multiple)

    def __format__(self, how: str) -> str:
        return f"{float(self):g}, or no {f'multiple of {self.multiple:g}' if self.multiple else 'number'}"


def whole(least: int, most: int, multiple: int) -> dict[str, int]:
    """For an Int input: from `least` to `most`, multiples of `multiple` alone."""
    low = _Whole(least)
    low.multiple = multiple
    return {"min": low, "max": most, "step": multiple}


def videos_at_once() -> Any:
    """The input `batch_size` of a node that gives first frames."""
    return io.Int.Input(
        "batch_size",
        default=1,
        min=1,
        max=64,
        tooltip="Videos made at once from the same first frames, each with noise of its own.",
        advanced=True,
        optional=True,
    )


def number(least: float, most: float, step: float, multiple: float = 0.0) -> dict[str, float]:
    """For a Float input: from `least` to `most`; with `multiple`, a power of two, multiples of that alone. `step`: of the page's
    arrows. All of ours are declared by this."""
    low = _Number(least)
    low.multiple = multiple
    return {"min": low, "max": most, "step": step}


class _Other(str):
    """The key of a mode that is none of these. ComfyUI drops a DynamicCombo in a mode that it does not find, and then has no
    input to show what is wrong at."""

    known: tuple[str, ...] = ()
    __hash__ = str.__hash__

    def __eq__(self, key: object) -> bool:
        return not any(key == known for known in self.known)


class Node(io.ComfyNode):
    """What all nodes are: no value reaches `execute` that its widget would not take. Inputs that take long to make are `lazy`."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        """What ComfyUI checks a prompt by; what it tells the page of the node it makes of the schema itself."""
        declared: dict[str, Any] = super().INPUT_TYPES()
        for kind, options in (each for group in ("required", "optional") for each in declared.get(group, {}).values()):
            if kind == _DYNAMIC:
                other = _Other("another mode")
                other.known = tuple(mode["key"] for mode in options["options"])
                options["options"] = [*options["options"], {"key": other, "inputs": {}}]
        return declared

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """ComfyUI asks before it runs a node which inputs are still to be made; those that wait are None. Raises ConfigError, in
        one sentence about one input."""
        for name, (kind, options) in _declared(cls.INPUT_TYPES()):
            # ComfyUI does not miss a DynamicCombo that a prompt leaves out.
            if kind == _DYNAMIC or name in inputs:
                wrong = complaint(name, kind, options, inputs.get(name))
                if wrong:
                    raise ConfigError(wrong)
        return [name for name, value in inputs.items() if value is None]


def complaint(name: str, kind: Any, options: Mapping[str, Any], value: Any) -> str | None:
    """What is wrong with a value for a widget; None: nothing, or the input is no widget. `kind` and `options` as /object_info has
    them."""
    rule, use = None, None
    if kind == _DYNAMIC:
        return _in_mode(name, options["options"], value)
    if kind == "INT" and not _is_whole(value, options):
        rule, use = _range(options, "a whole number"), _nearest(value, options)
    elif kind == "FLOAT" and not _is_number(value, options):
        rule, use = _range(options, "a number"), _nearest(value, options)
    elif kind == "STRING" and not isinstance(value, str):
        return f"{name} is {quoted(value)}, but must be a text; connect a node that gives one"
    elif kind == "BOOLEAN" and not isinstance(value, bool):
        rule, use = "true or false", str(options.get("default", False)).lower()
    elif kind == "COMBO" and value not in options["options"]:
        rule = _one_of(options["options"])
    if rule is None:
        return None
    return f"{name} is {quoted(value)}, but must be {rule}; {'choose one of these' if use is None else f'use {use}'}"


def unknown_mode(name: str, modes: Iterable[str], value: Any) -> str | None:
    """What is wrong with the mode of a DynamicCombo."""
    known = list(modes)
    return None if value in known else f"{name} is {quoted(value)}, but must be {_one_of(known)}; choose one of these"


def _declared(inputs: Mapping[str, Any]) -> list[tuple[str, tuple[Any, Mapping[str, Any]]]]:
    return [each for group in ("required", "optional") for each in inputs.get(group, {}).items()]


def _in_mode(name: str, modes: Iterable[Mapping[str, Any]], given: Any) -> str | None:
    """Of a DynamicCombo: its mode, and that mode's widgets. ComfyUI hands over pairs of a value and its name in the prompt."""
    values = {key: value[0] if isinstance(value, tuple) else value for key, value in (given or {}).items()}
    known = {mode["key"]: mode["inputs"] for mode in modes if not isinstance(mode["key"], _Other)}
    if wrong := unknown_mode(name, known, values.get(name)):
        return wrong
    for inner, (kind, options) in _declared(known[values[name]]):
        if inner in values and (wrong := complaint(inner, kind, options, values[inner])):
            return wrong
    return None


def _is_whole(value: Any, options: Mapping[str, Any]) -> bool:
    return type(value) is not bool and isinstance(value, Integral) and _in_range(int(value), options)


def _is_number(value: Any, options: Mapping[str, Any]) -> bool:
    return type(value) is not bool and isinstance(value, Real) and value == value and _in_range(value, options)


def _in_range(value: Any, options: Mapping[str, Any]) -> bool:
    return not (value < options.get("min", value)) and not (value > options.get("max", value))


def _range(options: Mapping[str, Any], what: str) -> str:
    low, high = options["min"], options["max"]
    if isinstance(low, _Whole | _Number) and low.multiple:
        what = f"a multiple of {low.multiple:g}"
    return f"{what} from {_plain(low)} to {_plain(high)}"


def _nearest(value: Any, options: Mapping[str, Any]) -> str:
    """What would do, near to what was meant."""
    low, high = options["min"], options["max"]
    if type(value) is bool or not isinstance(value, Real) or value != value:
        return _plain(options.get("default", low))
    near: Any = min(max(value, low + 0), high)
    multiple = getattr(low, "multiple", 1 if isinstance(low, int) else 0)
    return _plain(min(high // multiple * multiple, max(low + 0, round(near / multiple) * multiple)) if multiple else near)


def _plain(value: float) -> str:
    return str(int(value)) if isinstance(value, int) or float(value).is_integer() else f"{float(value):g}"


def _one_of(choices: Iterable[Any]) -> str:
    names = [str(choice) for choice in choices]
    return f"one of {', '.join(names)}" if len(names) <= _MOST_NAMED else f"one of the {len(names)} in its list"
