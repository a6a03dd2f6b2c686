"""Files of networks that are Wan's with other channels, and layers of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ...errors import ConfigError, UnsupportedModelError, quoted
from ..common.checkpoint import CausalCheckpoint
from ..common.found import AUTO, METADATA_KEY, Found
from ..common.packing import require_readable
from ..common.strangers import what_else
from ..common.tensor_names import some, without_buffers
from ..common.variants import CausalVariant
from ..common.weight_files import WeightFile
from ..common.weight_sets import choose_set
from ..family import ReadOptions
from .checkpoint import plain_record, sets_of, with_marks
from .layouts import WanLayout
from .names import require_layout, require_whole


def has_layout(file: WeightFile, layout: WanLayout) -> bool:
    """Whether some set of weights in a file is of this network."""
    try:
        return any(layout.matches(each.tensors) for each in sets_of(file).sets)
    except UnsupportedModelError:
        return False


def chosen_variant(file: WeightFile, options: ReadOptions, default: CausalVariant) -> Found:
    """Of files that the network itself tells apart: as asked, as marked, else `default`. ConfigError: there is no such."""
    variants = options.members.variants
    if options.variant != AUTO:
        if options.variant not in variants:
            raise ConfigError(
                f"variant is {quoted(options.variant)}, but {file.path.name} holds {default.name}; choose {AUTO} or one of "
                f"{', '.join(variants)}"
            )
        return Found(variants[options.variant], "your choice")
    marked = file.metadata.get(METADATA_KEY, "")
    if marked in variants:
        return Found(variants[marked], "its metadata")
    return Found(default, "its layers")


def read_layout(
    file: WeightFile,
    options: ReadOptions,
    layout: WanLayout,
    found: Found,
    refuse: Callable[[Mapping[str, Tensor]], str | None] = lambda tensors: None,
) -> CausalCheckpoint:
    """The model in a file; every name and shape has been looked at. `refuse`: of its tensors, what other model they are, a
    sentence's second half.

    ConfigError: a choice that is not there. UnsupportedModelError: truncated, foreign, or another network.
    """
    name, sets = file.path.name, sets_of(file)
    first = next((each for each in sets.sets if layout.matches(each.tensors)), sets.first)
    other = refuse(first.tensors) or what_else(first.tensors)
    if other:
        raise UnsupportedModelError(f"{name} {other}")
    assert found.variant is not None
    chosen, remarks = choose_set(name, sets, options.weights, found.variant.weights_key, found.variant.name)
    require_layout(chosen.tensors, name, layout)
    tensors, buffers = without_buffers(chosen.tensors)
    metadata = plain_record(file.metadata, chosen, name)
    require_readable(tensors, metadata, name, layout.packed)
    unused = dict.fromkeys([*buffers, *require_whole(tensors, name, layout)])
    tensors = {key: tensor for key, tensor in tensors.items() if key not in unused}
    remarks += [f"of no use to the network and left out: {some(unused, 5)}"] if unused else []
    tensors, metadata = with_marks(tensors, metadata, name)
    return CausalCheckpoint(file.path, tensors, metadata, found, chosen.label, tuple(remarks))
