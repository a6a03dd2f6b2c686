"""LongLive 2.0 out of the files that people have it in. Its tensors are an ordinary Wan 2.2 5B's: its name tells it, our mark, or
that its trainer's words stand around them."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import UnsupportedModelError
from ..common.checkpoint import CausalCheckpoint
from ..common.found import AUTO, METADATA_KEY, Found
from ..common.shards import whole_name
from ..common.weight_files import WeightFile
from ..common.weight_sets import WEIGHTS
from ..family import ReadOptions
from ..wan.checkpoint import sets_of
from ..wan.layout import chosen_variant, read_layout
from ..wan.layouts import WanLayout
from .network import CHANNELS
from .variants import LONGLIVE2, NAMES, VARIANTS

LAYOUT = WanLayout("LongLive 2.0 5B", "get model_bf16.pt of Efficient-Large-Model/LongLive-2.0-5B", CHANNELS, CHANNELS)
# Layers of others on the same network.
_OTHERS = re.compile(r"\.o_prope\.|\.to_out_prope\.|action_embed|\.cam_self_attn\.|^control_adapter\.")


def is_longlive2(file: WeightFile) -> bool:
    """Whether these are a Wan 2.2 5B without layers of its own that something says is LongLive 2.0."""
    try:
        sets = [each for each in sets_of(file).sets if LAYOUT.matches(each.tensors)]
    except UnsupportedModelError:
        return False
    if not sets or any(_OTHERS.search(name) for each in sets for name in each.tensors):
        return False
    return file.metadata.get(METADATA_KEY) in VARIANTS or bool(_named(file.path)) or any(each.label in WEIGHTS for each in sets)


def read_longlive2(file: WeightFile, options: ReadOptions) -> CausalCheckpoint:
    """See `FileFormat.read`."""
    found = chosen_variant(file, options, LONGLIVE2)
    named = _named(file.path)
    if options.variant == AUTO and found.how == "its layers":
        found = Found(VARIANTS[named or LONGLIVE2.name], "its name" if named else "its weights' names")
    return read_layout(file, options, LAYOUT, found)


def _named(path: Path) -> str | None:
    """The variant that a file of this name, or in a folder of this name, is."""
    for spoken in (whole_name(path).stem, *(folder.name for folder in path.parents[:2])):
        letters = re.sub(r"[-_ .]", "", spoken.lower())
        found = next((variant for pattern, variant in NAMES if re.search(pattern, letters)), None)
        if found:
            return found
    return None
