"""Safetensors files, opened after a look at how much their header would take."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from ...errors import UnsupportedModelError
from ...file_names import in_utf8
from .tensor_names import MOST_TENSORS, require_bounded, shown
from .torch_files import AGAIN, NO_ROOM, too_large

# 50,000 tensors take about 6 MB; metadata may have as much as that.
_MOST_HEADER = 12_000_000
_DAMAGE = re.compile("ncomplete|not fully covered|offset|header length|header too|does not match")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, mapped, and metadata. Raises UnsupportedModelError, in a sentence."""
    _require_small_header(path)
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            names = list(file.keys())
            require_bounded(names, path.name)
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except UnsupportedModelError:
        raise
    except Exception as error:  # of Rust's, of torch's for a size that no tensor has, of Python's for a type that torch lacks
        if NO_ROOM.search(str(error)) or isinstance(error, MemoryError):
            raise too_large(path, error) from error
        why = "is cut off or damaged" if _DAMAGE.search(str(error)) else "cannot be read"
        raise UnsupportedModelError(f"{path.name} {why} ({shown(str(error), 200)}); {AGAIN}") from error


def _require_small_header(path: Path) -> None:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        size = path.stat().st_size
        if length + 8 > size:
            raise UnsupportedModelError(
                f"{path.name} is cut off or damaged ({size} bytes are here, and its header has more); {AGAIN}"
            )
        if length > _MOST_HEADER:
            most = f"{_MOST_HEADER / 1e6:.0f} MB"
            raise UnsupportedModelError(
                f"{path.name} has {length / 1e6:.0f} MB of names and metadata, and QVG reads files of up to {most} "
                "of them; it is no model that QVG knows, or far more than a model: save its weights alone"
            )
        count = file.read(length).count(b'"data_offsets"')
    if count > MOST_TENSORS:
        require_bounded(range(count), path.name)
