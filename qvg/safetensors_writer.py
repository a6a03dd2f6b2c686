"""A safetensors file written tensor after tensor: the library's own writer wants them all in memory at once."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# The format's own names, github.com/huggingface/safetensors.
DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    **({torch.float8_e8m0fnu: "F8_E8M0"} if hasattr(torch, "float8_e8m0fnu") else {}),
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class LateTensor:
    """A tensor of known size that is made when its turn comes. `make` returns it in this shape and dtype, on the CPU."""

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Of its values."""
        return self.shape.numel() * self.dtype.itemsize


def in_memory(tensors: Mapping[str, Tensor]) -> dict[str, LateTensor]:
    """Tensors that are there already, on any device; each comes to the CPU when its turn comes."""
    return {name: LateTensor(tensor.shape, tensor.dtype, tensor.cpu) for name, tensor in tensors.items()}


def safetensors_bytes(tensors: Mapping[str, LateTensor], metadata: Mapping[str, str]) -> int:
    """Size of the file that `write_safetensors` makes."""
    return len(_header(_ordered(tensors), metadata)) + sum(tensor.nbytes for tensor in tensors.values())


def write_safetensors(
    path: Path,
    tensors: Mapping[str, LateTensor],
    metadata: Mapping[str, str],
    wrote: Callable[[int], object] = lambda size: None,
    checksums: tuple[str, Mapping[str, str]] | None = None,
) -> None:
    """One tensor at a time is in memory. `wrote` is told the bytes of each. Raises OSError as files do.

    checksums  under this name the metadata get a JSON object of these texts, and the CRC-32 of every tensor's bytes by its name
    """
    ordered = _ordered(tensors)
    found = dict.fromkeys(ordered, checksum(b""))  # of the same length as what comes in their place
    with path.open("wb") as file:
        file.write(_header(ordered, _with_checksums(metadata, checksums, found)))
        for name, late in ordered.items():
            tensor = late.make()
            assert tensor.shape == late.shape and tensor.dtype == late.dtype, name
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            if checksums is not None:
                found[name] = checksum(data)
            file.write(data)
            wrote(late.nbytes)
        if checksums is not None:
            file.seek(0)
            file.write(_header(ordered, _with_checksums(metadata, checksums, found)))


def checksum(data: bytes | memoryview) -> str:
    """CRC-32 (ISO 3309, as zlib has it) in eight hexadecimal digits.

    It finds every damage of up to 32 bits in a row, and misses any other once in four billion times. It is no protection from
    somebody who writes a file on purpose.
    """
    return f"{zlib.crc32(data):08x}"


def _with_checksums(
    metadata: Mapping[str, str], checksums: tuple[str, Mapping[str, str]] | None, found: Mapping[str, str]
) -> dict[str, str]:
    if checksums is None:
        return dict(metadata)
    key, given = checksums
    return {**metadata, key: json.dumps({**given, **found}, separators=(",", ":"))}


def _ordered(tensors: Mapping[str, LateTensor]) -> dict[str, LateTensor]:
    """Wide values first, so that every tensor begins at a multiple of its value's size; then by name."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def _header(ordered: Mapping[str, LateTensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, late in ordered.items():
        end = begin + late.nbytes
        entries[name] = {"dtype": DTYPES[late.dtype], "shape": list(late.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
