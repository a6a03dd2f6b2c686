"""What is no weight file, or one that would take all there is, ends in a sentence."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import UnsupportedModelError
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.common.weight_files import open_weights
from safetensors.torch import save_file

from ....bounded import bounded

FLOAT = {"dtype": "F32", "shape": [1]}


def safetensors(path: Path, entries: dict[str, Any], data: bytes = b"", metadata: dict[str, str] | None = None) -> Path:
    """As the library would not write it."""
    header = json.dumps({**({"__metadata__": metadata} if metadata else {}), **entries}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def numbered(count: int, name: str = "blocks.{}.self_attn.q.weight") -> dict[str, Any]:
    return {name.format(i): {**FLOAT, "data_offsets": [4 * i, 4 * i + 4]} for i in range(count)}


OF_NOTHING = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
# Of nothing, so that they take no bytes: names by which HY-WorldPlay 5B is known.
OF_A_WORLD = {
    "patch_embedding.weight": [0, 48, 1, 2, 2],
    **{f"action_embedding.{layer}.{kind}": [0] for layer in (0, 2) for kind in ("weight", "bias")},
    **{f"blocks.{block}.self_attn.o_prope.{kind}": [0] for block in range(150) for kind in ("weight", "bias")},
}
ONE = {"a": {**FLOAT, "data_offsets": [0, 4]}}
LARGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a million tensors": (
        lambda path: safetensors(path, numbered(1_000_000, "t{}"), bytes(4_000_000)),
        "has 7[0-9] MB of names and metadata, and QVG reads files of up to 12 MB of them",
    ),
    "a hundred thousand": (
        lambda path: safetensors(path, numbered(100_000, "t{}"), bytes(400_000)),
        "holds 100000 tensors, and QVG reads files of up to 50000",
    ),
    "as many as are read": (lambda path: safetensors(path, numbered(49_999), bytes(4 * 49_999)), "holds a part of a Wan"),
    "as many prefixes": (
        lambda path: safetensors(path, numbered(49_999, "p{}.head.modulation"), bytes(4 * 49_999)),
        "is of another architecture",
    ),
    "as many buffers": (
        lambda path: safetensors(path, numbered(49_998, "b{}.freqs") | {"head.modulation": OF_NOTHING}, bytes(4 * 49_998)),
        "is of another architecture",
    ),
    "blocks that have nothing in common": (
        lambda path: safetensors(
            path,
            {f"blocks.{i % 150}.x{i}.self_attn.q.weight": {**FLOAT, "data_offsets": [4 * i, 4 * i + 4]} for i in range(49_000)}
            | {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in OF_A_WORLD.items()},
            bytes(4 * 49_000),
        ),
        "holds 49[0-9]+ weights, but HY-WorldPlay of 150 blocks has",
    ),
    "a key of megabytes": (
        lambda path: safetensors(path, {"k" * 5_000_000: ONE["a"]}, bytes(4)),
        "names a tensor with 5000000 letters",
    ),
    "metadata of megabytes": (lambda path: safetensors(path, ONE, bytes(4), {"x": "y" * 90_000_000}), "has 90 MB of names"),
    "brackets": (
        lambda path: path.write_bytes(struct.pack("<Q", 5_000_006) + b'{"a":' + b"[" * 5_000_001 + bytes(64)),
        "cannot be read .*recursion limit",
    ),
    "a million dimensions": (
        lambda path: safetensors(path, {"a": {**ONE["a"], "shape": [1] * 1_000_000}}, bytes(4)),
        "is of another architecture",
    ),
    "a shape without end": (
        lambda path: safetensors(path, {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)),
        "is cut off or damaged|cannot be read",
    ),
    "nothing of a shape without end": (
        lambda path: safetensors(path, {"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
        "cannot be read|is cut off or damaged|another architecture",
    ),
    "an unknown type": (
        lambda path: safetensors(path, {"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "cannot be read|is cut off or damaged",
    ),
    "a terabyte of zeros": (lambda path: _sparse(path, 1 << 40), "begins with nothing but zeros, as a download does"),
}


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


@pytest.mark.parametrize("kind", LARGE)
def test_files_that_would_take_all_there_is(tmp_path: Path, kind: str) -> None:
    write, said = LARGE[kind]
    write(tmp_path / "self_forcing.safetensors")
    with bounded(15, 200), pytest.raises(UnsupportedModelError, match=said) as refused:
        registry.read(tmp_path / "self_forcing.safetensors")
    assert len(str(refused.value)) < 600 and "\n" not in str(refused.value)


def test_safetensors_whose_length_begins_like_another_file(tmp_path: Path) -> None:
    """One header of 32 is as long as to begin with the byte of a pickle, and some begin like a zip archive."""
    for length in (0x80, 0x4B50):
        header = json.dumps(ONE).encode().ljust(length)
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + header + struct.pack("<f", 1))
        assert open_weights(tmp_path / "a.safetensors").content["a"] == 1


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"GGUF" + bytes(60), "is a GGUF file, whose weights only a GGUF loader reads"),
        (b"<!doctype html><html><body>Sign in</body></html>", "is a web page"),
        (b"\n\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is an answer of a server"),
        (
            b'{"error": "Invalid username or password."}',
            r"is text, not weights \(it begins '{\"error\": \"Invalid username or pass.*: if",
        ),
        (
            b"Access to model a/b is restricted. You must be\nauthenticated.",
            r"is text, not weights \(it begins 'Access to .* be auth",
        ),
        (b"Entry not found", r"is text, not weights \(it begins 'Entry not found'\): if it is a server's answer, do what that"),
        (b"# xet version 0\nfilesize = 5000\nhash = 'a'", r"is text, not weights \(it begins \"# xet version 0 filesize"),
        (b"\xef\xbb\xbf" + b'{"_class_name": "WanTransformer3DModel"}', "is text in JSON, not weights"),
        (b"\x1f\x8b" + bytes(60), "is packed with gzip"),
        (b"7z\xbc\xaf" + bytes(60), "is a 7-Zip archive"),
        (b"Rar!" + bytes(60), "is a RAR archive"),
        (b"\x89PNG" + bytes(60), "is a picture"),
        (b"\x89HDF" + bytes(60), "is an HDF5 file"),
        (b"a".ljust(257, b"\0") + b"ustar" + bytes(60), "is a tar archive"),
        (bytes(400), "begins with nothing but zeros"),
    ],
)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_strangers_by_their_first_bytes(tmp_path: Path, head: bytes, said: str, ending: str) -> None:
    (tmp_path / f"a.{ending}").write_bytes(head)
    with pytest.raises(UnsupportedModelError, match=f"a.{ending} {said}"):
        open_weights(tmp_path / f"a.{ending}")


def test_a_download_that_has_not_ended(tmp_path: Path) -> None:
    """It has its full size, and zeros where nothing has come yet: nothing in it tells."""
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors.aria2").touch()
    with pytest.raises(UnsupportedModelError, match=r"a.safetensors is a download that has not ended, as a.safetensors.aria2 "):
        open_weights(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors.aria2").unlink()
    assert open_weights(tmp_path / "a.safetensors").content.keys() == {"a"}


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="is a folder, not a file; give the path of a weight file"):
        open_weights(tmp_path)
    for name in ("a.pt", "model.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(
        UnsupportedModelError, match="is a folder, not a file; give a file in it, such as a.pt, model.safetensors$"
    ):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(UnsupportedModelError, match="give a file in it, such as model.safetensors.index.json$"):
        open_weights(tmp_path)
    for path in (tmp_path / "no.pt", tmp_path / "a.pt" / "b.pt", Path("a\0b.pt"), tmp_path / ("x" * 300 + ".pt")):
        with pytest.raises(UnsupportedModelError, match="cannot be opened"):
            open_weights(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pt")
    for path in (tmp_path / "a.pt", Path("/dev/zero")):
        with pytest.raises(UnsupportedModelError, match="is a pipe or a device, not a file"):
            open_weights(path)


def test_names_out_of_a_file_are_fit_for_a_terminal(tmp_path: Path) -> None:
    """No escape sequences, no second line, no megabytes."""
    for names in (["\x1b[2J\x1b]0;x\x07.weight", "a\nb"], [f"{'n' * 900}{i}" for i in range(2000)]):
        save_file({name: torch.ones(1) for name in names}, tmp_path / "self_forcing.safetensors")
        torch.save({name: {} for name in names}, tmp_path / "self_forcing.pt")
        for file in ("self_forcing.safetensors", "self_forcing.pt"):
            with pytest.raises(UnsupportedModelError) as refused:
                registry.read(tmp_path / file)
            assert str(refused.value).isprintable() and len(str(refused.value)) < 900
