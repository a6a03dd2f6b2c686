"""A plan: which targets, methods, prompts, seeds and lengths, read from TOML and checked once. Every wrong word in it is one
sentence before anything is made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from ..errors import ConfigError, quoted, shown
from .choices import Choice, chosen
from .defaults import BUILT_IN

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

METRICS = ("psnr", "ssim", "lpips", "vbench")
# A sign test of two cases can never say anything.
LEAST_SEEDS = 3
MOST_SEED = (1 << 40) - 1
FILES = ("workflow", "weights", "picture")
_SHARED = ("methods", "prompts", "seeds", "frames")
_PLAN_KEYS = ("name", "about", "metrics", "window_frames", "baseline", "exploratory", "targets", *_SHARED)
# What each kind of target may be told beside these, and what it must be.
KINDS: dict[str, tuple[str, ...]] = {
    "world": (),
    "film": (),
    "network": ("family", "weights", "width", "height"),
    "comfyui": (
        *("workflow", "cache_node", "prompt_input", "seed_inputs", "frames_input", "set", "given_frames"),
        *("picture", "picture_input"),
    ),
    "longcat": ("weights", "width", "height", "steps", "distilled"),
    "rehearsal": ("seconds",),
}


@dataclass(frozen=True)
class Target:
    """What videos are made by. `options` are those of its kind; `methods` by name, groups resolved."""

    name: str
    kind: str
    methods: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    frames: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A video that every method makes: all that it depends on beside the memory."""

    target: str
    prompt: str
    seed: int
    frames: int


@dataclass(frozen=True)
class StudyPlan:
    """Everything that is asked for. `baseline`: the method that the others are paired with; `window_frames`: of drift;
    `exploratory`: fewer than three seeds, which the page says."""

    name: str
    targets: tuple[Target, ...]
    about: str = ""
    metrics: tuple[str, ...] = METRICS
    window_frames: int = 12
    baseline: str = "exact"
    exploratory: bool = False

    def target(self, name: str) -> Target:
        """By its name."""
        return next(target for target in self.targets if target.name == name)

    def cases(self) -> list[tuple[Case, tuple[str, ...]]]:
        """Every video with its methods, the exact one first: one seed of everything, then the next, so that a run that is broken
        off has compared all methods on whole cases."""
        found = []
        for number in range(max(len(target.seeds) for target in self.targets)):
            for target in self.targets:
                for seed in target.seeds[number : number + 1]:
                    found += [
                        (Case(target.name, prompt, seed, frames), target.methods)
                        for frames in target.frames
                        for prompt in target.prompts
                    ]
        return found

    def videos(self) -> int:
        """How many are asked for."""
        return sum(len(methods) for _, methods in self.cases())

    def to_json(self) -> str:
        """What `from_json` reads."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> StudyPlan:
        """ValueError, KeyError, TypeError for what is not a plan of this version."""
        data = json.loads(text)
        tables = [
            {name: tuple(value) if isinstance(value, list) else value for name, value in each.items()} for each in data["targets"]
        ]
        targets = [Target(**cast(Any, table)) for table in tables]
        return StudyPlan(**{**data, "targets": tuple(targets), "metrics": tuple(data["metrics"])})


def load_plan(name: str) -> StudyPlan:
    """A built-in plan by its name, or one of a .toml or .json file. ConfigError, one sentence."""
    path = BUILT_IN.get(name, Path(name))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"plan {quoted(name)} cannot be read ({error.strerror}); give a .toml file, or one of {', '.join(BUILT_IN)}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"plan {quoted(name)} is not a text file; give a .toml file") from None
    return read_plan(_parsed(text, path), path.parent, path.stem)


def _parsed(text: str, path: Path) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"plan {shown(str(path))} is not JSON ({error}); mend it there") from None
    if tomllib is None:
        raise ConfigError("plans in TOML need Python 3.11 or newer; use that, or write the plan as .json with the same keys")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"plan {shown(str(path))} is not TOML ({error}); mend it there") from None


def read_plan(data: Any, folder: Path, name: str = "plan") -> StudyPlan:
    """A plan out of what TOML holds; `folder`: where relative files in it are. ConfigError."""
    if not isinstance(data, dict):
        raise ConfigError(f"a plan is {type(data).__name__}, but must be a table with {', '.join(_PLAN_KEYS)}")
    _only(data, _PLAN_KEYS, "the plan")
    tables = data.get("targets")
    if not isinstance(tables, list) or not tables or not all(isinstance(each, dict) for each in tables):
        raise ConfigError("the plan has no targets; add at least one [[targets]] with its kind")
    exploratory = _typed(data, "exploratory", bool, False)
    targets = tuple(_target(table, data, folder, _typed(table, "exploratory", bool, exploratory)) for table in tables)
    repeated = [each.name for each in targets if sum(other.name == each.name for other in targets) > 1]
    if repeated:
        raise ConfigError(f"two targets are called {quoted(repeated[0])}; give each a name of its own")
    metrics = tuple(_strings(data, "metrics", METRICS))
    for each in metrics:
        if each not in METRICS:
            raise ConfigError(f"metric {quoted(each)} is not known; use some of {', '.join(METRICS)}")
    baseline = _typed(data, "baseline", str, "exact")
    if not any(baseline in target.methods for target in targets):
        raise ConfigError(f"baseline {quoted(baseline)} is none of the plan's methods; add it to them, or name one of them")
    window = _typed(data, "window_frames", int, 12)
    if window < 1:
        raise ConfigError(f"window_frames is {window}, but drift needs windows of at least 1 frame; 12 is the default")
    return StudyPlan(
        _typed(data, "name", str, name), targets, _typed(data, "about", str, ""), metrics, window, baseline, exploratory
    )


def _target(table: Mapping[str, Any], plan: Mapping[str, Any], folder: Path, exploratory: bool) -> Target:
    kind = table.get("kind")
    if kind not in KINDS:
        raise ConfigError(f"target {quoted(kind)} is not known; kind is one of {', '.join(KINDS)}")
    _only(table, ("kind", "name", "exploratory", *_SHARED, *KINDS[kind]), f"target {kind}")
    asked = {name: table.get(name, plan.get(name)) for name in _SHARED}
    name = _typed(table, "name", str, kind)
    for key, value in asked.items():
        if value is None or value == []:
            raise ConfigError(f"target {quoted(name)} has no {key}; give them in the target, or in the plan for all")
    methods = chosen(_strings(asked, "methods", ()), kind)
    seeds, frames = (_whole(asked, key, least, most) for key, least, most in (("seeds", 0, MOST_SEED), ("frames", 2, 100_000)))
    if len(set(seeds)) < LEAST_SEEDS and not exploratory:
        raise ConfigError(
            f"target {quoted(name)} has {len(set(seeds))} seeds, but a comparison needs {LEAST_SEEDS} or more; add some, or set "
            "exploratory = true"
        )
    options = {key: _placed(key, table[key], folder) for key in KINDS[kind] if key in table}
    return Target(name, kind, _names(methods), tuple(_strings(asked, "prompts", ())), seeds, frames, options)


def _names(methods: Iterable[Choice]) -> tuple[str, ...]:
    """The exact one first: the others are compared with it."""
    return tuple(dict.fromkeys(["exact", *(method.name for method in methods)]))


def _placed(key: str, value: Any, folder: Path) -> Any:
    """Files beside the plan are found wherever the command is run."""
    if key in FILES and isinstance(value, str) and not Path(value).is_absolute():
        beside = folder / value
        return str(beside.resolve() if beside.exists() else value)
    return value


def _only(table: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{what} has a key {quoted(key)}, but its keys are {', '.join(known)}; mend or remove it")


def _typed(table: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = table.get(key, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{key} is {quoted(value)}, but must be {kind.__name__}; mend it in the plan")
    return value


def _strings(table: Mapping[str, Any], key: str, default: Sequence[str]) -> list[str]:
    value = table.get(key, list(default))
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) and each.strip() for each in value):
        raise ConfigError(f"{key} is {quoted(value)}, but must be a list of texts; mend it in the plan")
    return list(dict.fromkeys(value))


def _whole(table: Mapping[str, Any], key: str, least: int, most: int) -> tuple[int, ...]:
    value = table[key]
    value = [value] if isinstance(value, int) else value
    good = isinstance(value, list | tuple) and all(type(each) is int and least <= each <= most for each in value)
    if not good:
        raise ConfigError(f"{key} is {quoted(value)}, but must be whole numbers from {least} to {most}; mend it in the plan")
    return tuple(dict.fromkeys(value))
