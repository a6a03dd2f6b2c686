"""Damaged checkpoints, made from a seed, before `qvg convert` and all loaders: no tracebacks, nothing hangs or eats the machine.

    python tools/damaged_checkpoints.py                      120 files of all families, a minute or two of one core
    python tools/damaged_checkpoints.py --seed 7 --count 600
    python tools/damaged_checkpoints.py --keep DIR           leave the files there

Each file is a tiny network of a family with one kind of damage: bytes that are gone, turned or changed places, tensors that are
missing, misnamed or of another shape or type, hostile pickles and headers, parts that do not fit. Every one must end in a model
or in one sentence, within 20 seconds of work and 200 MB. The exit code says whether all did.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bootstrap_package import comfyui_qvg  # noqa: F401  (first: it names the repository `comfyui_qvg`)
from comfyui_qvg.qvg.cli import main as qvg
from comfyui_qvg.qvg.errors import QVGError
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.dreamx.network import DreamX
from comfyui_qvg.qvg.models.longcat import LongCat, LongCatConfig
from comfyui_qvg.qvg.models.longlive2.network import LongLive2
from comfyui_qvg.qvg.models.wan.network import CausalWan, WanConfig
from comfyui_qvg.qvg.models.worldplay_hunyuan.modules import HunyuanConfig, HunyuanNetwork
from comfyui_qvg.qvg.models.worldplay_wan.network import WorldPlay, WorldPlayConfig
from safetensors.torch import save_file
from torch import Tensor
from watched import watched

SECONDS, MEGABYTES, LETTERS = 20, 200, 2000
PATIENCE = 120  # seconds of the clock: others may work on this machine, too
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A network, the name that its file would have, and dice of its own."""

    stem: str
    tensors: Tensors
    dice: random.Random
    folder: Path

    def some_name(self) -> str:
        """Of one of its tensors."""
        return self.dice.choice(sorted(self.tensors))

    def safetensors(self, tensors: Tensors | None = None, metadata: dict[str, str] | None = None) -> Path:
        """As it should be, but for `tensors`."""
        path = self.folder / f"{self.stem}.safetensors"
        save_file({name: each.clone() for name, each in (tensors or self.tensors).items()}, path, metadata)
        return path

    def torch(self, content: Any = None, zipped: bool = True) -> Path:
        """A checkpoint of torch's, the weights as generator unless `content` is given."""
        path = self.folder / f"{self.stem}.pt"
        torch.save({"generator": self.tensors} if content is None else content, path, _use_new_zipfile_serialization=zipped)
        return path

    def any_format(self) -> Path:
        """Whole."""
        return self.dice.choice([self.safetensors, self.torch, lambda: self.torch(zipped=False)])()

    def archive(self, pickled: bytes, **entries: bytes) -> Path:
        """A zip archive as torch's, with this in it."""
        path = self.folder / f"{self.stem}.pt"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in {"data.pkl": pickled, **entries}.items():
                file.writestr(f"archive/{name}", content)
        return path


Damage = Callable[[Case], Path]
DAMAGES: dict[str, Damage] = {}


def damage(make: Damage) -> Damage:
    """Lists a kind of damage by its function's name."""
    DAMAGES[make.__name__.replace("_", " ")] = make
    return make


def _edited(path: Path, edit: Callable[[bytearray], None]) -> Path:
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)
    return path


def _told(content: bytearray) -> int:
    """How many bytes at the beginning describe the rest, or so."""
    return min(len(content), 8 + struct.unpack("<Q", content[:8])[0] if content[7:9] == b"\0{" else 4000)


@damage
def cut_off(case: Case) -> Path:
    path = case.any_format()
    os.truncate(path, int(path.stat().st_size * case.dice.random()))
    return path


@damage
def cut_off_at_its_beginning(case: Case) -> Path:
    path = case.any_format()
    os.truncate(path, case.dice.randrange(3000))
    return path


@damage
def bytes_turned_where_it_is_described(case: Case) -> Path:
    def edit(content: bytearray) -> None:
        for _ in range(case.dice.choice([1, 3, 30])):
            content[case.dice.randrange(_told(content))] ^= 1 << case.dice.randrange(8)

    return _edited(case.any_format(), edit)


@damage
def bytes_turned_anywhere(case: Case) -> Path:
    def edit(content: bytearray) -> None:
        for _ in range(200):
            content[case.dice.randrange(len(content))] = case.dice.randrange(256)

    return _edited(case.any_format(), edit)


@damage
def zeros_in_the_middle(case: Case) -> Path:
    def edit(content: bytearray) -> None:
        begin = case.dice.randrange(_told(content))
        content[begin : begin + 4096] = bytes(min(4096, len(content) - begin))

    return _edited(case.any_format(), edit)


@damage
def halves_exchanged(case: Case) -> Path:
    def edit(content: bytearray) -> None:
        half = case.dice.randrange(len(content))
        content[:] = content[half:] + content[:half]

    return _edited(case.any_format(), edit)


@damage
def more_behind_it(case: Case) -> Path:
    return _edited(case.any_format(), lambda content: content.extend(case.dice.randbytes(5000)))


@damage
def a_header_of_another_length(case: Case) -> Path:
    def edit(content: bytearray) -> None:
        content[:8] = struct.pack("<Q", case.dice.choice([0, 1, 8, 1 << 20, 1 << 40, (1 << 64) - 1, case.dice.randrange(20_000)]))

    return _edited(case.safetensors(), edit)


@damage
def a_header_that_lies(case: Case) -> Path:
    def edit(content: bytearray) -> None:
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        entry = header[case.some_name()]
        wrong = case.dice.choice([-1, 2**63, "4", None, [], 1e300, 2**31])
        case.dice.choice([entry["shape"], entry["data_offsets"]])[:1] = [wrong]
        text = json.dumps(header).encode()
        content[: 8 + length] = struct.pack("<Q", len(text)) + text

    return _edited(case.safetensors(), edit)


@damage
def a_header_of_other_json(case: Case) -> Path:
    text = case.dice.choice(['{"a": ' + "[" * 200_000, "{}", '{"a": 5}', '{"__metadata__": 5}', '{"a": {"dtype": "F32"}}', '{"a'])
    path = case.folder / f"{case.stem}.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(64))
    return path


@damage
def tensors_missing(case: Case) -> Path:
    left = {name: each for name, each in case.tensors.items() if case.dice.random() > 0.1}
    return case.safetensors(left)


@damage
def a_block_missing(case: Case) -> Path:
    return case.safetensors({name: each for name, each in case.tensors.items() if "blocks.0." not in name} or None)


@damage
def a_tensor_misnamed(case: Case) -> Path:
    name = case.some_name()
    other = case.dice.choice(
        [name[::-1], name.upper(), "", "\0", "x" * 500, "\x1b[2J", "blocks.99999999999.x", "blocks.-1.q.weight"]
    )
    return case.safetensors({other if each == name else each: tensor for each, tensor in case.tensors.items()})


@damage
def a_tensor_of_another_shape(case: Case) -> Path:
    shape = case.dice.choice([(), (0,), (1,), (3, 3), (5, 0, 7), (128, 128, 1, 1, 1, 1), (100_000,)])
    return case.safetensors({**case.tensors, case.some_name(): torch.zeros(shape)})


@damage
def a_tensor_of_another_type(case: Case) -> Path:
    name, dtype = case.some_name(), case.dice.choice([torch.int64, torch.bool, torch.uint8, torch.float8_e5m2, torch.complex64])
    return case.torch({"generator": {**case.tensors, name: case.tensors[name].to(dtype)}})


@damage
def values_that_are_none(case: Case) -> Path:
    name = case.some_name()
    return case.torch({**case.tensors, name: torch.full_like(case.tensors[name], case.dice.choice([torch.nan, torch.inf]))})


@damage
def tensors_without_values(case: Case) -> Path:
    name = case.some_name()
    tensor = case.tensors[name]
    odd = case.dice.choice([tensor.to("meta"), tensor.to_sparse(), [1, 2], None, "text", {"a": tensor}])
    return case.torch({**case.tensors, name: odd})


@damage
def names_wrapped_and_plain(case: Case) -> Path:
    prefix = case.dice.choice(["model.", "_orig_mod.", "module."])
    return case.safetensors(
        {**case.tensors, **{prefix + name: each for name, each in case.tensors.items() if case.dice.random() > 0.5}}
    )


@damage
def sets_that_nobody_knows(case: Case) -> Path:
    names = case.dice.sample(["a", "b", "ema", "critic", "model", "x.y", "generator"], 4)
    return case.torch({name: {each: tensor + 1 for each, tensor in case.tensors.items()} for name in names})


@damage
def dictionaries_in_themselves(case: Case) -> Path:
    inside: list[dict[Any, Any]] = [{} for _ in range(case.dice.randrange(1, 12))]
    for number, each in enumerate(inside):
        each[case.dice.choice(["model", "generator", "x", 5])] = inside[(number + 1) % len(inside)]
    return case.torch(inside[0])


@damage
def a_pickle_of_random_operations(case: Case) -> Path:
    alphabet = b"(.0125FGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95"
    return case.archive(b"\x80\2}" + bytes(case.dice.choices(alphabet, k=3000)))


@damage
def a_pickle_with_other_operations(case: Case) -> Path:
    path = case.torch()
    with zipfile.ZipFile(path) as file:
        entries = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    pickled = bytearray(entries["data.pkl"])
    for _ in range(case.dice.choice([1, 5, 50])):
        pickled[case.dice.randrange(len(pickled))] = case.dice.randrange(256)
    return case.archive(bytes(pickled), **{name: each for name, each in entries.items() if name != "data.pkl"})


@damage
def a_pickle_that_runs_something(case: Case) -> Path:
    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(case.folder / "it ran"),)

    return case.torch({"generator": case.tensors, "x": Runs()}, zipped=case.dice.random() > 0.5)


@damage
def a_bomb(case: Case) -> Path:
    return case.archive(case.dice.choice([b"\x80\2" + b"]" * (14 << 20), bytes(300 << 20), b"\x80\2}r\xff\xff\xff\xff." * 1000]))


@damage
def many_tensors(case: Case) -> Path:
    count = case.dice.choice([60_000, 400_000])
    header = {f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(count)}
    text = json.dumps(header).encode()
    path = case.folder / f"{case.stem}.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(count))
    return path


@damage
def a_name_of_megabytes(case: Case) -> Path:
    long = "n" * case.dice.choice([1001, 3_000_000])
    return case.dice.choice([case.safetensors, case.torch])({**case.tensors, long: torch.zeros(1)})


@damage
def an_archive_without_a_part(case: Case) -> Path:
    path = case.torch()
    with zipfile.ZipFile(path) as file:
        entries = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    entries.pop(case.dice.choice(sorted(entries)))
    return case.archive(entries.pop("data.pkl", b""), **entries)


@damage
def a_pickle_of_something_else(case: Case) -> Path:
    path = case.folder / f"{case.stem}.pt"
    path.write_bytes(pickle.dumps(case.dice.choice([{"a": [0.5] * 20}, ["x" * 99], "x" * 99, dict.fromkeys(case.tensors, 1)])))
    return path


@damage
def parts_that_do_not_fit(case: Case) -> Path:
    names = sorted(case.tensors)
    half = case.dice.randrange(1, len(names))
    files = [case.folder / f"{case.stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    overlap = case.dice.choice([0, 3])
    for file, part in zip(files, (names[: half + overlap], names[half:]), strict=True):
        save_file({name: case.tensors[name].clone() for name in part}, file)
    places = {name: case.dice.choice(["x.safetensors", "../x", 5, None, "", files[0].name]) for name in names}
    index = case.folder / f"{case.stem}.safetensors.index.json"
    index.write_text(case.dice.choice([json.dumps({"weight_map": places}), "{", "[]", "[" * 100_000]))
    os.truncate(files[1], files[1].stat().st_size - case.dice.choice([0, 100]))
    if case.dice.random() > 0.5:
        files[1].unlink()
    return case.dice.choice([files[0], index])


@damage
def packed_and_incomplete(case: Case) -> Path:
    made: Tensors = {}
    for name, tensor in case.tensors.items():
        small = tensor.ndim == 2 and case.dice.random() > 0.1
        made[name] = tensor.to(case.dice.choice([torch.float8_e4m3fn, torch.int8])) if small else tensor
        if small and case.dice.random() > 0.2:
            made[name.removesuffix("weight") + case.dice.choice(["weight_scale", "scale_weight", "absmax", "qzeros"])] = (
                torch.ones(1)
            )
    record = case.dice.choice(
        ["{", "[1]", '{"layers": 5}', '{"layers": {"a": 5}}', '{"layers": {"blocks.0.ffn.0": {"format": 7}}}']
    )
    return case.safetensors(made, {"_quantization_metadata": record} if case.dice.random() > 0.5 else None)


@damage
def strange_metadata(case: Case) -> Path:
    deep = "[" * 100_000
    config = case.dice.choice(["{", "5", deep, '{"transformer": 5}', '{"transformer": {"causal_ar": 1}}'])
    mark = case.dice.choice(["worldplay-5b", "worldplay-8b", "self-forcing", "\x1b[2J", "x" * 100_000])
    return case.safetensors(metadata={"config": config, "qvg_variant": mark, "qvg_doubt": "y\n" * 50_000})


@damage
def no_file_at_all(case: Case) -> Path:
    path = case.folder / f"{case.stem}.safetensors"
    kind = case.dice.randrange(4)
    if kind == 0:
        path.mkdir()
    elif kind == 1 and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(case.folder / "nowhere")
    else:
        path.write_bytes(
            case.dice.choice([b"", b"GGUF" + bytes(99), b"<html>" + bytes(99), case.dice.randbytes(3000), bytes(3000)])
        )
    return path


def networks(seed: int) -> Iterator[tuple[str, Tensors]]:
    """Tiny ones, by the names that their files have."""
    generator = torch.Generator().manual_seed(seed)
    for stem, module in (
        ("self_forcing_dmd", CausalWan(WanConfig(layers=2, heads=1, mlp=64))),
        ("worldplay_5b", WorldPlay(WorldPlayConfig(layers=2, heads=1, mlp=64, text_channels=64))),
        ("longlive2_5b", LongLive2(WanConfig(layers=2, heads=1, mlp=64, channels=48))),
        ("dreamx_world", DreamX(WanConfig(layers=2, heads=1, mlp=64, channels=48))),
        ("worldplay_8b_distilled", HunyuanNetwork(HunyuanConfig(2, 1, 32, 64, 64, 64, 64))),
        ("longcat_video", LongCat(LongCatConfig(layers=2, heads=1, head_dim=64, mlp=64, text_channels=64, time_channels=32))),
    ):
        yield stem, {name: torch.randn(each.shape, generator=generator) for name, each in module.state_dict().items()}


@dataclass(frozen=True)
class Outcome:
    """What became of one file. `wrong`: what must not be, "" where all is well."""

    taken: bool
    said: str
    seconds: float
    megabytes: float
    wrong: str = ""


def tried(path: Path, out: Path) -> Outcome:
    """`qvg convert`, and every loader's reading, of one file."""
    said, codes = io.StringIO(), []

    def read() -> None:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            for node in registry.loaders(lambda family: family.files is not None):
                with contextlib.suppress(QVGError):
                    registry.read(path, node=node)
            codes.append(qvg(["convert", str(path), str(out)]))

    cost = watched(read, PATIENCE)
    taken, text, wrong = codes == [0], said.getvalue(), cost.wrong
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    for condition, what in (
        (not taken and not wrong and len(errors) != 1, f"no one sentence: {text!r}"),
        ("Warning" in text, f"a warning: {text!r}"),
        (len(text) > LETTERS, f"{len(text)} letters are said"),
        (not text.replace("\n", "").isprintable(), f"not fit for a terminal: {text[:LETTERS]!r}"),
        (cost.megabytes > MEGABYTES, f"{cost.megabytes:.0f} MB"),
        (cost.seconds > SECONDS, f"{cost.seconds:.0f} s of work"),
        ((path.parent / "it ran").exists(), "it ran"),
    ):
        wrong = wrong or (what if condition else "")
    return Outcome(taken, errors[0] if errors else text.strip(), cost.seconds, cost.megabytes, wrong)


def run(count: int, seed: int, folder: Path) -> list[tuple[str, Outcome]]:
    """So many files, every kind of damage in turn."""
    known, kinds = list(networks(seed)), list(DAMAGES)
    outcomes = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        dice = random.Random(f"{seed} {number}")
        stem, tensors = known[dice.randrange(len(known))]
        place = folder / f"{number:04} {kind}"
        place.mkdir()
        path = DAMAGES[kind](Case(stem, tensors, dice, place))
        outcomes.append((f"{number} {kind}, {stem}", tried(path, place / "out.safetensors")))
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--keep", type=Path, metavar="DIR")
    parser.add_argument("--verbose", action="store_true", help="what is said of each")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    try:
        outcomes = run(options.count, options.seed, folder)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)
    for name, outcome in outcomes:
        if options.verbose or outcome.wrong:
            print(f"{name}: {outcome.wrong or outcome.said}", file=sys.stderr if outcome.wrong else sys.stdout)
    wrong, taken = sum(bool(each.wrong) for _, each in outcomes), sum(each.taken for _, each in outcomes)
    slowest, largest = max(each.seconds for _, each in outcomes), max(each.megabytes for _, each in outcomes)
    print(
        f"{len(outcomes)} files, {len(DAMAGES)} kinds of damage, seed {options.seed}: {taken} taken, "
        f"{len(outcomes) - taken - wrong} refused in a sentence, {wrong} wrong; at most {slowest:.1f} s of work and "
        f"{largest:.0f} MB for one file"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
