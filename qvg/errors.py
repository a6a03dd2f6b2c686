"""What can go wrong, one class for each thing a caller may want to catch. A message says the value, the rule and the way out."""

from __future__ import annotations

import re
import reprlib

from ..kernels.errors import BackendError as BackendError

_short = reprlib.Repr()
_short.maxstring = 60


def quoted(value: object) -> str:
    """A value as Python would write it, for a sentence: cut where it is long, without control characters."""
    return _short.repr(value)


def shown(name: object, letters: int = 80) -> str:
    """What somebody else wrote, for a sentence: short, on one line, of characters that a terminal shows and does not obey."""
    text = name[: letters + 1] if isinstance(name, str) else str(name) if isinstance(name, int) else type(name).__name__
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= letters else f"{text[:letters]}..."


# What is no letter but an order to a terminal: control characters, ends of lines, turns of the direction of writing; and bytes of
# a file's name that are no text.
_ORDERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: object) -> str:
    """A sentence as a terminal may have it, names of files in it included: on one line, what is no letter escaped (`\\x1b`)."""
    return _ORDERS.sub(lambda found: ascii(found[0])[1:-1], str(text))


class QVGError(Exception):
    """Anything this library refuses or cannot do."""


class ConfigError(QVGError, ValueError):
    """A setting that breaks a rule."""


class CameraPathError(ConfigError):
    """A camera path string that cannot be read."""


class UnsupportedModelError(QVGError, ValueError):
    """A weight file or model that is not what was asked for."""


class CacheError(QVGError, RuntimeError):
    """The cache was used out of order, or a run did not do what it claims."""


class CacheFileError(QVGError, ValueError):
    """A saved cache that is truncated, foreign, or of a newer format."""


class SessionError(QVGError, ValueError):
    """A session's folder that is damaged, foreign, of a newer format, or made with other settings than are asked for."""


class SessionInUseError(SessionError):
    """A session that another run is writing to."""


class NonFiniteError(QVGError, FloatingPointError):
    """NaN or infinity in keys or values. Holds `layer` and `frame`. `begun`: layers before it have committed the block."""

    def __init__(self, layer: int, frame: int, tensor: str, begun: bool = False, found: str = "NaN or infinity"):
        kept = "the frame was not committed and the cache is as it was before it"
        if begun:
            kept = "layers before it have committed the block, so this run is over"
        super().__init__(
            f"{tensor} of layer {layer} hold {found} in latent frame {frame}; {kept}. Check the model's precision (fp16 "
            "overflow is the usual cause; use bf16 or fp32)."
        )
        self.layer, self.frame, self.tensor = layer, frame, tensor


class TooLargeError(NonFiniteError):
    """Finite keys or values so large that what is kept of them, or attention, would be wrong."""

    def __init__(self, layer: int, frame: int, tensor: str, begun: bool, largest: float, limit: float, codec: str):
        found = f"{largest:.3g}, beyond {limit:.3g}, which is the most that codec {codec!r} keeps right,"
        super().__init__(layer, frame, tensor, begun, found)


class MediaError(QVGError, OSError):
    """A video or picture could not be written."""


class ServerError(QVGError, ConnectionError):
    """A ComfyUI server that is not there, not there any more, or none."""


class RunError(QVGError, RuntimeError):
    """A server could not do what a workflow asks for."""
