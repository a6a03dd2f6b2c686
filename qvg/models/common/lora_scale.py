"""By how much a LoRA is scaled: alpha / rank, of which trainers write alpha in many places.

kohya's beside each layer; PEFT's and Diffusers' in the metadata (`lora_alpha` and `r`, alone, behind a network's name, or in
JSON) or in an adapter_config.json beside the file; others' in the dictionary that was pickled. Without any it is the rank, as
ComfyUI has it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .tensor_names import shown, some

CONFIG = "adapter_config.json"
_IN_METADATA = "lora_adapter_metadata"  # Diffusers' key for the same
_ALPHA = ("lora_alpha", "ss_network_alpha", "network_alpha")
_RANK = ("r", "lora_rank", "ss_network_dim", "network_dim", "rank")
_STABLE, _ALPHAS, _RANKS = "use_rslora", "alpha_pattern", "rank_pattern"
# Means other things elsewhere, in an optimizer's or a merge's record; of a LoRA, if it stands alone with a rank.
_BARE_ALPHA = "alpha"
# A trainer's process has such a rank, too.
_BARE_RANK = "rank"
_NOT_THE_MODEL = ("text_encoder", "critic", "discriminator", "fake_score", "optim", "scheduler")
_OTHER_JSON = ("ss_network_args", "ss_tag_frequency", "ss_bucket_info", "ss_dataset_dirs", "ss_datasets")
_MOST_LETTERS = 1_000_000
_MOST_SHORT = 1000  # letters of a text that may be read more than once
_MOST_LEVELS, _MOST_ENTRIES = 5, 10_000
_WEIGHT_ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True)
class Record:
    """What one place, `where`, says of one network: `facts` by the trainer's words. `of`: the network's name there, often none.
    `broken`: it is there and cannot be read."""

    where: str
    of: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    broken: bool = False

    def alphas(self) -> Iterator[tuple[str, Any]]:
        """Its words for alpha, with the network's name, and what it says."""
        for word in (*_ALPHA, _BARE_ALPHA):
            if word in self.facts:
                yield (f"{shown(self.of, 30)}.{word}" if self.of else word), self.facts[word]

    def alpha(self, layer: str) -> float | None:
        """Of one layer."""
        special = _of_layer(self.facts.get(_ALPHAS), layer)
        return special or next((number for _, value in self.alphas() if (number := _number(value))), None)

    def rank(self, layer: str) -> float | None:
        """Of one layer."""
        special = _of_layer(self.facts.get(_RANKS), layer)
        return special or next((number for word in _RANK if (number := _number(self.facts.get(word)))), None)

    @property
    def stable(self) -> bool:
        """Whether alpha is divided by the root of the rank (rsLoRA)."""
        value = self.facts.get(_STABLE)
        return value is True or (isinstance(value, str) and value.strip().lower() in ("true", "1"))


@dataclass(frozen=True)
class Scales:
    """Of every layer, and what is to be said of them."""

    by_layer: dict[str, float]
    remarks: tuple[str, ...] = ()


def records_of(metadata: Mapping[str, str], pickled: Mapping[Any, Any], path: Path) -> list[Record]:
    """What the file's metadata, a trainer's dictionary around its tensors, and PEFT's file beside it say, in this order."""
    found = _records("its metadata", metadata)
    if _IN_METADATA in metadata and _json(metadata[_IN_METADATA]) is None:
        found.append(Record(f"{_IN_METADATA} in its metadata", broken=True))
    found += [record for record in _records("its own record", pickled, pickled=True) if record.facts]
    config = _beside(path)
    if config is not None:
        where = f"the {CONFIG} beside it"
        parsed = _json(config)
        found += _records(where, parsed) if isinstance(parsed, dict) else [Record(where, broken=True)]
    return found


def scales(ranks: Mapping[str, int], own: Mapping[str, float], records: Iterable[Record], word: str = "") -> Scales:
    """ranks: rows of each layer's matrices; own: the alpha that stands beside a layer; word: what the layers' names begin with,
    which tells whose record is meant. An alpha beside a layer counts most; where places contradict each other, a remark says
    which was taken."""
    records = sorted(records, key=lambda record: (bool(record.of) and record.of != word, record.of != word))
    chosen, remarks = _chosen(records)
    alphas = {layer: own.get(layer, (chosen and chosen.alpha(layer)) or float(rank)) for layer, rank in ranks.items()}
    by_layer = {layer: alphas[layer] / rank for layer, rank in ranks.items()}
    if chosen is not None and chosen.stable:
        by_layer |= {layer: alphas[layer] / math.sqrt(rank) for layer, rank in ranks.items() if layer not in own}
    rest = {layer: rank for layer, rank in ranks.items() if layer not in own}
    said = [*remarks, *_about_exceptions(chosen, rest), *_about_ranks(chosen, rest, by_layer)] if rest else []
    return Scales(by_layer, (*_about_own(chosen, own), *said))


def _chosen(records: Iterable[Record]) -> tuple[Record | None, list[str]]:
    """The first that has an alpha; and what others, or it itself, say otherwise."""
    chosen: tuple[Record, str, float] | None = None
    others, unread, broken = [], [], []
    for record in records:
        broken += [record.where] if record.broken else []
        for name, text in record.alphas():
            value = _number(text)
            if value is None:
                unread.append(f"{name} {shown(str(text), 20)} in {record.where}")
            elif chosen is None:
                chosen = (record, name, value)
            elif value != chosen[2]:
                others.append(f"{name} {value:g} in {record.where}")
    if chosen is None:
        remarks = [f"says {some(unread)}, which is no number to scale it by; it was taken at scale 1"] if unread else []
        return None, [*remarks, *(f"has {where}, which cannot be read; it was taken at scale 1" for where in broken)]
    record, name, value = chosen
    taken = f"says {name} {value:g} in {record.where}, and {some(others)}; {value:g} was taken"
    return record, [taken] if others else []


def _about_own(record: Record | None, own: Mapping[str, float]) -> Iterator[str]:
    said = {layer: record.alpha(layer) for layer in own} if record is not None else {}
    if record is None or not own or any(math.isclose(own[layer], alpha or 0, rel_tol=1e-3) for layer, alpha in said.items()):
        return
    layer = next(iter(own))
    yield f"says alpha {said[layer]:g} in {record.where}, and {own[layer]:g} beside its layers; that beside the layers was taken"


def _about_exceptions(record: Record | None, ranks: Mapping[str, int]) -> Iterator[str]:
    """PEFT takes regular expressions, too, which could take for ever here."""
    pattern = record.facts.get(_ALPHAS) if record is not None else None
    if record is None or not isinstance(pattern, dict):
        return
    others = {*pattern}.difference(*(_exceptions(pattern, layer) for layer in ranks))
    if others:
        yield (
            f"says another alpha for {some(sorted(map(str, others)))} in {record.where}, and has no layer of such a name; layers "
            "that are meant by it have the alpha of all others"
        )


def _about_ranks(record: Record | None, ranks: Mapping[str, int], by_layer: Mapping[str, float]) -> Iterator[str]:
    """Of the first layer whose matrices have another rank than is said."""
    for layer, rank in ranks.items() if record is not None else ():
        assert record is not None
        wanted = record.rank(layer)
        if wanted is not None and wanted != rank:
            yield (
                f"says rank {wanted:g} in {record.where}, and the matrices of {shown(layer)} have rank {rank}; alpha was divided "
                f"by that of the matrices, which makes a scale of {by_layer[layer]:.4g}"
            )
            return


def _of_layer(pattern: Any, layer: str) -> float | None:
    """Of PEFT's exceptions by layer, the first that this layer is."""
    found = _exceptions(pattern, layer)
    if len(found) < 2:
        return _number(pattern[found[0]]) if found else None
    return _number(next(value for name, value in pattern.items() if name in found))


def _exceptions(pattern: Any, layer: str) -> list[str]:
    """Those that a layer is: ends of its name, or, with ^ in front, its whole name in the network. The ends are looked up, as
    there may be as many exceptions as layers."""
    if not isinstance(pattern, dict):
        return []
    words, found = layer.split("."), list[str]()
    for at in range(len(words)):
        fronts = ("", "^") if at == 0 or words[at - 1].endswith("model") else ("",)
        names = (f"{front}{'.'.join(words[at:])}{back}" for front in fronts for back in ("", "$"))
        found += [name for name in names if name in pattern]
    return found


def _number(value: Any) -> float | None:
    """Above 0, as an alpha and a rank are; kohya's trainers write 0 and None for "as the rank"."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _records(where: str, content: Mapping[Any, Any], pickled: bool = False) -> list[Record]:
    groups: dict[str, dict[str, Any]] = {}
    for of, word, value in _entries(content, "", 0, set()):
        groups.setdefault(of, {})[word] = value
    found = []
    for of, facts in sorted(groups.items()):  # metadata has no order of its own
        known = any(word in facts for word in _ALPHA)
        alone = not of and not pickled and _BARE_ALPHA in facts and any(word in facts for word in _RANK)
        if (known or alone) and not any(word in of.lower() for word in _NOT_THE_MODEL):
            left_out = {_BARE_ALPHA if known else "", _BARE_RANK if pickled else ""}
            found.append(Record(where, of, {word: value for word, value in facts.items() if word not in left_out}))
    return found


def _entries(content: Mapping[Any, Any], of: str, level: int, seen: set[int]) -> Iterator[tuple[str, str, Any]]:
    """(network, word, value) of what is said of LoRAs, at any depth, JSON in texts included. A dictionary in a pickle may hold
    itself."""
    seen.add(id(content))
    for count, (key, value) in enumerate(content.items()):
        if count == _MOST_ENTRIES:
            return
        if not isinstance(key, str) or len(key) > 1000 or key in _OTHER_JSON:
            continue
        inner, _, word = f"{of}.{key}".strip(".").rpartition(".")
        parsed = value
        if isinstance(value, str):
            if len(value) > _MOST_SHORT and id(value) in seen:
                continue
            seen.add(id(value))
            parsed = _json(value)
        if word in (*_ALPHA, _BARE_ALPHA, *_RANK, _STABLE, _ALPHAS, _RANKS):
            yield inner, word, value if parsed is None else parsed
        elif isinstance(parsed, dict) and level < _MOST_LEVELS:
            # A text in JSON is about the file that it is in; a dictionary about what it is called.
            if isinstance(value, str):
                yield from _entries(parsed, of, level + 1, set())
            elif id(parsed) not in seen:
                yield from _entries(parsed, f"{of}.{key}".strip("."), level + 1, seen)


def _json(text: str) -> Any:
    """None: none that can be read."""
    if len(text) > _MOST_LETTERS or not text.lstrip().startswith("{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _beside(path: Path) -> str | None:
    """The text of PEFT's configuration, where it can be of no other file."""
    config = path.with_name(CONFIG)
    try:
        if not config.is_file():
            return None
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MOST_ENTRIES), strict=False)]
        weights = [name for name in names if name.lower().endswith(_WEIGHT_ENDINGS)]
        if path.stem != "adapter_model" and weights != [path.name]:
            return None
        with config.open(encoding="utf-8-sig", errors="replace") as file:
            return file.read(_MOST_LETTERS)
    except OSError:
        return None
