"""Which implementation runs an op: `auto`, `torch` or `triton`. Forced means forced; `auto` says once why it chose.

An op is a folder with `reference.py` (torch) and, where one exists, `triton_kernel.py` with the same signatures. The Triton
module is imported on first use and nowhere else, so the package imports without Triton. Before that come, in this order, what is
known without touching the GPU (Triton's version, the architecture: on some a kernel would hang the driver) and one tiny kernel
in a process of its own (`probe`).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .errors import BackendError
from .probe import probe

BACKENDS = ("auto", "torch", "triton")
OPS = (
    "kmeans",
    "residual",
    "reconstruct",
    "coefficients",
    "turn",
    "spans",
    "code_spans",
    "attention",
    "direct",
    "direct_coefficients",
    "transcode",
    "attention8",
    "means",
)
HEAD_DIMS = (64, 128, 256)
GROUP_SIZES = (16, 32, 64, 128)
OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)  # the first with bfloat16 in tensor cores
# RDNA 1 and 2 (gfx10) can hang in Triton kernels; older ones nobody compiles for.
AMD_FAMILIES = ("gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
_INSTALL = "Linux: pip install triton; Windows: pip install triton-windows"
_LOG = logging.getLogger(__name__)


def implementation(op: str, x: Tensor, backend: str, refusal: str | None = None) -> ModuleType:
    """The module that runs `op` (a folder of this package) on tensors like x. Raises BackendError where a forced one cannot.

    refusal: why these arguments have no Triton kernel, if they have none (`shape_refusal`).
    """
    if backend not in BACKENDS:
        raise BackendError(op, backend, f"there is no such backend (known: {', '.join(BACKENDS)})")
    reason = "torch was asked for" if backend == "torch" else triton_refusal(op, x.device) or refusal
    if reason is None:
        return importlib.import_module(f".{op}.triton_kernel", __package__)
    if backend == "triton":
        raise BackendError(op, backend, reason)
    if backend == "auto":
        _say_once(reason, is_loss=x.device.type == "cuda")
    return importlib.import_module(f".{op}.reference", __package__)


def shape_refusal(channels: int, group_size: int = 64) -> str | None:
    """Why there is no kernel for this head_dim and group size, or None: tiles are powers of two."""
    if channels not in HEAD_DIMS:
        return f"head_dim {channels} has no Triton kernel (those with one: {', '.join(map(str, HEAD_DIMS))})"
    if group_size not in GROUP_SIZES:
        return f"group_size {group_size} has no Triton kernel (those with one: {', '.join(map(str, GROUP_SIZES))})"
    return None


def triton_refusal(op: str, device: torch.device | str) -> str | None:
    """Why Triton does not run `op` on this device, or None if it does."""
    if importlib.util.find_spec(f".{op}.triton_kernel", __package__) is None:
        return f"{op} has no Triton kernel in this version"
    return _device_refusal(torch.device(device))


@cache
def _device_refusal(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"our Triton kernels do not run on {device.type} tensors"
    version = triton_version()
    if version is None:
        return f"Triton is not installed ({_INSTALL})"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TRITON:
        return f"Triton {version} is older than 3.6; update PyTorch, which brings its own ({_INSTALL})"
    if not torch.cuda.is_available():
        return "torch sees no GPU (torch.cuda.is_available() is False)"
    index = torch.cuda.current_device() if device.index is None else device.index
    properties = torch.cuda.get_device_properties(index)
    return architecture_refusal(properties) or probe(index, f"{properties.name}, Triton {version}, torch {torch.__version__}")


def architecture_refusal(properties: object) -> str | None:
    """Why kernels are not tried on a GPU with these properties (`torch.cuda.get_device_properties`), or None."""
    name = getattr(properties, "name", "this GPU")
    if torch.version.hip:
        family = str(getattr(properties, "gcnArchName", "")).split(":")[0]
        if not family.startswith(AMD_FAMILIES):
            return f"{name} is {family or 'of unknown architecture'}, where Triton kernels may hang or do not compile"
        return None
    capability = (getattr(properties, "major", 0), getattr(properties, "minor", 0))
    if capability < OLDEST_CAPABILITY:
        return f"{name} has compute capability {capability[0]}.{capability[1]}; kernels need 8.0 (RTX 30 or newer)"
    return None


def triton_version() -> str | None:
    """The installed Triton's version, read from its source without importing it; None without Triton."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r"""__version__ = ['"]([^'"]+)""", Path(spec.origin).read_text(encoding="utf-8"))
    return found[1] if found else "0.0"


def require_backend(backend: str) -> None:
    """Raise BackendError now if a forced backend could not run on any device; else `implementation` decides per tensor."""
    if backend != "triton":
        return
    for op in OPS:
        reason = triton_refusal(op, "cuda")
        if reason is not None:
            raise BackendError(op, backend, reason)


def explain(device: torch.device | str = "cpu") -> dict[str, str]:
    """For each op, what `auto` runs on this device and why."""
    reasons = {op: triton_refusal(op, device) for op in OPS}
    return {op: "triton" if reason is None else f"torch ({reason})" for op, reason in reasons.items()}


@cache
def _say_once(reason: str, is_loss: bool) -> None:
    """One line for all ops; a warning where a GPU is slower for it."""
    _LOG.log(logging.WARNING if is_loss else logging.INFO, "kernels run in torch: %s", reason)
