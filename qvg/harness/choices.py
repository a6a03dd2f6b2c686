"""Methods by the names that plans, rows and pages use, and what a target does with each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..bench.judge import Settings
from ..bench.methods import EQUAL, METHODS, in_form
from ..bench.methods import SHIPPED as SHIPPED_METHODS
from ..config import PRESETS, QVGConfig
from ..demo.memories import EXACT
from ..errors import ConfigError, quoted
from ..study.registry import STUDY
from ..study.run import StudyRun

PUBLISHED = " (published)"
# With the exact frames that QVG KV Cache gives to methods which do not decide themselves what is exact.
NODE = " (node)"
_LIBRARY_ONLY = "runs in the library only"


@dataclass(frozen=True)
class Choice:
    """A method. `node`: the widgets of QVG KV Cache that set it, or None where that node has no such method."""

    name: str
    family: str
    settings: Settings
    node: dict[str, Any] | None

    @property
    def published(self) -> bool:
        """Whether it is run as its authors run it."""
        return isinstance(self.settings, StudyRun) and self.settings.published

    @property
    def reuses(self) -> bool:
        """Whether it changes the denoiser beside the memory."""
        return isinstance(self.settings, StudyRun) and self.settings.method.reuse

    def refusal(self, kind: str) -> str:
        """Why a kind of target cannot run it; "" where it can."""
        if self.reuses and kind != "world":
            return f"{self.name} changes the denoiser, which only the demo world lets it; leave it out"
        if kind == "comfyui" and self.node is None:
            return f"{self.name} {_LIBRARY_ONLY}, and QVG KV Cache cannot set it; leave it out"
        return ""


@cache
def choices() -> dict[str, Choice]:
    """All of them by name."""
    found = [Choice("exact", "exact", EXACT, {"cache": "exact"})]
    found += [Choice(method.name, _family(method.config), method.config, _node(method.name)) for method in METHODS]
    for method in STUDY:
        if method.name == "BF16":  # that is "exact"
            continue
        family = _study_family(method.name)
        menu = None if method.reuse else {"cache": "study", "cache.method": method.name}
        found.append(Choice(method.name, family, StudyRun(method), menu))
        found.append(Choice(method.name + PUBLISHED, family, StudyRun(method, published=True), None))
    known = {choice.name: choice for choice in found}
    known |= {method.name: Choice(method.name, _family(method.config), method.config, None) for method in EQUAL}
    for method in STUDY:
        settings = in_form(method, "node")
        if isinstance(settings, QVGConfig) and method.name in known:
            name = method.name + NODE
            known[name] = Choice(name, _study_family(method.name), settings, known[method.name].node)
    return known


def _family(config: QVGConfig) -> str:
    return {"none": "exact", "klt": "klt (ours)", "qvg": "Quant VideoGen"}.get(config.codec, "baselines")


def _study_family(name: str) -> str:
    """As the study sorts its rows."""
    ours = ("RTN", "KIVI", "QUAROT", "PRQ", "QAQ", "AGE_TIER", "TPTQ", "FLOWCACHE", "SPATIAL_MIXED")
    return next(family for family in ours if name.startswith(family))


def _node(name: str) -> dict[str, Any] | None:
    if name in PRESETS:
        return {"cache": "preset", "cache.preset": name}
    if name in {method.name for method in SHIPPED_METHODS}:
        return {"cache": "study", "cache.method": name}
    return None


def groups() -> dict[str, list[str]]:
    """Names of several methods at once."""
    known = choices()
    study = [method.name for method in STUDY if method.name != "BF16"]
    return {
        "@presets": [name for name in PRESETS if name in known],
        "@study": study,
        "@published": [name + PUBLISHED for name in study],
        "@node": [name + NODE for name in study if name + NODE in choices()],
        "@shipped": [method.name for method in SHIPPED_METHODS],
        "@equal": [method.name for method in EQUAL],
        "@bench": [method.name for method in METHODS],
    }


def chosen(names: Sequence[str], kind: str) -> list[Choice]:
    """Methods of a plan. Of a group those that the target cannot run are left out; one that is named and cannot is a
    ConfigError, as is a name that is not known."""
    known, several = choices(), groups()
    found: list[Choice] = []
    for name in names:
        if name in several:
            found += [known[each] for each in several[name] if not known[each].refusal(kind)]
            continue
        if name not in known:
            raise ConfigError(f"method {quoted(name)} is not known; use {', '.join(several)}, or some of: {'; '.join(known)}")
        if refusal := known[name].refusal(kind):
            raise ConfigError(f"target {kind}: {refusal}")
        found.append(known[name])
    return found
