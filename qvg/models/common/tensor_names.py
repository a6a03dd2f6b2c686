"""Names of tensors without what trainers and packers put around them, and names out of files as they are shown to people.

Self-Forcing's trainers put `model.` in front, those of FSDP and torch.compile put wrappers in between, repackaged ones
`model.diffusion_model.`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from ...errors import UnsupportedModelError
from ...errors import shown as shown

# More than any model that QVG knows has, weights of 4 bits and a trainer's states beside them included.
MOST_TENSORS = 50_000
_MOST_LETTERS = 1000
_MOST_BLOCKS = 200
_WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")
_PREFIXES = ("diffusion_model.", "module.", "model.")
# What stands beside weights of 8 bits and fewer.
_SCALES = re.compile(
    r"\.(scale_weight|scale_input|weight_scale|weight_scale_2|input_scale|pre_quant_scale|comfy_quant|weight_s_rel|weight_s_channel"
    r"|weight_codebook)$"
)
SCALED = "scaled_fp8"
# Tables and counters that networks and trainers keep beside weights: made anew in every run, of no use in a file.
_BUFFERS = re.compile(
    r"(^|\.)(freqs(_cis|_cos|_sin|_[thw]|_complex)?|inv_freq|rope_freqs|(cos|sin)(_cached)?|pos_(freqs|ids)|position_ids"
    r"|num_batches_tracked|num_updates|(block_|attn_|causal_|attention_)?mask|[kv]_cache|cache_[kv]|kv_cache\w*"
    r"|(global|local)_end_index|_extra_state|amax_history\w*|_amax|dummy\w*|step|device_indicator)$"
)


def without_wrappers(name: str) -> str:
    """`name` without what FSDP, activation checkpointing and torch.compile put between its parts."""
    return _WRAPPERS.sub("", name)


def plain_name(name: str) -> str:
    """One name without wrappers and prefixes."""
    name = without_wrappers(name)
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
        name = name[len(prefix) :]
    return name


def is_quantized(names: Iterable[str]) -> bool:
    """Whether weights of these names come with scales, as in 8 bits and fewer."""
    return any(name == SCALED or _SCALES.search(name) for name in names)


def without_buffers(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """`tensors` without the tables and counters among them, and the names of those."""
    left = dict.fromkeys(name for name in tensors if _BUFFERS.search(name))
    return {name: tensor for name, tensor in tensors.items() if name not in left}, [*left]


def require_bounded(names: Collection[object], file_name: str) -> None:
    """Raise UnsupportedModelError for more tensors than any model has, and for names that are no names."""
    if len(names) > MOST_TENSORS:
        raise UnsupportedModelError(
            f"{file_name} holds {len(names)} tensors, and QVG reads files of up to {MOST_TENSORS}; it is no model that QVG "
            "knows, or far more than a model: save its weights alone"
        )
    longest = max((len(name) for name in names if isinstance(name, str)), default=0)
    if longest > _MOST_LETTERS:
        raise UnsupportedModelError(
            f"{file_name} names a tensor with {longest} letters, and no model's names have more than {_MOST_LETTERS}; it is "
            "damaged, or no model's file"
        )


def count_blocks(names: Iterable[str], before: str) -> int:
    """How many blocks there are, called `before`0 and so on. UnsupportedModelError: one is left out, or they are too many."""
    numbers = {name.removeprefix(before).partition(".")[0] for name in names if name.startswith(before)}
    if len(numbers) > _MOST_BLOCKS or numbers != {str(number) for number in range(len(numbers))}:
        odd = sorted(numbers - {str(number) for number in range(min(len(numbers), _MOST_BLOCKS))})
        raise UnsupportedModelError(
            f"the checkpoint has {len(numbers)} blocks, and some in between are not there, or they are more than models have "
            f"({some(before + each for each in odd)}); it is damaged, or of another model"
        )
    return len(numbers)


def uneven(names: Collection[str], before: str, known: re.Pattern[str]) -> str:
    """What is wrong with a network's names, in brackets: those that are not `known`, or what one block has and another lacks."""
    odd = [name for name in names if not known.search(name)]
    if odd:
        return f" (it has {some(odd)})"
    inside = [name.removeprefix(before).partition(".") for name in names if name.startswith(before)]
    numbers, parts = dict.fromkeys(number for number, _, _ in inside), dict.fromkeys(part for _, _, part in inside)
    lacks = (name for number in numbers for part in parts if (name := f"{before}{number}.{part}") not in names)
    listed = some(lacks)  # which stops early: of names without order there would be millions
    return f" (it lacks {listed})" if listed else ""


def some(names: Iterable[object], most: int = 3) -> str:
    """The first of some names, for a sentence."""
    listed: list[str] = []
    for name in names:
        if len(listed) == most:
            return ", ".join([*listed, "..."])
        listed.append(shown(name))
    return ", ".join(listed)
