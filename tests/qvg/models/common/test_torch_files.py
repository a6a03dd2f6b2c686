"""Files of torch.save: read as torch.load reads them, with what trainers put beside weights, and nothing in them is run."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import fractions
import io
import ipaddress
import os
import pickle
import re
import runpy
import struct
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_qvg.qvg import UnsupportedModelError
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.common import safetensors_files
from comfyui_qvg.qvg.models.common.weight_files import open_weights
from safetensors.torch import save_file
from torch import Tensor

from ....bounded import bounded

ZIPPED = [True, False]
SHARED = torch.arange(24.0).reshape(4, 6)


def every_kind() -> dict[str, Tensor]:
    """Tensors of all types that weights and their scales have, and of all ways in which they may lie in memory."""
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16)
    made = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in (*dtypes, *whole)}
    return made | {
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "a number": torch.tensor(7.0),
        "nothing": torch.zeros(0, 5),
        "turned": SHARED.T,
        "a part": SHARED[1:, ::2],
        "shared": SHARED,
        "expanded": torch.ones(1, 3).expand(4, 3),
    }


def same(found: Tensor, expected: Tensor) -> bool:
    """To the bit, whatever the type."""
    alike = found.shape == expected.shape and found.dtype == expected.dtype
    return alike and found.contiguous().flatten().view(torch.uint8).equal(expected.contiguous().flatten().view(torch.uint8))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", ZIPPED)
def test_what_torch_saves_is_what_is_read(tmp_path: Path, zipped: bool, protocol: int) -> None:
    kinds = every_kind()
    torch.save({"model": kinds}, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = open_weights(tmp_path / "a.pt").content["model"]
    assert found.keys() == kinds.keys() and all(same(found[name], kinds[name].detach()) for name in kinds)
    assert found["turned"].untyped_storage().data_ptr() == found["shared"].untyped_storage().data_ptr()


@pytest.mark.parametrize("zipped", ZIPPED)
def test_values_are_mapped_and_not_read(tmp_path: Path, zipped: bool) -> None:
    torch.save(
        {"a": torch.ones(20_000_000), "b": torch.ones(20_000_000)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped
    )
    with bounded(5, 40):
        found = open_weights(tmp_path / "a.pt").content
        assert found["b"][-1] == 1


class Mode(enum.Enum):
    """As in a trainer's settings: a pickle calls the class."""

    FAST = 1


class Settings:
    """As a trainer's own class of settings."""

    def __init__(self) -> None:
        self.steps, self.weights = 4, torch.ones(2)


def beside() -> dict[str, Any]:
    """What trainers keep beside weights."""
    return {
        "args": argparse.Namespace(lr=1e-5, path=Path("logs"), nested=argparse.Namespace(a=1)),
        "settings": Settings(),
        "when": datetime.datetime(2026, 1, 2),
        "numpy": {"loss": np.float64(0.5), "random": np.random.RandomState(0).get_state(), "dtype": np.dtype("float32")},
        "optimizer": {
            "state": {0: {"exp_avg": torch.ones(3), "step": 7}},
            "param_groups": [{"params": [0], "betas": (0.9, 0.99)}],
        },
        "counts": collections.Counter("abca"),
        "by name": collections.defaultdict(list, {"a": [1]}),
        "simple": types.SimpleNamespace(a=1),
        "a set": {1, 2},
        "frozen": frozenset({3}),
        "bytes": b"abc",
        "complex": 1 + 2j,
        "queue": collections.deque([1, 2]),
        "mode": Mode.FAST,
        "share": fractions.Fraction(1, 3),
        "space": types.SimpleNamespace(a=1),
        "steps": range(4),
        "nothing": type(None),
        "pattern": re.compile("a"),
        "address": ipaddress.ip_address("127.0.0.1"),
        "failure": ValueError("x"),
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", ZIPPED)
def test_a_trainers_settings_do_no_harm(tmp_path: Path, zipped: bool, protocol: int) -> None:
    """torch.load refuses such a file, or would make these objects."""
    content = {**beside(), "generator": {"a": SHARED}}
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)
    found = open_weights(tmp_path / "a.pt").content
    assert found.keys() == content.keys() and same(found["generator"]["a"], SHARED)
    assert not isinstance(found["settings"], Settings)


class Dictionary(dict[str, Any]):
    """As trainers' own, whose entries are attributes, too."""


@pytest.mark.parametrize("zipped", ZIPPED)
def test_a_state_of_the_trainers_own_class_holds_its_weights(tmp_path: Path, zipped: bool) -> None:
    state = Settings()
    state.generator = {"a": SHARED}  # type: ignore[attr-defined]
    for content in (state, Dictionary(generator={"a": SHARED})):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        assert same(open_weights(tmp_path / "a.pt").content["generator"]["a"], SHARED)
    for nothing in (torch.nn.Linear(2, 2), argparse.Namespace(a=1)):
        torch.save(nothing, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UnsupportedModelError, match=r"holds more than weights \(\w+.*(Linear|Namespace)\)"):
            open_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "said",
    [
        "unable to mmap 40000000000 bytes from file </a/b.pt>: Cannot allocate memory (12)",
        "Couldn't map view of file <C:/b.pt>, error code: <1455>",
        "The paging file is too small for this operation to complete. (os error 1455)",
    ],
)
def test_a_file_larger_than_memory_is_not_called_damaged(tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a file are mapped as private ones, for which systems want room in memory and swap."""

    def fail(*unused: object) -> None:
        raise RuntimeError(said)

    torch.save({"a": SHARED}, tmp_path / "a.pt")
    save_file({"a": SHARED}, tmp_path / "a.safetensors")
    monkeypatch.setattr(torch.UntypedStorage, "from_file", fail)
    monkeypatch.setattr(safetensors_files, "safe_open", fail)
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(UnsupportedModelError, match=f"{name} has 0.0 GB, and this system has no room to map it") as refused:
            open_weights(tmp_path / name)
        assert "swap or page file larger" in str(refused.value) and "again" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchao.dtypes.AffineQuantizedTensor", "is packed by torchao, which only a loader of its own unpacks"),
        ("bitsandbytes.nn.modules.Params4bit", "is packed by bitsandbytes"),
        ("optimum.quanto.tensor.WeightQBytesTensor", "is packed by Quanto"),
        (
            "torch.distributed.tensor._api.DTensor",
            "holds pieces of tensors, as several GPUs keep them in training; join them first",
        ),
    ],
)
def test_weights_as_objects_of_others(tmp_path: Path, name: str, said: str) -> None:
    module, _, kind = name.rpartition(".")
    weight = f"c{module}\n{kind}\n)\x81".encode("latin-1")
    archive(tmp_path / "a.pt", b"\x80\2}X\6\0\0\0weight" + weight + b"s.")
    with pytest.raises(UnsupportedModelError, match=said):
        open_weights(tmp_path / "a.pt")


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, *call: Any):
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("zipped", ZIPPED)
@pytest.mark.parametrize(
    "harm",
    [Runs(os.mkdir, "it ran"), Runs(eval, "open('it ran', 'w')"), Runs(exec, "1"), Runs(getattr, "a", "upper")],
    ids=["mkdir", "eval", "exec", "getattr"],  # processes that share the suite must agree on its names
)
def test_code_is_named_and_not_run(tmp_path: Path, harm: Runs, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": SHARED, "b": harm}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        UnsupportedModelError, match=r"a.pt holds more than weights \(\w+\.\w+\), and to read that would run code"
    ):
        open_weights(tmp_path / "a.pt")
    assert os.listdir(tmp_path) == ["a.pt"]


def archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, content in entries.items():
            file.writestr(f"archive/{name}", content)
    return path


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQ"


def many_tensors() -> bytes:
    """A pickle that makes the same tensor again and again, three operations each."""
    arguments = b"(" + STORAGE + b"K\0K\1\x85K\1\x85\x89ccollections\nOrderedDict\n)Rtq\2"
    return b"\x80\2](ctorch._utils\n_rebuild_tensor_v2\nq\1" + arguments + b"R" + b"h\1h\2R" * 300_000 + b"e."


def text(value: str) -> bytes:
    """A pickle's operation that puts this on the stack."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def filled_again_and_again() -> bytes:
    """100,000 attributes, given to an object 100,000 times."""
    attributes = b"}(" + b"".join(text(f"a{number}") + b"N" for number in range(100_000)) + b"uq\1"
    return b"\x80\2" + attributes + b"cargparse\nNamespace\n)\x81" + b"h\1b" * 100_000 + b"."


def a_tensor_of_huge_sides(count: int) -> bytes:
    """Numbers of 2 MB each, to be multiplied."""
    sides = b"(\x8b" + struct.pack("<i", 2_000_000) + b"\x7f" * 2_000_000 + b"q\1" + b"h\1" * (count - 1) + b"t"
    return b"\x80\2}K\1ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0" + sides + b"K\1\x85\x89NtRs."


def oldest(values: int) -> bytes:
    """The old format, with so many values promised and none there."""
    file = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, file, _use_new_zipfile_serialization=False)
    promised = b"\x8a\x08" + struct.pack("<q", values)
    return file.getvalue().replace(b"K\x04N", promised + b"N").replace(struct.pack("<q", 4), struct.pack("<q", values))


LARGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bomb": (lambda path: archive(path, bytes(400_000_000), zipfile.ZIP_DEFLATED), "describes its content in 400 MB"),
    "a small bomb": (
        lambda path: archive(path, b"\x80\2" + b"]" * (15 << 20), zipfile.ZIP_DEFLATED),
        "in more than 1000000 steps",
    ),
    "lists": (lambda path: archive(path, b"\x80\2" + b"]" * 999_000 + b"."), "holds a list, not weights by name"),
    "lists in one another": (lambda path: archive(path, b"\x80\2" + b"]" * 490_000 + b"a" * 489_999 + b"."), "holds a list"),
    "remembered": (lambda path: archive(path, b"\x80\4" + b"}\x94" * 499_000 + b"."), "holds no weights"),
    "a far memory": (lambda path: archive(path, b"\x80\2}r\xff\xff\xff\xff."), "holds no weights"),
    "a deep key": (lambda path: archive(path, b"\x80\2})" + b"\x85" * 900_000 + b"K\1s."), "holds no weights"),
    "bytes": (lambda path: archive(path, b"\x80\2cbuiltins\nbytearray\n\x8a\5\0\0\0\0\x10\x85R."), "holds more than weights"),
    "attributes": (lambda path: archive(path, filled_again_and_again(), zipfile.ZIP_DEFLATED), "in more than 1000000 steps"),
    "huge sides": (lambda path: archive(path, a_tensor_of_huge_sides(20), **{"data/0": bytes(4)}), "a side that is no number"),
    "many sides": (
        lambda path: archive(path, b"\x80\2ctorch\nSize\nq\1" + text("x" * 4_000_000) + b"\x85q\2" + b"h\1h\2R" * 1000 + b"."),
        "a tensor has no shape",
    ),
    "names of megabytes": (
        lambda path: archive(path, b"\x80\4" + text("x" * 4_000_000) + b"q\1" + b"h\1h\1\x93" * 1000 + b"."),
        "a class has no name",
    ),
    "names that are lists": (
        lambda path: archive(path, b"\x80\4]" + b"2\x86" * 40 + b"2\x93."),
        "a class has no name",
    ),
    "huge numbers as keys": (
        lambda path: archive(
            path, b"\x80\2}\x8b" + struct.pack("<i", 2_000_000) + b"\x7f" * 2_000_000 + b"q\1" + b"Ns" + b"h\1Ns" * 300_000 + b"."
        ),
        "holds no weights",
    ),
    "parts of a storage": (
        lambda path: archive(
            path, b"\x80\2}" + STORAGE[:-2] + b"N" * 400_000 + b"tq\0" + b"Q0" + b"h\0Q0" * 190_000 + b".", **{"data/0": bytes(4)}
        ),
        "holds no weights",
    ),
    "tensors": (lambda path: archive(path, many_tensors(), **{"data/0": bytes(4)}), "in more than 50000 tensors"),
    "a long name": (
        lambda path: archive(
            path, b"\x80\2}X" + struct.pack("<I", 9_000_004) + b"a" * 9_000_000 + "\U0001f600".encode() + b"K\1s."
        ),
        "holds no weights that are known .a{80}\\.\\.\\.",
    ),
    "of the old format": (lambda path: path.write_bytes(oldest(1 << 40)), "more should be"),
    "a stream of the old format": (
        lambda path: path.write_bytes(oldest(4)[:60] + b"N0" * 20_000_000),
        "is damaged, or no file of torch's|in more than",
    ),
}


@pytest.mark.parametrize("kind", LARGE)
def test_files_that_would_take_all_there_is(tmp_path: Path, kind: str) -> None:
    write, said = LARGE[kind]
    write(tmp_path / "self_forcing.pt")
    with bounded(10, 200), pytest.raises(UnsupportedModelError, match=said) as refused:
        registry.read(tmp_path / "self_forcing.pt")
    assert len(str(refused.value)) < 600 and "\n" not in str(refused.value)


def test_a_table_of_a_hundred_thousand_entries(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        for number in range(190_000):
            file.writestr(f"archive/data/{number}", b"")
    with bounded(10, 200), pytest.raises(UnsupportedModelError, match="in 1[0-9] MB|is a zip archive of archive/data/0"):
        open_weights(tmp_path / "a.pt")


def test_compressed_files_get_a_way_out_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a file is whole: to download it again does not help."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": SHARED, "b": torch.ones(3)}, "whole.pt")
    with zipfile.ZipFile("whole.pt") as whole, zipfile.ZipFile("a.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(UnsupportedModelError, match="a.pt is compressed, as torch.save never does") as refused:
        open_weights(Path("a.pt"))
    Path("once.py").write_text("import torch\n" + str(refused.value).partition("save it plainly once: ")[2], encoding="utf-8")
    runpy.run_path("once.py")
    assert same(open_weights(Path("plain.pt")).content["a"], SHARED)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: pickle.dump({"a": [1.0] * 9}, path.open("wb")), "is a pickle that torch.save did not write"),
        (lambda path: np.savez(path.open("wb"), a=np.ones(3)), "is a zip archive of a.npy; unpack it first"),
        (lambda path: archive(path, b"\x80\2}.", **{"constants.pkl": b""}), "is a TorchScript program, not weights by name"),
        (lambda path: archive(path, b"\x80\2}.", byteorder=b"big"), "was written on a big-endian machine"),
        (lambda path: torch.save(5, path), "holds an int, not weights by name"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(99)), r"is cut off \(103 bytes are here\); download it again"),
    ],
)
def test_other_files_of_these_kinds(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path / "a.pt")
    with pytest.raises(UnsupportedModelError, match=f"a.pt {said}"):
        open_weights(tmp_path / "a.pt")


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(4), 0.5, 0, torch.qint8)


@pytest.mark.parametrize("zipped", ZIPPED)
@pytest.mark.parametrize(
    "make",
    [lambda: torch.imag(torch.complex(torch.zeros(4), torch.ones(4)).conj()), lambda: torch.ones(4) * (1 + 1j), quantized],
    ids=["of the other sign", "complex", "quantized"],
)
def test_values_that_are_not_as_they_lie_on_disk(tmp_path: Path, make: Callable[[], Tensor], zipped: bool) -> None:
    """Never read as if they were."""
    made = make().conj() if make().is_complex() else make()
    torch.save({"a": SHARED, "b": made}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = open_weights(tmp_path / "a.pt").content
    assert same(found["a"], SHARED) and found["b"].is_meta and found["b"].shape == (4,)


@pytest.mark.parametrize("count", [1, 300])
def test_names_that_are_no_names(tmp_path: Path, count: int) -> None:
    """As of .safetensors files."""
    names = [f"{'.' * (3_000_000 // count)}{number}" for number in range(count)]
    torch.save({"generator": dict.fromkeys(names, torch.zeros(1))}, tmp_path / "self_forcing.pt")
    with bounded(10, 200), pytest.raises(UnsupportedModelError, match="names a tensor with [0-9]+ letters, and no model's"):
        registry.read(tmp_path / "self_forcing.pt")


def test_weights_as_arrays_of_numpy(tmp_path: Path) -> None:
    torch.save({"blocks.0.weight": np.ones(3)}, tmp_path / "a.pt")
    with pytest.raises(UnsupportedModelError, match=r"holds arrays of numpy's .blocks.0.weight. and no tensors; save it where"):
        registry.read(tmp_path / "a.pt")


def test_a_piece_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"PK\3\4" + bytes(99))
    with pytest.raises(UnsupportedModelError, match="dcp_to_torch"):
        open_weights(tmp_path / "__0_0.distcp")
    with pytest.raises(UnsupportedModelError, match="is a folder, not a file; it holds pieces of tensors.*dcp_to_torch"):
        open_weights(tmp_path)


@pytest.mark.parametrize("zipped", ZIPPED)
def test_every_cut_of_a_file_is_said(tmp_path: Path, zipped: bool) -> None:
    torch.save({"model": {"a": SHARED, "b": torch.ones(3)}}, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pt").read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "a.pt").write_bytes(whole[:size])
        with pytest.raises(UnsupportedModelError) as refused:
            open_weights(tmp_path / "a.pt")
        assert str(refused.value).startswith("a.pt ") and "()" not in str(refused.value)


def test_a_storage_out_of_its_bounds(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as file:
        pickled, values = file.read("a/data.pkl"), file.read("a/data/0")
    for wrong in (pickled.replace(b"K\x04tq", b"K\x05tq", 1), pickled.replace(b"QK\x00", b"QK\x01", 1)):
        assert wrong != pickled
        archive(tmp_path / "b.pt", wrong, **{"data/0": values})
        with pytest.raises(UnsupportedModelError, match="b.pt is damaged, or no file of torch's"):
            open_weights(tmp_path / "b.pt")
