"""Weights that this pack ships: read whole, checked against the modules that they are for, refused in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ...file_names import in_utf8

REMEDY = "restore it from the repository's assets/, or install this pack again"


def read_shipped(path: Path, title: str, model: str, dtype: torch.dtype) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and weights of the file whose metadata names `model`; `title` is what people call it. UnsupportedModelError: the
    file is missing, damaged, or of something else."""
    if not path.is_file():
        raise UnsupportedModelError(f"{path} is not there, but holds the {title}'s weights; {REMEDY}")
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UnsupportedModelError(f"{path} cannot be read ({error}); {REMEDY}") from error
    if metadata.get("model") != model:
        raise UnsupportedModelError(
            f"{path} is not a {title} (its metadata says {metadata.get('model')!r}); use assets/{path.name}"
        )
    return metadata, state


def check_shipped(path: Path, title: str, module: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
    """Raise UnsupportedModelError for the first weight that is missing, unknown, of another shape, or no number. `prefix` is what
    the file puts before the module's names."""
    expected = {name: list(weight.shape) for name, weight in module.state_dict().items()}
    for name in sorted(expected.keys() | state.keys()):
        found, label = list(state[name].shape) if name in state else None, prefix + name
        if found is None:
            complaint = f"lacks the weight {label!r}"
        elif name not in expected:
            complaint = f"holds {label!r}, which is no weight of the {title}"
        elif found != expected[name]:
            complaint = f"holds {label!r} in shape {found} instead of {expected[name]}"
        elif not state[name].isfinite().all():
            complaint = f"holds values in {label!r} that are not numbers"
        else:
            continue
        raise UnsupportedModelError(f"{path} {complaint}; {REMEDY}")
