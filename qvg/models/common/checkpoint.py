"""A model out of one of the files in which its family is handed around."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .found import Found
from .tensor_names import is_quantized
from .variants import CausalVariant
from .weight_sets import PLAIN

# In the metadata of a file into which a LoRA was merged: the LoRA's name.
LORA_KEY = "qvg_lora"


@dataclass(frozen=True)
class CausalCheckpoint:
    """`tensors` have Wan's own names (a HunyuanVideo's ComfyUI's) and are mapped from disk. `weights`: which set of weights in
    the file was taken, "" where there is but one. `metadata` marks the model as causal for ComfyUI. `remarks` are for the user.
    `joined` are tensors of the model that the file has in parts, one behind another along the first axis."""

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
    def whole(self) -> dict[str, Tensor]:
        """All tensors of the model, for their shapes: those that the file has in parts without values."""
        made = {
            name: torch.empty((sum(part.shape[0] for part in parts), *parts[0].shape[1:]), dtype=parts[0].dtype, device="meta")
            for name, parts in self.joined.items()
        }
        return {**self.tensors, **made}

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
