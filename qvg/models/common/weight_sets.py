"""Sets of weights in a file, and which of them to take: trainers save several networks, averaged ones (EMA) and optimizers
together, in dictionaries or with words in front of flat names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...errors import ConfigError, UnsupportedModelError, quoted
from .found import AUTO
from .pickles import Thing
from .strangers import LORA
from .tensor_names import plain_name, shown, some, without_wrappers
from .weight_files import MOST_WRAPPINGS, WeightFile, named_tensors

GENERATOR, AVERAGED = "generator", "generator_ema"
WEIGHTS = (GENERATOR, AVERAGED)
# Label of the only set of weights in a file.
PLAIN = ""
_MOST_DICTIONARIES = 1000
_MOST_PREFIXES = 50
_MOST_AVERAGES = 4
# Words that say only that a model follows.
_NEUTRAL = {
    *("state_dict", "model_state_dict", "model", "module", "diffusion_model", "net", "network", "transformer", "dit", "unet"),
    *("pipe", "pipeline", "backbone", "student", "weights", "params", "denoiser", "wan", "base_model", "model_state"),
}
_OF_TRAINING = re.compile(
    r"(?<![a-z])(critic|optimi[sz]ers?|optim|exp_avg|exp_avg_sq|momentum|grads?|teacher|discriminator|disc|fake|real|guidance_model"
    r"|text_encoders?|vae|first_stage_model|cond_stage_model|schedulers?|accum)(?![a-z])"
)
_EMA = re.compile(r"(?<![a-z])(ema|averaged?|avg|swa|shadow|polyak)(?![a-z])")


@dataclass(frozen=True)
class WeightSet:
    """`label` tells it from the others of its file, "" where it is the only one. `tensors` have lost what stood in front of their
    names: `prefix`, of which nobody is known to put `unknown` there. `averaged`: an average over training's steps (EMA)."""

    label: str
    tensors: dict[str, Tensor]
    prefix: str = ""
    unknown: str = ""
    averaged: bool = False


@dataclass(frozen=True)
class WeightSets:
    """All of a file's. `remarks` say what else there is that a user must know of."""

    sets: tuple[WeightSet, ...]
    remarks: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Of those that have one."""
        return [each.label for each in self.sets if each.label != PLAIN]

    @property
    def first(self) -> WeightSet:
        """There is always one."""
        return self.sets[0]


def weight_sets(file: WeightFile, anchors: Sequence[str]) -> WeightSets:
    """Sets of weights of a network that has tensors called `anchors`; where there are none, the first tensors by name that are no
    part of training, whatever they are. UnsupportedModelError: there are no such tensors, or names stand for two tensors."""
    found: list[tuple[tuple[str, ...], WeightSet]] = []
    others: list[dict[str, Tensor]] = []
    loras: list[str] = []
    of_training: list[str] = []
    for path, tensors in _dictionaries(file):
        clean = _clean(tensors, file.path.name)
        parts = _parts(clean, anchors)
        beside = [name for name in clean if LORA.search(name) and not any(name.startswith(prefix) for prefix in parts)]
        loras += [".".join(path) or beside[0]] if beside else []
        for prefix, part in parts.items():
            if _OF_TRAINING.search(prefix.lower()):
                of_training.append(prefix)
            else:
                found.append(((*path, *_words(prefix)), WeightSet("", part, prefix)))
        found += [((*path, prefix), WeightSet("", part, prefix)) for prefix, part in _without_dots(clean, parts)]
        if not parts:
            others.append({plain_name(name): tensor for name, tensor in clean.items()})
    if not found:
        if not others:
            raise _no_weights(file, of_training)
        return WeightSets((WeightSet(PLAIN, others[0]),))
    remarks = [f"a LoRA in it ({some(loras)}) was left out; give it as LoRA, if it belongs to the model"] if loras else []
    read = {path[0] for path, _ in found if path}
    nameless = [name for name, each in file.content.items() if _is_averages(name, each) and name not in read]
    if nameless:
        remarks.append(f"an average of its weights ({some(nameless)}) has no names of this network and was left out")
    return WeightSets(_labelled(found), tuple(remarks))


def choose_set(file_name: str, found: WeightSets, wanted: str, released: str, whose: str) -> tuple[WeightSet, list[str]]:
    """Which to take, and what is to be said of that. `released`: which of the two `whose` authors release.

    ConfigError: `wanted` is not there. UnsupportedModelError: nothing tells which of several is the model.
    """
    if wanted not in (AUTO, *WEIGHTS):
        raise ConfigError(f"weights is {quoted(wanted)}; choose {AUTO}, {' or '.join(WEIGHTS)}")
    sets, said = found.sets, list(found.remarks)
    if not found.labels and len(sets) == 1:
        # Repackaged: somebody has chosen before.
        if wanted != AUTO:
            said.append(f"{file_name} has one set of weights, so the choice of {wanted} means nothing")
        return sets[0], [*said, *_of_prefix(sets[0])]
    asked = released if wanted == AUTO else wanted
    pool = [each for each in sets if each.averaged == (asked == AVERAGED)]
    why = f", which is what {whose} releases" if pool and wanted == AUTO else ""
    if not pool:
        if wanted != AUTO:
            raise ConfigError(f"{file_name} has no {wanted}; it has {some(found.labels)}: choose that, or {AUTO}")
        said.append(f"{released} is what {whose} releases, and {file_name} has {some(found.labels)} alone")
        pool = list(sets)
    pool = [each for each in pool if each.label == asked] or [each for each in pool if each.label in WEIGHTS] or pool
    if len(pool) > 1:
        raise _undecided(file_name, pool)
    (chosen,) = pool
    left = [each.label or "weights without a name" for each in sets if each is not chosen]
    if left:
        were = "was" if len(left) == 1 else "were"
        said.append(f"{chosen.label or 'its plain weights'} was taken{why}; {some(left)} in the same file {were} left out")
    return chosen, [*said, *_of_prefix(chosen)]


def _of_prefix(chosen: WeightSet) -> list[str]:
    if not chosen.unknown:
        return []
    return [
        f"its names begin with {shown(chosen.prefix)!r}, which no trainer that QVG knows puts there; what follows is the model"
    ]


def _undecided(file_name: str, pool: Sequence[WeightSet]) -> UnsupportedModelError:
    if len({each.label for each in pool} - {PLAIN}) < len(pool):
        ways = some(f"{each.prefix or 'nothing'} in front" for each in pool)
        return UnsupportedModelError(
            f"{file_name} names its weights twice, wrapped and plain ({ways}), and nothing says which are meant; use the file as "
            "it was published"
        )
    labels = some((each.label for each in pool), 6)
    return UnsupportedModelError(
        f"{file_name} has {len(pool)} sets of weights of this network ({labels}) and nothing says which "
        "is the model; save the one that is to a file of its own"
    )


def _dictionaries(file: WeightFile) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Dictionaries of tensors in the file, outer ones first, each once, and the names on the way to them."""
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), file.content)]
    seen: set[int] = set()
    for _ in range(MOST_WRAPPINGS + 1):
        inner = []
        for path, content in level:
            if id(content) in seen or len(seen) > _MOST_DICTIONARIES:
                continue
            seen.add(id(content))
            tensors = named_tensors(content)
            if tensors:
                yield path, tensors
            inner += [((*path, name), each) for name, each in content.items() if _may_hold_a_model(name, each)]
        level = inner


def _is_averages(name: Any, content: Any) -> bool:
    return isinstance(name, str) and isinstance(content, (dict, list)) and bool(content) and bool(_EMA.search(name.lower()))


def _may_hold_a_model(name: Any, content: Any) -> bool:
    is_network = isinstance(content, Thing) and "_modules" in content  # as an object: its parts have no whole names
    return isinstance(name, str) and isinstance(content, dict) and not is_network and not _OF_TRAINING.search(name.lower())


def _no_weights(file: WeightFile, of_training: Sequence[str]) -> UnsupportedModelError:
    depth, content, seen = 0, file.content, set[int]()
    while id(content) not in seen and (inside := next((each for each in content.values() if isinstance(each, dict)), None)):
        seen.add(id(content))
        depth, content = depth + 1, inside
    if {"state", "param_groups"} <= file.content.keys():
        return UnsupportedModelError(f"{file.path.name} holds an optimizer's state and no model; give the checkpoint beside it")
    objects = [each.kind for each in file.content.values() if isinstance(each, Thing) and "_modules" in each]
    if objects:
        return UnsupportedModelError(
            f"{file.path.name} holds {some(objects)} as an object, not weights by name; save its state_dict() where it was made"
        )
    if depth > MOST_WRAPPINGS or id(content) in seen:
        return UnsupportedModelError(
            f"{file.path.name} has more than {MOST_WRAPPINGS} dictionaries in one another, or one in itself, and no weights on "
            f"the way; a checkpoint has {' or '.join(WEIGHTS)}, or its tensors by name"
        )
    listed = some(of_training or file.content, 6) or "nothing at all"
    return UnsupportedModelError(
        f"{file.path.name} holds no weights that are known ({listed}); a checkpoint has "
        f"{' or '.join(WEIGHTS)}, or its tensors by name"
    )


def _clean(tensors: Mapping[str, Tensor], file_name: str) -> dict[str, Tensor]:
    clean = {without_wrappers(name): tensor for name, tensor in tensors.items()}
    if len(clean) != len(tensors):
        raise UnsupportedModelError(
            f"{file_name} names some weights twice, wrapped and plain, and nothing says which are meant; use the file as it was "
            "published"
        )
    return clean


def _parts(tensors: Mapping[str, Tensor], anchors: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Tensors of flat names by what stands in front of an anchor, and without that."""
    prefixes = dict.fromkeys(
        name.removesuffix(anchor) for name in tensors for anchor in anchors if name == anchor or name.endswith(f".{anchor}")
    )
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in list(prefixes)[:_MOST_PREFIXES]}
    for name, tensor in tensors.items():
        at = len(name)
        # The longest that this name begins with.
        while at and name[:at] not in parts:
            at = name.rfind(".", 0, at - 1) + 1
        if name[:at] in parts:
            parts[name[:at]][name[at:]] = tensor
    return parts


def _without_dots(
    tensors: Mapping[str, Tensor], parts: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Averages as CompVis' LitEma keeps them: `model_ema.` and a name of which it has taken the dots."""
    candidates: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        word, _, rest = name.partition(".")
        if rest and "." not in rest and _EMA.search(word.lower()):
            candidates.setdefault(word, {})[rest] = tensor
    for before, averages in list(candidates.items())[:_MOST_AVERAGES]:
        for prefix, part in parts.items():
            words = _words(prefix)[-MOST_WRAPPINGS:]
            for inner in ("".join(words[at:]) for at in range(len(words) + 1)):
                plain = {inner + name.replace(".", ""): name for name in part}
                whole = {plain[name]: tensor for name, tensor in averages.items() if name in plain}
                if len(whole) == len(part):
                    yield before, whole


def _words(prefix: str) -> list[str]:
    return [word for word in prefix.split(".") if word]


def _labelled(found: Sequence[tuple[tuple[str, ...], WeightSet]]) -> tuple[WeightSet, ...]:
    telling = [".".join(word for word in words if word not in _NEUTRAL) for words, _ in found]
    if len(found) > 1:
        telling = [label or ".".join(words) for label, (words, _) in zip(telling, found, strict=True)]
    made = []
    for (words, each), label in zip(found, telling, strict=True):
        known = len(found) > 1 or GENERATOR in label or bool(_EMA.search(label.lower()))
        flat = [word for word in _words(each.prefix) if word not in {*_NEUTRAL, *WEIGHTS} and not _EMA.search(word.lower())]
        averaged = bool(_EMA.search(".".join(words).lower()))
        made.append(replace(each, label=label if known else PLAIN, unknown=".".join(flat), averaged=averaged))
    return tuple(made)
