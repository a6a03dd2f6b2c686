"""What LongCat-Video is with a LoRA: its authors' two make other models of it, which are run in other ways."""

from __future__ import annotations

import re
from dataclasses import replace

from ..common.checkpoint import CausalCheckpoint
from ..common.found import Found
from ..common.lora import Lora
from ..common.lora_names import without_words
from .variants import DISTILLED, REFINEMENT

# cfg_step_lora.safetensors as released, LongCat_distill_lora_alpha64_bf16.safetensors as repackaged.
_DISTILLS = re.compile(r"cfg.?step|distill")
_REFINES = re.compile(r"refine")
# Of the two, the refinement's alone changes these.
_MODULATION = "adaLN_modulation.1"


def with_lora(checkpoint: CausalCheckpoint, lora: Lora) -> CausalCheckpoint:
    """As it is run with `lora`, unless the user has chosen a variant."""
    if checkpoint.found.how == "your choice":
        return checkpoint
    name = lora.file_name.lower()
    if _REFINES.search(name) or any(without_words(layer).endswith(_MODULATION) for layer in lora.layers):
        return replace(checkpoint, found=Found(REFINEMENT, "its LoRA"))
    if _DISTILLS.search(name):
        return replace(checkpoint, found=Found(DISTILLED, "its LoRA"))
    return checkpoint
