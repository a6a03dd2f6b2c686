"""Damaged saved caches, made from a seed, before `load_cache`: no tracebacks, no hangs, and nothing that is wrong and unsaid.

    python tools/damaged_caches.py                       5,000 files of every version of the format, minutes of one core
    python tools/damaged_caches.py --seed 7 --count 200

Each is a small cache of tests/data/earlier with one kind of damage: bytes that are turned, gone or changed places; tensors that
are missing, misnamed, of another shape or exchanged; a state that was edited. What is loaded is used: some frames are attended to
and committed. Every file must end in a cache that works or in one sentence, within 5 seconds of work and 100 MB. Damage that
leaves the checksums as they were must be found, wherever it changes what is loaded; a file whose checksums were made anew, or
that has none, may be loaded as it is. The exit code says whether all did.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bootstrap_package import comfyui_qvg  # noqa: F401  (first: it names the repository `comfyui_qvg`)
from comfyui_qvg.qvg import CacheFileError, KVCache
from comfyui_qvg.qvg.session import load_cache, save_cache
from comfyui_qvg.tests.earlier import CACHES, SAVED
from comfyui_qvg.tests.saved_caches import read_apart, rewrite, write_sealed
from watched import Watched, watched

SECONDS, MEGABYTES, LETTERS, PATIENCE = 5, 100, 700, 60
CHECKED_VERSION = 3
_NUMBERS = (-5, -1, 0, 1, 2, 3, 7, 255, 10**9, 10**30, 0.5, -0.0, 1e300, 1e-300)
_ODD = (*_NUMBERS, None, True, "", "x", "\x1b[2J", [], {}, [[]], "9" * 5000, float("nan"), float("inf"))

Dice = random.Random


@dataclass(frozen=True)
class Outcome:
    """What became of one file: "refused", "whole" (what is loaded is what was saved), "changed", and what is wrong with that."""

    kind: str
    became: str
    said: str
    cost: Watched
    wrong: str


# ------------------------------------------------------------------------------------------- bytes, checksums as they were


def _turned(file: Path, dice: Dice) -> None:
    data = bytearray(file.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(data)


def _turned_in_tensors(file: Path, dice: Dice) -> None:
    data = bytearray(file.read_bytes())
    data[dice.randrange(8 + int.from_bytes(data[:8], "little"), len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(data)


def _emptied(file: Path, dice: Dice) -> None:
    data = bytearray(file.read_bytes())
    start, length = dice.randrange(len(data)), dice.choice([1, 16, 512, 4096])
    data[start : start + length] = bytes(len(data[start : start + length]))
    file.write_bytes(data)


def _cut(file: Path, dice: Dice) -> None:
    file.write_bytes(file.read_bytes()[: dice.randrange(file.stat().st_size)])


def _longer(file: Path, dice: Dice) -> None:
    file.write_bytes(file.read_bytes() + dice.randbytes(dice.choice([1, 8, 1000])))


def _exchanged_bytes(file: Path, dice: Dice) -> None:
    data = bytearray(file.read_bytes())
    length = dice.choice([1, 8, 256])
    one, other = (dice.randrange(len(data) - length) for _ in range(2))
    data[one : one + length], data[other : other + length] = data[other : other + length], data[one : one + length]
    file.write_bytes(data[: file.stat().st_size])


def _digit(file: Path, dice: Dice) -> None:
    """Another digit somewhere in the header: in a number of the state, of a shape, of a checksum, in a name."""
    data = bytearray(file.read_bytes())
    places = [place for place in range(8, 8 + int.from_bytes(data[:8], "little")) if 48 <= data[place] <= 57]
    data[dice.choice(places)] = dice.randrange(48, 58)
    file.write_bytes(data)


# --------------------------------------------------------------------------------------- tensors and state, sealed anew


def _with_tensors(change: Callable[[dict[str, torch.Tensor], Dice], object]) -> Callable[[Path, Dice], None]:
    return lambda file, dice: rewrite(file, tensors=lambda tensors: change(tensors, dice))


def _some(tensors: dict[str, torch.Tensor], dice: Dice) -> str:
    return dice.choice(sorted(tensors))


def _missing(tensors: dict[str, torch.Tensor], dice: Dice) -> None:
    del tensors[_some(tensors, dice)]


def _renamed(tensors: dict[str, torch.Tensor], dice: Dice) -> None:
    name = _some(tensors, dice)
    tensors[dice.choice([name + "x", name[1:], "layer.99.keys.0.exact", "\x1b[2J", "x" * 5000])] = tensors.pop(name)


def _reshaped(tensors: dict[str, torch.Tensor], dice: Dice) -> None:
    name = _some(tensors, dice)
    x = tensors[name]
    changed = [x.flatten(), x[None], x[..., 1:], x[:0], x.transpose(-1, -2), torch.cat([x, x], -1)]
    tensors[name] = dice.choice(changed).contiguous()


def _retyped(tensors: dict[str, torch.Tensor], dice: Dice) -> None:
    name = _some(tensors, dice)
    kinds = [torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool]
    tensors[name] = tensors[name].to(dice.choice(kinds))


def _exchanged(tensors: dict[str, torch.Tensor], dice: Dice) -> None:
    one, other = _some(tensors, dice), _some(tensors, dice)
    tensors[one], tensors[other] = tensors[other], tensors[one]


def _drawn(tensors: dict[str, torch.Tensor], dice: Dice) -> None:
    """Any bits: NaN, ids of no codeword, scales without end."""
    name = _some(tensors, dice)
    data = torch.frombuffer(bytearray(dice.randbytes(tensors[name].nbytes)), dtype=torch.uint8)
    tensors[name] = data.view(tensors[name].dtype).reshape(tensors[name].shape)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a state."""
    found = [path] if path else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        found += _places(entry, (*path, key))
    return found


def _edited(file: Path, dice: Dice) -> None:
    """One entry of the state is another, or is not there."""
    _, state, _ = read_apart(file)
    path = dice.choice(_places(state))

    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        if dice.random() < 0.15:
            del state[path[-1]]
        elif isinstance(state[path[-1]], int | float) and dice.random() < 0.6:
            state[path[-1]] = dice.choice([state[path[-1]] + 1, state[path[-1]] - 1, *_NUMBERS])
        else:
            state[path[-1]] = dice.choice(_ODD)

    rewrite(file, state=change)


def _nested(file: Path, dice: Dice) -> None:
    metadata, _, tensors = read_apart(file)
    text = dice.choice(["[" * 100_000, '{"spec":' * 50_000, "[" * 900 + "]" * 900, "9" * 5000, "", "null", "[]", '"x"', "{}"])
    write_sealed(file, int(metadata["version"]), text, tensors)


def _other_version(file: Path, dice: Dice) -> None:
    metadata, state, tensors = read_apart(file)
    version = dice.choice([number for number in (1, 2, 3, 4, 0, 10**9) if number != int(metadata["version"])])
    write_sealed(file, version, state, tensors)


def _checksums(file: Path, dice: Dice) -> None:
    """Of a file without them, or none, or others."""
    from safetensors.torch import save_file

    metadata, _, tensors = read_apart(file)
    found = json.loads(metadata.pop("crc32", "{}"))
    for name in dice.sample(sorted(found), min(len(found), 3)):
        found[name] = dice.choice([None, 0, "", "00000000", found[name].upper(), {"x": 1}])
    options: list[dict[str, str]] = [{}, {"crc32": json.dumps(found)}, {"crc32": "[]"}, {"crc32": "[" * 50_000}, {"crc32": "{}"}]
    save_file(tensors, file, {**metadata, **dice.choice(options)})


UNSEALED = {
    "a bit turned": _turned,
    "a bit of a tensor turned": _turned_in_tensors,
    "bytes emptied": _emptied,
    "cut off": _cut,
    "longer": _longer,
    "bytes exchanged": _exchanged_bytes,
    "a digit of the header": _digit,
    "other checksums": _checksums,
}
SEALED = {
    "a tensor missing": _with_tensors(_missing),
    "a tensor misnamed": _with_tensors(_renamed),
    "a tensor of another shape": _with_tensors(_reshaped),
    "a tensor of another type": _with_tensors(_retyped),
    "tensors exchanged": _with_tensors(_exchanged),
    "a tensor of any bits": _with_tensors(_drawn),
    "the state edited": _edited,
    "another state": _nested,
    "another version": _other_version,
}
# Many more edits of a state can be thought of than of all else.
KINDS = [*UNSEALED, *SEALED, *["the state edited"] * 6, *["a bit of a tensor turned", "a bit turned"] * 2]


def use(cache: KVCache) -> None:
    """Some frames more: history is read, written and encoded."""
    spec = cache.spec
    for frame in range(4):
        if cache.rope is not None:
            cache.place([(0.0, 50.0 + frame, 1.0)])
        for layer in range(spec.layers):
            shape = (3, spec.batch, spec.heads, spec.tokens_per_frame, spec.head_dim)
            q, k, v = torch.randn(shape, generator=torch.Generator().manual_seed(frame))
            cache.attend(layer, q, k, v)
        cache.commit()


def tried(kind: str, version: int, whole: Path, file: Path, again: Path) -> Outcome:
    """Load what is at `file`, compare it with what is at `whole`, and use it."""
    became, said = "", ""

    def load() -> None:
        nonlocal became, said
        try:
            cache = load_cache(file)
        except CacheFileError as error:
            became, said = "refused", str(error)
            return
        save_cache(cache, again)
        became = "whole" if again.read_bytes() == whole.read_bytes() else "changed"
        use(cache)

    cost = watched(load, PATIENCE)
    no_sentence = became == "refused" and (not said.strip() or "\n" in said or len(said) > LETTERS)
    unsaid = became == "changed" and kind in UNSEALED and version >= CHECKED_VERSION
    for condition, what in (
        (unsaid, "what is loaded is not what was saved, and nothing says so"),
        (no_sentence, f"no one sentence: {said[:LETTERS]!r}"),
        (not said.isprintable(), f"not fit for a terminal: {said[:LETTERS]!r}"),
        (cost.seconds > SECONDS, f"{cost.seconds:.0f} s of work"),
        (cost.megabytes > MEGABYTES, f"{cost.megabytes:.0f} MB"),
    ):
        if condition and not cost.wrong:
            return Outcome(kind, became, said, cost, what)
    return Outcome(kind, became, said, cost, cost.wrong)


def run(count: int, seed: int, folder: Path) -> list[Outcome]:
    """So many files; every kind of damage and every file of every version in turn."""
    outcomes = []
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        kind, (version, name) = KINDS[number % len(KINDS)], SAVED[dice.randrange(len(SAVED))]
        source = CACHES[version] / f"{name}.safetensors"
        whole = folder / f"whole {version} {name}"
        if not whole.exists():
            save_cache(load_cache(source), whole)
        file = folder / "damaged"
        file.write_bytes(source.read_bytes())
        (UNSEALED | SEALED)[kind](file, dice)
        outcome = tried(f"{kind}", version, whole, file, folder / "again")
        outcomes.append(outcome)
        if outcome.wrong:
            print(f"{number}: {kind} of {name}, version {version}: {outcome.wrong}", file=sys.stderr)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=5000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(options.count, options.seed, Path(folder))
    became, wrong = Counter(each.became for each in outcomes), sum(bool(each.wrong) for each in outcomes)
    slowest, largest = max(each.cost.seconds for each in outcomes), max(each.cost.megabytes for each in outcomes)
    print(
        f"{len(outcomes)} files, {len(UNSEALED) + len(SEALED)} kinds of damage, seed {options.seed}: {became['refused']} refused "
        f"in a sentence, {became['whole']} loaded as they were, {became['changed']} loaded as they are now and were sealed anew "
        f"or have no checksums, {wrong} wrong; at most {slowest:.1f} s of work and {largest:.0f} MB for one file"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
