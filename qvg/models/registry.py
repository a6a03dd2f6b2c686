"""The families that the pack knows, and what is asked of all of them. A new family is a folder and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UnsupportedModelError
from .common.checkpoint import CausalCheckpoint
from .common.found import AUTO, Members
from .common.shape import NetworkShape
from .common.variants import CausalVariant
from .common.weight_files import WeightFile, open_weights
from .demo_film.family import FAMILY as DEMO_FILM
from .demo_world.family import FAMILY as DEMO_WORLD
from .dreamx.family import FAMILY as DREAMX
from .family import Family, FileFormat, ReadOptions, WorldRule
from .krea.family import FAMILY as KREA
from .longcat.family import FAMILY as LONGCAT
from .longlive2.family import FAMILY as LONGLIVE2
from .wan.family import FAMILY as WAN
from .worldplay_hunyuan.family import FAMILY as WORLDPLAY_HUNYUAN
from .worldplay_wan.family import FAMILY as WORLDPLAY_WAN

# In the order of menus and tables.
_FAMILIES: list[Family] = [WAN, KREA, LONGLIVE2, WORLDPLAY_WAN, WORLDPLAY_HUNYUAN, DREAMX, LONGCAT, DEMO_WORLD, DEMO_FILM]


def families() -> tuple[Family, ...]:
    """All of them."""
    return tuple(_FAMILIES)


@contextmanager
def registered(family: Family) -> Iterator[None]:
    """One family more, for as long as the block lasts."""
    _FAMILIES.append(family)
    try:
        yield
    finally:
        _FAMILIES.remove(family)


def networks() -> dict[str, NetworkShape]:
    """Shapes that can be planned for, by name."""
    return {name: shape for family in _FAMILIES for name, shape in family.networks.items()}


def variants() -> dict[str, CausalVariant]:
    """Of all files that can be read, by name."""
    return {name: variant for family in _FAMILIES if family.files for name, variant in family.variants.items()}


def loaded_with(node: str) -> tuple[Family, ...]:
    """Families that this node loads."""
    return tuple(family for family in _FAMILIES if family.load_with == node)


def memories() -> dict[str, WorldRule]:
    """Of worlds, by the names of their networks."""
    return {name: family.memory for family in _FAMILIES if family.memory for name in family.networks}


def worlds() -> list[tuple[Family, WorldRule]]:
    """Families that are walked through, and how."""
    return [(family, family.memory) for family in _FAMILIES if family.memory]


def by_world(say: Callable[[WorldRule], str]) -> str:
    """What differs from world to world, for people: "1280 x 704 (HY-WorldPlay 5B) or 832 x 480 (HY-WorldPlay 8B)"."""
    return joined([f"{say(rule)} ({family.title})" for family, rule in worlds()], "or")


def loaders(wanted: Callable[[Family], bool] = lambda family: True) -> list[str]:
    """Display names of the nodes that load such families."""
    return list(dict.fromkeys(family.load_with for family in _FAMILIES if family.load_with and wanted(family)))


def titles(node: str) -> str:
    """What this node loads, for people."""
    return joined([family.title for family in loaded_with(node)])


def trained_blocks(node: str) -> str:
    """Latent frames that members of what this node loads make together: "3 for self-forcing and longlive, 1 for ..."."""
    known = [variant for family in loaded_with(node) for variant in family.variants.values()]
    counts = dict.fromkeys(variant.frames_per_block for variant in known)
    return ", ".join(f"{count} for {joined([each.name for each in known if each.frames_per_block == count])}" for count in counts)


def models_that_work() -> str:
    """Families that run in ComfyUI, and the node that loads each: the end of a refusal."""
    listed = [f"{titles(node)} (node '{node}')" for node in loaders()]
    return f"Models that work: {', '.join(listed[:-1])}, and {listed[-1]}."


def joined(names: list[str], word: str = "and") -> str:
    """A list in a sentence."""
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def format_of(file: WeightFile, node: str | None = None) -> FileFormat:
    """The format of a file, among those that `node` loads. Raises UnsupportedModelError for a file that another node loads, and
    for one that lacks the layers of a model; of others the first says best, when it reads them, what they are."""
    formats = _formats(lambda family: node is None or family.load_with == node)
    found = next((each for each in formats if each.recognise(file)), None)
    if found is not None:
        return found
    other = next((each for each in _formats(lambda family: family.load_with != node) if node and each.recognise(file)), None)
    if other is not None:
        sharing = [family for family in _FAMILIES if family.files is other]
        whose = joined([family.title for family in sharing], "or")
        raise UnsupportedModelError(f"{file.path.name} has the network of {whose}; load it with '{sharing[0].load_with}'")
    lacks = next((what for each in formats if (what := each.lacks(file))), None)
    if lacks is not None:
        raise UnsupportedModelError(f"{file.path.name} is {lacks}")
    return formats[0]


def read(
    source: Path | WeightFile, variant: str = AUTO, weights: str = AUTO, has_lora: bool = False, node: str | None = None
) -> tuple[Family, CausalCheckpoint]:
    """The model in a file, and its family; of a causal file that does not say which member it is, the first that has such files.
    Raises ConfigError and UnsupportedModelError."""
    file = source if isinstance(source, WeightFile) else open_weights(_file_of(source))
    known = format_of(file, node)
    checkpoint = known.read(file, ReadOptions(members_of(known), variant, weights, has_lora))
    sharing = [family for family in _FAMILIES if family.files is known]
    named = checkpoint.variant.name if checkpoint.variant else None
    return next((family for family in sharing if named in family.variants), sharing[0]), checkpoint


def _file_of(source: Path) -> Path:
    """What a folder that is a model's release is opened by; anything else as it is."""
    if not source.is_dir():
        return source
    return next((path for each in _formats(lambda family: True) if (path := each.in_folder(source))), source)


def members_of(files: FileFormat) -> Members:
    """Variants whose files have this format. A later family's names are more telling than an earlier one's."""
    sharing = [family for family in _FAMILIES if family.files is files]
    named = tuple(pair for family in reversed(sharing) for pair in family.names)
    return Members({name: variant for family in sharing for name, variant in family.variants.items()}, named)


def _formats(wanted: Callable[[Family], bool]) -> list[FileFormat]:
    formats: list[FileFormat] = []
    for family in filter(wanted, _FAMILIES):
        if family.files is not None and family.files not in formats:
            formats.append(family.files)
    return formats
