"""Names of tensors without what trainers and packers put around them.

Self-Forcing's trainers put `model.` in front, those of FSDP and torch.compile put wrappers in between, repackaged ones
`model.diffusion_model.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")
_PREFIXES = ("diffusion_model.", "module.", "model.")
_WHOLE_CHECKPOINT = "model.diffusion_model."
# What stands beside weights of 8 bits and fewer.
_SCALES = re.compile(r"\.(scale_weight|scale_input|weight_scale|weight_scale_2|input_scale|pre_quant_scale|comfy_quant)$")
_SCALED = "scaled_fp8"


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under the network's own names, without wrappers and prefixes; of a whole checkpoint, the diffusion model's."""
    if any(name.startswith(_WHOLE_CHECKPOINT) for name in tensors):
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(_WHOLE_CHECKPOINT)}
    return {plain_name(name): tensor for name, tensor in tensors.items()}


def plain_name(name: str) -> str:
    """One name without wrappers and prefixes."""
    name = _WRAPPERS.sub("", name)
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
        name = name[len(prefix) :]
    return name


def is_quantized(names: Iterable[str]) -> bool:
    """Whether weights of these names come with scales, as in 8 bits and fewer."""
    return any(name == _SCALED or _SCALES.search(name) for name in names)
