"""A released file of any family into the one file that ComfyUI, or the node that loads the family, reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, QVGError, UnsupportedModelError, quoted
from ..files import written_new
from ..safetensors_writer import DTYPES, LateTensor, safetensors_bytes, write_safetensors
from .common.checkpoint import LORA_KEY, CausalCheckpoint
from .common.eight_bits import FP8_NAME, EightBits, packed_metadata
from .common.found import AUTO, METADATA_KEY
from .common.lora import read_lora
from .common.lora_changes import Change, added
from .common.lora_fit import FittedLora, fitted
from .family import FileFormat
from .registry import families, joined, read

DTYPE_NAMES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DEFAULT_DTYPE = "bf16"  # what the family is trained and run in; with 8 bits for what is not in 8 bits


@dataclass(frozen=True)
class Conversion:
    """What is to be written, or was: the model read, the file's bytes, what its weights are stored as (None: as they were), the
    LoRA that is merged. `remarks` are sentences for the user."""

    source: CausalCheckpoint
    tensors: dict[str, LateTensor]
    metadata: dict[str, str]
    nbytes: int
    dtype_name: str | None
    lora: FittedLora | None = None
    remarks: tuple[str, ...] = ()


def plan_conversion(
    source: Path, variant: str = AUTO, weights: str = AUTO, dtype: str | None = None, lora: Path | None = None
) -> Conversion:
    """Reads names and shapes, no weights. `dtype` None: bf16, or as they are where they come with scales.

    Raises ConfigError and UnsupportedModelError for what cannot be converted.
    """
    family, checkpoint = read(source, variant, weights, has_lora=lora is not None)
    known = family.files
    assert known is not None, "it was read"
    if lora and known.no_lora:
        raise ConfigError(f"{source.name} {known.no_lora}")
    _require_dtype(dtype, known)
    if checkpoint.quantized and (dtype or lora):
        raise ConfigError(
            f"the weights of {source.name} come with scales, in 8 bits or fewer, and are copied as they are: leave out "
            f"{'--dtype' if dtype else '--lora'}, or start from the model that they were made of"
        )
    merged: FittedLora | None = None
    if lora:
        adding = read_lora(lora)
        merged = fitted(adding, checkpoint.whole, known.in_loras)
        checkpoint = known.with_lora(checkpoint, adding)
    to = None if checkpoint.quantized else DTYPE_NAMES.get(dtype or DEFAULT_DTYPE, DTYPE_NAMES[DEFAULT_DTYPE])
    parted = {name: (tensor,) for name, tensor in checkpoint.tensors.items()} | checkpoint.joined
    changes = merged.changes if merged else {}
    tensors = {name: _late(name, parts, _stored(name, to, known), changes.get(name)) for name, parts in parted.items()}
    metadata = dict(checkpoint.metadata)
    if dtype == FP8_NAME:
        assert known.fp8 is not None, "it was looked at"
        tensors, layers = _in_eight_bits(tensors, known.fp8)
        metadata |= packed_metadata(layers)
    metadata |= {METADATA_KEY: checkpoint.variant.name} if checkpoint.variant else {}
    # A name of bytes that are no text is none in JSON.
    metadata |= {LORA_KEY: merged.file_name.encode("utf-8", "backslashreplace").decode()} if merged else {}
    stored = None if to is None else dtype or DEFAULT_DTYPE
    remarks = (*checkpoint.remarks, *(merged.remarks if merged else ()))
    return Conversion(checkpoint, tensors, metadata, safetensors_bytes(tensors, metadata), stored, merged, remarks)


def write_conversion(plan: Conversion, out: Path, wrote: Callable[[int], object] = lambda size: None) -> None:
    """Write all of `out` or nothing. `wrote` is told the bytes of each tensor. Memory holds one tensor at a time.

    ConfigError: `out` is there already, or since the writing began, or no .safetensors. QVGError: the disk is full, or takes no
    files.
    """
    check_out(out)
    try:
        free = shutil.disk_usage(out.parent).free
        if free < plan.nbytes:
            raise QVGError(
                f"{out.parent} has {_size(free)} free and {out.name} takes {_size(plan.nbytes)}; make room, or give another place"
            )
        with written_new([out]) as new:
            write_safetensors(new.unfinished, plan.tensors, plan.metadata, wrote)
    except FileExistsError as error:
        raise _taken(out) from error
    except OSError as error:
        raise QVGError(f"{out} cannot be written ({error.strerror}); give another place") from error


def _size(count: int) -> str:
    """In the unit in which it is a number to compare."""
    if count < 10**6:
        return f"{count} bytes"
    return f"{count / 1e6:.1f} MB" if count < 10**9 else f"{count / 1e9:.2f} GB"


def check_out(out: Path) -> None:
    """Raise ConfigError unless a file can begin to be written at `out`."""
    if out.suffix.lower() != ".safetensors":
        name = quoted(out.name) if out.name in ("", ".safetensors") else out.name
        raise ConfigError(f"{name} is to be a name and .safetensors behind it: ComfyUI tells the format by the name's end")
    try:
        os.lstat(out)  # a link that leads nowhere is something, too
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name that is too long
        raise ConfigError(f"{out} cannot be a file's name ({error.strerror}); give another one") from error
    else:
        raise _taken(out)
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it first")


def _taken(out: Path) -> ConfigError:
    return ConfigError(f"{out} is there already and is not overwritten; give another name, or delete it first")


def _stored(name: str, to: torch.dtype | None, known: FileFormat) -> torch.dtype | None:
    return torch.float32 if to is not None and name.startswith(known.float32) else to


def _require_dtype(dtype: str | None, known: FileFormat) -> None:
    if dtype is None or dtype in DTYPE_NAMES or (dtype == FP8_NAME and known.fp8 is not None):
        return
    if dtype != FP8_NAME:
        raise ConfigError(f"dtype is {quoted(dtype)}; choose one of {', '.join([*DTYPE_NAMES, FP8_NAME])}")
    titles = joined([family.title for family in families() if family.files is not None and family.files.fp8 is not None])
    raise ConfigError(
        f"dtype {FP8_NAME} is written for {titles} alone; choose one of {', '.join(DTYPE_NAMES)}, and an fp8 as dtype of the "
        "node that loads the file"
    )


def _in_eight_bits(tensors: dict[str, LateTensor], fp8: Callable[[str], bool]) -> tuple[dict[str, LateTensor], list[str]]:
    """The same, those with a scale beside them that are stored so, and the names of their layers."""
    found: dict[str, LateTensor] = {}
    layers = []
    for name, late in tensors.items():
        if not fp8(name):
            found[name] = late
            continue
        packed, layer = EightBits(late), name.removesuffix(".weight")
        layers.append(layer)
        found |= {name: packed.values, f"{layer}.weight_scale": packed.scale}
    return found, layers


def _late(name: str, parts: tuple[Tensor, ...], to: torch.dtype | None, change: Change | None) -> LateTensor:
    """Of a tensor that is there whole, or in parts."""
    first = parts[0]
    if first.dtype not in DTYPES:
        raise UnsupportedModelError(f"{name} is in {first.dtype}, which is no type for weights in safetensors files")
    shape = torch.Size((sum(part.shape[0] for part in parts), *first.shape[1:])) if len(parts) > 1 else first.shape
    if to is None or not first.is_floating_point():
        return LateTensor(shape, first.dtype, lambda: first if len(parts) == 1 else torch.cat(parts))
    return LateTensor(shape, to, partial(_made, name, parts, to, change))


def _made(name: str, parts: tuple[Tensor, ...], dtype: torch.dtype, change: Change | None) -> Tensor:
    if len(parts) > 1 and change is None:
        return torch.cat([_made(name, (part,), dtype, None) for part in parts])
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    whole = tensor if change is None else added(change, tensor)
    made = whole.to(dtype)
    if not bool(made.isfinite().all()):
        if not bool((tensor if tensor.itemsize > 1 else tensor.float()).isfinite().all()):
            raise UnsupportedModelError(
                f"{name} holds NaN or infinity, so the file is damaged; get it again from where it was published"
            )
        if not bool(whole.isfinite().all()):
            raise UnsupportedModelError(f"{name} becomes NaN or infinity by the LoRA, which is damaged; get that again")
        raise UnsupportedModelError(f"{name} holds values that {dtype} does not have; choose bf16 or fp32")
    return made
