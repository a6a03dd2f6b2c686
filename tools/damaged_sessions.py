"""Damaged sessions, made from a seed, before `Session.look`: no tracebacks, no hangs, nothing wrong and unsaid, no way out of the
folder.

    python tools/damaged_sessions.py                       5,000 sessions, minutes of one core
    python tools/damaged_sessions.py --seed 7 --count 200

Each is a small session with one kind of damage: bytes of any of its files that are turned, gone or changed places; files that are
missing, exchanged, or called by names that lead elsewhere; a manifest, an index, or what a segment says of itself that was edited
and sealed anew, so that every checksum is right; tensors that are others. What opens is used: blocks are read, caches are made,
frames are attended to and committed. Every session must end in one that works or in one sentence, within 5 seconds of work and
100 MB, and no file outside its folder may be opened. Damage that leaves the checksums as they were must be found wherever it
changes what is loaded. The exit code says whether all did.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bootstrap_package import comfyui_qvg  # noqa: F401  (first: it names the repository `comfyui_qvg`)
from comfyui_qvg.qvg import CacheSpec, GridRope, KVCache, QVGConfig, SessionError
from comfyui_qvg.qvg.positions.rope import geometric_frequencies
from comfyui_qvg.qvg.safetensors_writer import checksum
from comfyui_qvg.qvg.session import Session, save_cache
from comfyui_qvg.qvg.session.manifest import INDEX, MANIFEST
from comfyui_qvg.qvg.session.segment import ABOUT, ENDING, write_segment
from damaged_caches import (
    _NUMBERS,
    _ODD,
    LETTERS,
    MEGABYTES,
    PATIENCE,
    SECONDS,
    _drawn,
    _exchanged,
    _missing,
    _places,
    _renamed,
    _reshaped,
    _retyped,
    use,
)
from damaged_caches import UNSEALED as BYTES
from safetensors import safe_open
from watched import watched

Dice = random.Random
OUTSIDE = "outside"
AWAY = (f"../{OUTSIDE}/secret", f"../../{OUTSIDE}", "/etc/passwd", "C:\\x", "a/b", "..", "", "a\x00b", "A")
_SHORT = {"span_frames": 2, "recent_frames": 1, "iterations": 1, "group_size": 32}
MADE = {
    "qvg": QVGConfig(clusters=4, spans_per_codebook=2, window_frames=9, **_SHORT),
    "klt": QVGConfig(codec="klt", bits=2, clusters=6, spans_per_codebook=2, **_SHORT),
    "klt, a window": QVGConfig(codec="klt", bits=2, clusters=6, spans_per_codebook=2, window_frames=9, **_SHORT),
    "exact": QVGConfig(codec="none"),
    "kivi": QVGConfig(codec="kivi", bits=2, **_SHORT),
    "merged": QVGConfig(codec="klt", bits=2, clusters=4, merge=0.99, **_SHORT),
    "sparse": QVGConfig(codec="klt", bits=2, clusters=6, sparse=0.5, **_SHORT),
}
SPEC = CacheSpec(layers=1, heads=1, head_dim=32, tokens_per_frame=4)
ROPE = GridRope(2, 2, ((), geometric_frequencies(8, 3, 30), geometric_frequencies(8, 3, 30)))


def make(folder: Path, config: QVGConfig) -> None:
    """A session of ten blocks in four checkpoints."""
    cache = KVCache(SPEC, config, ROPE)
    with Session.create(
        folder, "small", {"weights": "w"}, {"seed": 1}, {"frames": 10}, 3, {"image": torch.ones(1, 3)}
    ) as session:
        for frame in range(10):
            cache.place([(0.0, frame % 3 * 1.0, 0.0)])
            q, k, v = torch.randn(3, 1, 1, 4, 32, generator=torch.Generator().manual_seed(frame % 6))
            cache.attend(0, q, k, v)
            cache.commit()
            session.add(q, [cache], frames=1)
            if session.due or frame == 9:
                session.checkpoint([cache])


# ------------------------------------------------------------------------------------------- files, checksums as they were


def _files(folder: Path) -> list[Path]:
    """Those that are large enough for every kind of damage."""
    return sorted(path for path in folder.iterdir() if path.name != "lock" and path.stat().st_size > 300)


def _in_a_file(change: Callable[[Path, Dice], None]) -> Callable[[Path, Dice], None]:
    return lambda folder, dice: change(dice.choice(_files(folder)), dice)


def _in_a_segment(change: Callable[[Path, Dice], None]) -> Callable[[Path, Dice], None]:
    return lambda folder, dice: change(dice.choice([path for path in _files(folder) if path.suffix == ENDING]), dice)


def _file_missing(folder: Path, dice: Dice) -> None:
    dice.choice(_files(folder)).unlink()


def _files_exchanged(folder: Path, dice: Dice) -> None:
    one, other = dice.sample(_files(folder), 2)
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


# ------------------------------------------------------------------------------------------------------------ sealed anew


def _reseal(folder: Path, lines: list[Any], edit: Callable[[dict[str, Any]], object] = lambda said: None) -> None:
    """An index of these lines, and a manifest whose checksums are right."""
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    (folder / INDEX).write_bytes(data)
    said = json.loads((folder / MANIFEST).read_text())["session"]
    said["index_bytes"], said["index_crc32"] = len(data), checksum(data)
    edit(said)
    text = json.dumps(said, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(json.dumps({"crc32": checksum(text.encode()), "session": said}))


def _lines(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]


def _edit(value: Any, dice: Dice) -> None:
    """One entry is another, or is not there."""
    path = dice.choice(_places(value))
    for key in path[:-1]:
        value = value[key]
    if dice.random() < 0.15:
        del value[path[-1]]
    elif isinstance(value[path[-1]], int | float) and dice.random() < 0.6:
        value[path[-1]] = dice.choice([value[path[-1]] + 1, value[path[-1]] - 1, *_NUMBERS])
    else:
        value[path[-1]] = dice.choice(_ODD)


def _manifest_edited(folder: Path, dice: Dice) -> None:
    _reseal(folder, _lines(folder), lambda said: _edit(said, dice))


def _index_edited(folder: Path, dice: Dice) -> None:
    lines = _lines(folder)
    _edit(lines, dice)
    _reseal(folder, lines)


def _led_away(folder: Path, dice: Dice) -> None:
    """A segment, or the prefix of a cache, by a name that leads out of the folder."""
    lines = _lines(folder)
    away = dice.choice([*AWAY, "a" * 300])
    if dice.random() < 0.3:
        _reseal(folder, lines, lambda said: said["caches"][0].update(prefix=away))
        return
    entry = dice.choice([each for line in lines for each in line["add"]])
    entry[0] = away
    _reseal(folder, lines)


def _rewritten(change: Callable[[dict[str, torch.Tensor], dict[str, Any], Dice], object]) -> Callable[[Path, Dice], None]:
    """A segment with other contents, and index and manifest that go with it."""

    def damage(folder: Path, dice: Dice) -> None:
        lines = _lines(folder)
        gone = {name for line in lines for name in line["gone"]}
        entry = dice.choice([each for line in lines for each in line["add"] if each[0] not in gone])
        path = folder / f"{entry[0]}{ENDING}"
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
            about = json.loads(file.metadata()[ABOUT])
        change(tensors, about, dice)
        segment = write_segment(folder, entry[0], tensors, about)
        entry[1:] = [segment.nbytes, segment.crc32]
        _reseal(folder, lines)

    return damage


def _of_tensors(change: Callable[[dict[str, torch.Tensor], Dice], object]) -> Callable[[Path, Dice], None]:
    return _rewritten(lambda tensors, about, dice: change(tensors, dice))


def _of_another_shape(tensors: dict[str, torch.Tensor], dice: Dice) -> None:
    """Those with one axis, too."""
    flat = {name for name, tensor in tensors.items() if tensor.ndim < 2}
    if flat and dice.random() < 0.5:
        name = dice.choice(sorted(flat))
        tensors[name] = dice.choice([tensors[name][None], tensors[name][1:], tensors[name].repeat(2)]).contiguous()
        return
    rest = {name: tensor for name, tensor in tensors.items() if name not in flat}
    if rest:
        _reshaped(rest, dice)
        tensors.update(rest)


UNSEALED = {
    **{name: _in_a_segment(BYTES[name]) for name in ("a bit of a tensor turned", "a digit of the header")},
    **{name: _in_a_file(BYTES[name]) for name in ("a bit turned", "bytes emptied", "cut off", "longer", "bytes exchanged")},
    "a file missing": _file_missing,
    "files exchanged": _files_exchanged,
}
SEALED = {
    "the manifest edited": _manifest_edited,
    "the index edited": _index_edited,
    "names that lead away": _led_away,
    "what a segment says edited": _rewritten(lambda tensors, about, dice: _edit(about, dice) if about else None),
    "a tensor missing": _of_tensors(_missing),
    "a tensor misnamed": _of_tensors(_renamed),
    "a tensor of another shape": _of_tensors(_of_another_shape),
    "a tensor of another type": _of_tensors(_retyped),
    "tensors exchanged": _of_tensors(_exchanged),
    "a tensor of any bits": _of_tensors(_drawn),
}
# Many more edits can be thought of than of all else.
_OFTEN = ["what a segment says edited", "the index edited", "names that lead away"]
KINDS = [*UNSEALED, *SEALED, *["the manifest edited"] * 5, *_OFTEN * 2]


def contents(folder: Path, again: Path) -> tuple[list[KVCache], bytes]:
    """What a session holds: its caches, and all that is in them, in its blocks and in its start, as bytes."""
    session = Session.look(folder)
    caches, found = session.restore(), b""
    for latent, facts in session.finished():
        found += latent.contiguous().view(torch.uint8).numpy().tobytes() + json.dumps(facts).encode()
    for name, tensor in sorted(session.start().items()):
        found += name.encode("utf-8", "replace") + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    for cache in caches:
        save_cache(cache, again)
        found += again.read_bytes()
    return caches, found + replace(session.manifest, index_bytes=0, index_crc32="").text().encode("utf-8", "replace")


def tried(kind: str, folder: Path, whole: bytes, again: Path) -> tuple[str, str, float, float]:
    """(what became of it, what is wrong with that, seconds, megabytes) of one session."""
    became, said = "", ""

    def load() -> None:
        nonlocal became, said
        try:
            caches, found = contents(folder, again)
        except SessionError as error:
            became, said = "refused", str(error)
            return
        became = "whole" if found == whole else "changed"
        for cache in caches:
            use(cache)

    cost = watched(load, PATIENCE)
    no_sentence = became == "refused" and (not said.strip() or "\n" in said or len(said) > LETTERS)
    for condition, what in (
        (bool(cost.wrong), cost.wrong),
        (became == "changed" and kind in UNSEALED, "what is loaded is not what was saved, and nothing says so"),
        (no_sentence, f"no one sentence: {said[:LETTERS]!r}"),
        (not said.isprintable(), f"not fit for a terminal: {said[:LETTERS]!r}"),
        (cost.seconds > SECONDS, f"{cost.seconds:.0f} s of work"),
        (cost.megabytes > MEGABYTES, f"{cost.megabytes:.0f} MB"),
    ):
        if condition:
            return became, what, cost.seconds, cost.megabytes
    return became, "", cost.seconds, cost.megabytes


def _watch_files(away: list[str], folder: Path) -> None:
    """From now on note every file that is opened for a session and is not in `folder`."""

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and (OUTSIDE in arguments[0] or "passwd" in arguments[0]):
            away.append(arguments[0])

    (folder / OUTSIDE).mkdir()
    (folder / OUTSIDE / f"secret{ENDING}").write_bytes(b"secret")
    sys.addaudithook(heard)


def run(count: int, seed: int, folder: Path) -> tuple[Counter[str], int, float, float]:
    """So many sessions; every kind of damage and every session in turn. -> what became of them, how many are wrong, most
    seconds, most megabytes"""
    became, wrong, seconds, megabytes = Counter[str](), 0, 0.0, 0.0
    whole: dict[str, bytes] = {}
    for name, config in MADE.items():
        make(folder / name, config)
        whole[name] = contents(folder / name, folder / "again")[1]
    away: list[str] = []
    _watch_files(away, folder)
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        kind, name = KINDS[number % len(KINDS)], dice.choice(list(MADE))
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        shutil.copytree(folder / name, folder / "damaged")
        (UNSEALED | SEALED)[kind](folder / "damaged", dice)
        # Names in sentences are those of the folder, and what is whole is so under any name.
        end, complaint, took, held = tried(kind, folder / "damaged", whole[name], folder / "again")
        complaint = complaint or (f"opened {away[0]!r}" if away else "")
        away.clear()
        became[end] += 1
        seconds, megabytes = max(seconds, took), max(megabytes, held)
        if complaint:
            wrong += 1
            print(f"{number}: {kind} of {name}: {complaint}", file=sys.stderr)
    return became, wrong, seconds, megabytes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=5000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        became, wrong, seconds, megabytes = run(options.count, options.seed, Path(folder))
    kinds = len(UNSEALED) + len(SEALED)
    print(
        f"{options.count} sessions, {kinds} kinds of damage, seed {options.seed}: {became['refused']} refused "
        f"in a sentence, {became['whole']} opened as they were, {became['changed']} opened as they are now and were sealed anew, "
        f"{wrong} wrong; at most {seconds:.1f} s of work and {megabytes:.0f} MB for one"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
