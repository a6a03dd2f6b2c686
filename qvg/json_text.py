"""JSON that somebody else wrote: anything may be in it, and all that can be wrong with it is a ValueError."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """What a text says. ValueError, in a few words: it is no JSON, or holds NaN or infinity, which JSON has not, or numbers or
    brackets without end."""
    try:
        return json.loads(text, parse_constant=_refused)
    except UnicodeDecodeError:
        raise ValueError("it is no text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    except ValueError as error:
        reason = str(error) if str(error) in _CONSTANTS else "it has a number of thousands of digits"
        raise ValueError(reason) from None


_CONSTANTS = {f"it holds {constant}": constant for constant in ("NaN", "Infinity", "-Infinity")}


def _refused(constant: str) -> Any:
    raise ValueError(f"it holds {constant}")
