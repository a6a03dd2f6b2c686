"""Files that are taken for a model's and are something else, or packed by others: told by names that only such have."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .packing import foreign_packing, needs_loader

LORA = re.compile(r"(^|[._])lora_(A|B|up|down)\b")
UNMERGED = (
    "is a model with a LoRA's layers in it, not merged; merge them where it was made (PEFT: merge_and_unload()) and save it again"
)
_KINDS = (
    (r"\.base_layer\.", UNMERGED),
    (LORA.pattern, "holds a LoRA and no model; give the model's file, and this as its LoRA"),
    (
        r"^(decoder\.(conv1|conv_in|middle|mid)|encoder\.(conv1|conv_in|down))",
        "is a VAE; put it into models/vae and load it with 'Load VAE'",
    ),
    (
        r"^(shared|token_embedding|encoder\.embed_tokens)\.|^text_model\.|^encoder\.block\.0\.",
        "is a text encoder; put it into models/text_encoders and load it with 'Load CLIP'",
    ),
    (
        r"^vision_model\.|^visual\.transformer\.",
        "is a CLIP vision model; put it into models/clip_vision and load it with 'Load CLIP Vision'",
    ),
)


def what_else(names: Iterable[str]) -> str | None:
    """A sentence's second half, with the way out; None of names that say nothing of the kind. A model that others have packed is
    said to be that first: some packers have LoRAs in their files."""
    listed = list(names)
    packer = foreign_packing(listed)
    if packer:
        return needs_loader(packer)
    return next((what for pattern, what in _KINDS if any(re.search(pattern, name) for name in listed)), None)
