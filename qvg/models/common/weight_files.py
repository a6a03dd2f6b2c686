"""Weight files as they lie on people's disks, .safetensors and .pt, opened without reading them or running their code."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import UnsupportedModelError
from .packing import pieces_of_training
from .safetensors_files import read_safetensors
from .shards import joined, parts_of
from .tensor_names import shown, some
from .torch_files import AGAIN, read_torch

# Trainers wrap weights once or twice. A dictionary in a pickle may hold itself, and then there is no innermost one.
MOST_WRAPPINGS = 8
_HEAD_BYTES, _LEAST_BYTES = 300, 32
_MOST_LISTED = 1000
_ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin")
# What stands at the beginning of files that are taken for weights, in small letters. Git LFS leaves its pointer where a file was
# not fetched.
_STRANGERS = {
    b"gguf": "is a GGUF file, whose weights only a GGUF loader reads; take the .pt or .safetensors of this model",
    b"version https://git-lfs": f"is Git LFS's pointer to the weights, not the weights; {AGAIN} (git lfs pull)",
    b"<!doctype": f"is a web page, not the file that was asked for there; {AGAIN}",
    b"<html": f"is a web page, not the file that was asked for there; {AGAIN}",
    b"<?xml": f"is an answer of a server, not the file that was asked for there; {AGAIN}",
    b"\x1f\x8b": "is packed with gzip; unpack it first",
    b"\xfd7zxz": "is packed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; unpack it first",
    b"7z\xbc\xaf": "is a 7-Zip archive; unpack it first",
    b"rar!": "is a RAR archive; unpack it first",
    b"bzh": "is packed with bzip2; unpack it first",
    b"\x89hdf": "is an HDF5 file, of Keras or others; take the .pt or .safetensors of this model",
    b"\x93numpy": "is an array of numpy's, not weights by name",
    b"\x89png": "is a picture; give a weight file",
    bytes(32): f"begins with nothing but zeros, as a download does that did not end; {AGAIN}",
}
_JSON = re.compile(rb"[{\[]\s*[\"{}\[\]]")
_ANSWER = re.compile(rb"[{,]\s*\"(error|message|detail|code)\"\s*:")
_TEXT = re.compile(rb"[\t\r\n\x20-\x7e]+")
# What aria2 keeps beside a file for as long as its download has not ended; the file has its full size from the beginning.
_UNENDED = ".aria2"


@dataclass(frozen=True)
class WeightFile:
    """What is in a file: `content` by name, tensors or dictionaries of more; `metadata` of a safetensors file. Tensors are mapped
    from disk, so they take memory only when they are used. `parts`: the files that it is made of, if that is more than one."""

    path: Path
    content: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    parts: tuple[Path, ...] = ()


def open_weights(path: Path) -> WeightFile:
    """Parts of one model and their index are joined. Raises UnsupportedModelError, in a sentence, for what is missing, truncated,
    foreign, or needs code to be run."""
    _require_file(path)
    parts = parts_of(path)
    if parts is None:
        return WeightFile(path, *_read(path))
    return WeightFile(path, *joined(path, parts, _read), parts.paths)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    _require_file(path)
    head = _head(path)
    # First, as the length may begin like one of the others.
    if _is_safetensors(head):
        return read_safetensors(path)
    if head[:2] == b"PK":
        return read_torch(path, zipped=True), {}
    if head[:1] == b"\x80":
        return read_torch(path, zipped=False), {}
    small = head.lower().lstrip(b"\xef\xbb\xbf \t\r\n")
    found = next((what for beginning, what in _STRANGERS.items() if small.startswith(beginning)), None)
    if found is None and head[257:262] == b"ustar":
        found = "is a tar archive; unpack it first"
    begins = f"begins as no weight file does, neither .safetensors nor .pt; give a file of one of these kinds, or {AGAIN}"
    found = found or _text(head, small) or begins
    raise UnsupportedModelError(f"{path.name} {found}")


def is_safetensors(path: Path) -> bool:
    """Whether a file is of that format, whatever its name says."""
    return _is_safetensors(_head(path))


def _is_safetensors(head: bytes) -> bool:
    """A length in 8 bytes, then JSON."""
    return head[7:9] == b"\0{"


def _text(head: bytes, small: bytes) -> str | None:
    """What a file of text is; None of others."""
    if _JSON.match(small) and not _ANSWER.search(small):
        return "is text in JSON, not weights; give the weight file beside it"
    if not _TEXT.fullmatch(head):
        return None
    begins = f"it begins {shown(' '.join(head.decode('ascii').split()), 60)!r}"
    return f"is text, not weights ({begins}): if it is a server's answer, do what that says, and {AGAIN}"


def _require_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UnsupportedModelError(f"{path} cannot be opened ({why}); give the path of a weight file") from error
    if stat.S_ISDIR(mode):
        raise UnsupportedModelError(f"{path} is a folder, not a file; {_in_folder(path)}")
    if not stat.S_ISREG(mode):
        raise UnsupportedModelError(
            f"{path} is a pipe or a device, not a file; copy what comes out of it to a file, and give that"
        )
    unended = path.with_name(path.name + _UNENDED)
    if unended.is_file():
        raise UnsupportedModelError(
            f"{path.name} is a download that has not ended, as {unended.name} beside it says; let aria2 end it, or, if the file "
            f"is whole, delete {unended.name}"
        )


def _in_folder(path: Path) -> str:
    """What to give instead."""
    try:
        names = sorted(each.name for each, _ in zip(path.iterdir(), range(_MOST_LISTED), strict=False))
    except OSError:
        names = []
    if any(name.endswith(".distcp") for name in names):
        return f"it {pieces_of_training(str(path))}"
    indices = [name for name in names if name.endswith(".index.json")]
    weights = indices or [name for name in names if name.lower().endswith(_ENDINGS)]
    return f"give a file in it, such as {some(weights)}" if weights else "give the path of a weight file"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise UnsupportedModelError(f"{path} cannot be opened ({error.strerror}); give the path of a weight file") from error
    if len(head) < _LEAST_BYTES and not _TEXT.fullmatch(head):
        raise UnsupportedModelError(f"{path.name} has {len(head)} bytes, too few for weights; {AGAIN}")
    return head


def named_tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """What of it are tensors by name: a trainer's file has numbers and counters between them."""
    return {name: each for name, each in content.items() if isinstance(name, str) and isinstance(each, Tensor)}


def causal_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """`metadata` with the mark by which ComfyUI (0.21 on) tells a causal Wan from an ordinary one."""
    config = _config(metadata)
    network = config.get("transformer")
    config["transformer"] = {**(network if isinstance(network, dict) else {}), "causal_ar": True}
    return {**metadata, "config": json.dumps(config)}


def is_marked_causal(metadata: dict[str, str]) -> bool:
    """Whether that mark is there."""
    network = _config(metadata).get("transformer")
    return isinstance(network, dict) and bool(network.get("causal_ar"))


def _config(metadata: dict[str, str]) -> dict[str, Any]:
    try:
        config = json.loads(metadata.get("config", "{}"))
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
