"""Files that torch.save wrote, in both of its formats: their pickle is read by `pickles`, their values are mapped from disk.

torch.load would refuse whatever a trainer has saved beside its weights, read the old format into memory at once, and unpack what
a hostile file says.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ...errors import UnsupportedModelError
from ...file_names import in_utf8
from .packing import other_loader, pieces_of_training
from .pickles import MOST_OPERATIONS, DamagedPickleError, ForeignPickleError, LargePickleError, Name, Thing, read_pickle
from .tensor_names import MOST_TENSORS, shown, some

AGAIN = "download it again"
# What systems say of a file that is larger than memory and swap together: its pages are private, so they want room for all.
NO_ROOM = re.compile(r"annot allocate memory|not enough memory|paging file|os error (8|12|1455)\b|error code: <(8|1455)>", re.I)
# Of the pickle, and of a zip archive's table: 200,000 entries.
_MOST_PICKLE = 16 << 20
_PARTS_OF_STORAGE = 6
_MOST_SIDES = 64  # of a tensor: torch's own limit
_MAGIC = 0x1950A86A20F9469CFC6C
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_UTILS = "torch._utils._rebuild_"
_STORAGES = {
    **{"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
    **{"Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8},
}


@dataclass(frozen=True)
class _Storage:
    """Values on disk, of one dtype unless a tensor says another. `values` None: nobody looks at them yet."""

    dtype: torch.dtype
    values: torch.UntypedStorage | None


class _CompressedError(Exception):
    """Values that cannot be mapped."""


def read_torch(path: Path, zipped: bool) -> dict[str, Any]:
    """The dictionary in the file, its tensors mapped. Runs nothing that it brings along.

    Raises UnsupportedModelError, in a sentence, for what is cut off, damaged, compressed, or more than weights.
    """
    try:
        content = _read_zip(path) if zipped else _read_old(path)
    except ForeignPickleError as error:
        raise _runs_code(path, str(error)) from error
    except LargePickleError as error:
        raise UnsupportedModelError(
            f"{path.name} describes its content in {error}, and checkpoints of models that QVG knows take less than "
            f"{_MOST_PICKLE >> 20} MB and {MOST_OPERATIONS} steps; save its weights alone"
        ) from error
    except _CompressedError as error:
        raise UnsupportedModelError(
            f"{path.name} is compressed, as torch.save never does, so its values cannot be read from where they lie; save it "
            f"plainly once: torch.save(torch.load({path.name!r}, weights_only=True), 'plain.pt')"
        ) from error
    except UnsupportedModelError:
        raise
    except MemoryError as error:
        raise too_large(path, error) from error
    except Exception as error:  # what a damaged file trips over is anything: struct.error, LookupError, UnicodeDecodeError ...
        reason = shown(str(error).strip().partition("\n")[0] or type(error).__name__, 200)
        raise UnsupportedModelError(f"{path.name} is damaged, or no file of torch's ({reason}); {AGAIN}") from error
    if isinstance(content, Thing) and ("_modules" in content or not _holds_more(content)):
        raise _runs_code(path, content.kind)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UnsupportedModelError(
            f"{path.name} holds {'an' if kind[0] in 'aeiou' else 'a'} {kind}, not weights by name; it is no model's file"
        )
    return content


def _holds_more(content: dict[Any, Any]) -> bool:
    """Whether an object has weights in it, or what may have: a trainer's state, or a dictionary of its own class."""
    return any(isinstance(each, (Tensor, dict)) for each in content.values())


def too_large(path: Path, error: Exception) -> UnsupportedModelError:
    """Of a file that the system does not map to memory."""
    return UnsupportedModelError(
        f"{path.name} has {path.stat().st_size / 1e9:.1f} GB, and this system has no room to map it "
        f"({shown(str(error) or type(error).__name__, 200)}); close other programs, make the swap or page file larger, or use a "
        "smaller file, such as 'qvg convert' makes of it on another machine"
    )


def _runs_code(path: Path, name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path.name} holds more than weights ({shown(name)}), and to read that would run code that the file brings along; take "
        "a .safetensors of this model, or a .pt with nothing but weights"
    )


class _Bounded(io.FileIO):
    """A file that does not hand out more at once than an archive's table has: `zipfile` reads that in one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = Path(self.name).stat().st_size - self.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _MOST_PICKLE:
            raise LargePickleError(f"{wanted / 1e6:.0f} MB")
        return super().read(wanted) or b""


def _read_zip(path: Path) -> Any:
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            pickled = next((name for name in entries if name.count("/") <= 1 and f"/{name}".endswith("/data.pkl")), None)
            if pickled is None:
                raise UnsupportedModelError(f"{path.name} is a zip archive of {some(entries) or 'nothing'}; unpack it first")
            folder = pickled.removesuffix("data.pkl")
            if f"{folder}constants.pkl" in entries or any(name.startswith(f"{folder}code/") for name in entries):
                raise UnsupportedModelError(f"{path.name} is a TorchScript program, not weights by name; take a checkpoint of it")
            if f"{folder}byteorder" in entries and archive.open(f"{folder}byteorder").read(3) == b"big":
                raise UnsupportedModelError(f"{path.name} was written on a big-endian machine; save it again on an ordinary one")
            if entries[pickled].file_size > _MOST_PICKLE:
                raise LargePickleError(f"{entries[pickled].file_size / 1e6:.0f} MB")
            with archive.open(entries[pickled]) as stream:
                text = stream.read(_MOST_PICKLE)
            return _content(path, io.BytesIO(text), _zipped(path, file, entries, folder))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        if path.suffix == ".distcp":
            raise UnsupportedModelError(f"{path.name} {pieces_of_training(path.parent.name)}") from error
        cut = f"is cut off ({path.stat().st_size} bytes are here)"  # the table of an archive stands at its end
        how = f"is damaged ({error})" if zipfile.is_zipfile(path) else cut
        raise UnsupportedModelError(f"{path.name} {how}; {AGAIN}") from error
    except NotImplementedError as error:  # compressed in a way that zipfile does not know
        raise _CompressedError from error


def _zipped(path: Path, file: IO[bytes], entries: dict[str, zipfile.ZipInfo], folder: str) -> Callable[[Any], _Storage]:
    """What stands for a storage's id in an archive."""
    whole = _mapped(path)
    known: dict[str, torch.UntypedStorage] = {}

    def storage(saved: Any) -> _Storage:
        dtype, key, numel, _ = _saved(saved)
        if key not in known:
            info = entries[f"{folder}data/{key}"]
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise _CompressedError
            file.seek(info.header_offset)
            signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            begin = info.header_offset + _LOCAL_HEADER.size + name + extra
            end = begin + numel * dtype.itemsize
            if signature != b"PK\3\4" or end - begin > info.file_size or end > whole.nbytes():
                raise DamagedPickleError(f"tensor {shown(key)} has fewer values than it says")
            known[key] = whole[begin:end]
        return _Storage(dtype, known[key])

    return storage


def _read_old(path: Path) -> Any:
    """As torch wrote before version 1.6: pickles, then the values of one storage after another."""
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(_MOST_PICKLE))
    if _plain(stream) != _MAGIC:
        raise UnsupportedModelError(
            f"{path.name} is a pickle that torch.save did not write; load it where it was made, and save its weights with "
            "torch.save"
        )
    dtypes: dict[str, torch.dtype] = {}
    places: dict[str, int] = {}
    try:
        for _ in ("protocol", "system"):
            _plain(stream)
        begin = stream.tell()

        def noted(saved: Any) -> _Storage:
            dtype, key, _, _ = _saved(saved)
            dtypes[key] = dtype
            return _Storage(dtype, None)

        _content(path, stream, _or_layer(noted))
        keys = _plain(stream)
    except DamagedPickleError:
        if path.stat().st_size > stream.tell() == _MOST_PICKLE:
            raise LargePickleError(f"more than {_MOST_PICKLE >> 20} MB") from None
        raise
    whole, place = _mapped(path), stream.tell()
    with path.open("rb") as file:
        for key in keys:
            file.seek(place)
            (numel,) = struct.unpack("<q", file.read(8))
            places[key], place = place + 8, place + 8 + numel * dtypes[key].itemsize
            if numel < 0 or place > whole.nbytes():
                raise DamagedPickleError(f"{path.stat().st_size} bytes are here, and more should be")

    def storage(saved: Any) -> _Storage:
        dtype, key, numel, view = _saved(saved)
        first, numel = (view[1], view[2]) if view else (0, numel)
        at = places[key] + first * dtype.itemsize
        if first < 0 or at + numel * dtype.itemsize > whole.nbytes():
            raise DamagedPickleError(f"tensor {shown(key)} has fewer values than it says")
        return _Storage(dtype, whole[at : at + numel * dtype.itemsize])

    stream.seek(begin)
    return _content(path, stream, _or_layer(storage))


def _mapped(path: Path) -> torch.UntypedStorage:
    with in_utf8(path) as name:
        try:
            whole = torch.UntypedStorage.from_file(name, False, path.stat().st_size)
        except RuntimeError as error:
            if NO_ROOM.search(str(error)):
                raise too_large(path, error) from error
            raise
    assert isinstance(whole, torch.UntypedStorage)
    return whole


def _or_layer(storage: Callable[[Any], _Storage]) -> Callable[[Any], Any]:
    """`storage`, and of the id of a network's layer its class: the old format keeps that with its source text."""

    def found(saved: Any) -> Any:
        is_layer = isinstance(saved, tuple) and len(saved) == 4 and saved[0] == "module"
        return saved[1] if is_layer else storage(saved)

    return found


def _saved(saved: Any) -> tuple[torch.dtype, str, int, Any]:
    """dtype, key, number of values and the view of a storage's id."""
    kind, named, key, _, numel, *view = saved[:_PARTS_OF_STORAGE]
    name = named.full.rpartition(".")[2].removeprefix("_").removesuffix("Storage")
    if kind != "storage" or not isinstance(key, str) or type(numel) is not int or numel < 0 or name not in _STORAGES:
        raise DamagedPickleError("a storage is described wrongly")
    return _STORAGES[name], key, numel, view[0] if view else None


def _plain(stream: IO[bytes]) -> Any:
    """A pickle without tensors."""
    return read_pickle(stream, lambda *unused: NotImplemented, lambda saved: None)[0]


def _content(path: Path, stream: IO[bytes], storage: Callable[[Any], Any]) -> Any:
    makers = _Makers()
    content, names = read_pickle(stream, makers.call, storage)
    why = next((why for name in sorted(names) if (why := other_loader(name))), None)
    if why:
        raise UnsupportedModelError(f"{path.name} {why}")
    return content


class _Makers:
    """Tensors out of what torch calls to make them."""

    def __init__(self) -> None:
        self.made = 0

    def call(self, full: str, arguments: tuple[Any, ...]) -> Any:
        """NotImplemented: no tensor, or of a kind that no weights are."""
        if full == "torch.Size":
            return _sides(arguments[0])
        if full.startswith("torch._tensor._rebuild_from_type"):
            function, _, inner = arguments[:3]
            return self.call(function.full, inner)
        if not full.startswith(_UTILS):
            return NotImplemented
        kind = full.removeprefix(_UTILS)
        if kind in ("parameter", "parameter_with_state", "device_tensor_from_cpu_tensor"):
            return arguments[0]
        self.made += 1
        if self.made > MOST_TENSORS:
            raise LargePickleError(f"more than {MOST_TENSORS} tensors")
        if kind in ("tensor", "tensor_v2"):
            return _tensor(arguments, arguments[0].dtype)
        if kind == "tensor_v3":
            return _tensor(arguments, _dtype(arguments[6]))
        # Whose values are not in the file, or lie apart: readers say what is wrong with such.
        if kind == "meta_tensor_no_storage":
            return torch.empty(_sides(arguments[1]), dtype=_dtype(arguments[0]), device="meta")
        if kind == "sparse_tensor":
            size = next(each for each in arguments[1][:_PARTS_OF_STORAGE] if isinstance(each, tuple))
            return torch.empty(_sides(size), device="meta")
        return NotImplemented


def _dtype(name: Any) -> torch.dtype:
    dtype = getattr(torch, name.full.removeprefix("torch."), None) if isinstance(name, Name) else None
    if not isinstance(dtype, torch.dtype):
        raise DamagedPickleError(f"this torch has no type {shown(getattr(name, 'full', name))}")
    return dtype


def _sides(size: Any) -> tuple[int, ...]:
    """Sides of a tensor, or its strides. Lists and numbers of megabytes would take hours to be worked with."""
    if not isinstance(size, (tuple, list)) or len(size) > _MOST_SIDES:
        raise DamagedPickleError("a tensor has no shape")
    if not all(type(side) is int and 0 <= side < 1 << 63 for side in size):
        raise DamagedPickleError("a tensor has a side that is no number")
    return tuple(size)


def _tensor(arguments: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
    storage, offset = arguments[:2]
    size, stride = map(_sides, arguments[2:4])
    if storage.values is None or not prod(size):
        return torch.empty(size, dtype=dtype, device="cpu" if not prod(size) else "meta")
    return torch.empty(0, dtype=dtype).set_(storage.values, offset, size, stride)
