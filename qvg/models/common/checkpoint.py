"""A model out of one of the files in which its family is handed around, and which of a file's weights to take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, UnsupportedModelError
from .found import AUTO, Found
from .tensor_names import is_quantized
from .variants import CausalVariant
from .weight_files import MOST_WRAPPINGS, WeightFile, is_tensors

WEIGHTS = ("generator", "generator_ema")
# Name of the only dictionary of weights in a file.
PLAIN = ""
_WRAPPED_IN = ("state_dict", "model", "module", "generator_lora")
_NOT_THE_MODEL = ("critic", "optimizer")
# In the metadata of a file into which a LoRA was merged: the LoRA's name.
LORA_KEY = "qvg_lora"


@dataclass(frozen=True)
class CausalCheckpoint:
    """`tensors` have Wan's own names (a HunyuanVideo's ComfyUI's) and are mapped from disk. `weights` is the dictionary in the
    file that was taken, "" where there is but one. `metadata` marks the model as causal for ComfyUI. `remarks` are sentences for
    the user. `joined` are tensors of the model that the file has in parts, one behind another along the first axis."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    found: Found
    weights: str = PLAIN
    remarks: tuple[str, ...] = ()
    joined: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def variant(self) -> CausalVariant | None:
        """How it was trained to be run."""
        return self.found.variant

    @property
    def quantized(self) -> bool:
        """Whether weights come with scales, in 8 bits or fewer; such are for ComfyUI to understand."""
        return is_quantized(self.tensors)

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of most values."""
        counts: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
        return max(counts, key=lambda dtype: counts[dtype])


def weight_groups(file: WeightFile) -> dict[str, dict[str, Tensor]]:
    """Dictionaries of weights in a file, by `generator` and `generator_ema`; or the only one, by ""."""
    content: dict[str, Any] = file.content
    for _ in range(MOST_WRAPPINGS + 1):
        named = {name: content[name] for name in WEIGHTS if is_tensors(content.get(name))}
        if named:
            return named
        if is_tensors(content):
            return {PLAIN: content}
        inside = [name for name in content if isinstance(content[name], dict) and name not in _NOT_THE_MODEL]
        wrapped = next((name for name in _WRAPPED_IN if name in inside), inside[0] if len(inside) == 1 else None)
        if wrapped is None:
            raise UnsupportedModelError(
                f"{file.path.name} holds no weights that are known ({', '.join(map(str, content)) or 'nothing at all'}); a "
                f"checkpoint has {' or '.join(WEIGHTS)}, or its tensors by name"
            )
        content = content[wrapped]
    raise UnsupportedModelError(
        f"{file.path.name} has more than {MOST_WRAPPINGS} dictionaries in one another, or one in itself, and no weights on the "
        f"way; a checkpoint has {' or '.join(WEIGHTS)}, or its tensors by name"
    )


def choose_weights(file_name: str, groups: Iterable[str], wanted: str, variant: CausalVariant | None) -> tuple[str, list[str]]:
    """Which of the dictionaries `groups` to take, and what is to be said of that. ConfigError: `wanted` is not among them."""
    names = list(groups)
    if wanted not in (AUTO, *WEIGHTS):
        raise ConfigError(f"weights is {wanted!r}; choose {AUTO}, {' or '.join(WEIGHTS)}")
    if names == [PLAIN]:
        # Repackaged: somebody has chosen before.
        unheard = [] if wanted == AUTO else [f"{file_name} has one set of weights, so the choice of {wanted} means nothing"]
        return PLAIN, unheard
    if wanted != AUTO:
        if wanted not in names:
            raise ConfigError(f"{file_name} has no {wanted}; it has {', '.join(names)}: choose that, or {AUTO}")
        return wanted, []
    trained = variant.weights_key if variant else "generator_ema"
    if trained in names:
        return trained, []
    whose = variant.name if variant else "a trainer"
    return names[0], [f"{trained} is what {whose} releases, and {file_name} has {names[0]} alone"]
