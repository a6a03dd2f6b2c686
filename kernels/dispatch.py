"""Which implementation runs an op: `auto`, `torch` or `triton`. Forced means forced; `auto` says once why it chose.

An op is a folder with `reference.py` (torch) and, where one exists, `triton_kernel.py` with the same signatures. The Triton
module is imported on first use and nowhere else, so the package imports without Triton.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import cache
from types import ModuleType

from torch import Tensor

from .errors import BackendError

BACKENDS = ("auto", "torch", "triton")
OPS = ("kmeans", "residual", "reconstruct", "coefficients", "attention", "direct", "transcode", "attention8")
_LOG = logging.getLogger(__name__)


def implementation(op: str, x: Tensor, backend: str) -> ModuleType:
    """The module that runs `op` (a folder of this package) on tensors like x. Raises BackendError where a forced one cannot."""
    if backend not in BACKENDS:
        raise BackendError(op, backend, f"there is no such backend (known: {', '.join(BACKENDS)})")
    reason = triton_refusal(op, x.device.type) if backend != "torch" else "torch was asked for"
    if reason is None:
        return importlib.import_module(f".{op}.triton_kernel", __package__)
    if backend == "triton":
        raise BackendError(op, backend, reason)
    if backend == "auto":
        _say_once(op, reason)
    return importlib.import_module(f".{op}.reference", __package__)


@cache
def triton_refusal(op: str, device_type: str) -> str | None:
    """Why Triton does not run `op` on this kind of device, or None if it does."""
    if importlib.util.find_spec(f".{op}.triton_kernel", __package__) is None:
        return f"{op} has no Triton kernel in this version"
    if device_type not in ("cuda", "xpu"):
        return f"Triton does not run on {device_type} tensors"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (Linux: pip install triton; Windows: pip install triton-windows)"
    return None


def require_backend(backend: str) -> None:
    """Raise BackendError now if a forced backend could not run on any device; else `implementation` decides per tensor."""
    if backend != "triton":
        return
    for op in OPS:
        reason = triton_refusal(op, "cuda")
        if reason is not None:
            raise BackendError(op, backend, reason)


def explain(device_type: str = "cpu") -> dict[str, str]:
    """For each op, what `auto` runs on this kind of device and why."""
    reasons = {op: triton_refusal(op, device_type) for op in OPS}
    return {op: "triton" if reason is None else f"torch ({reason})" for op, reason in reasons.items()}


@cache
def _say_once(op: str, reason: str) -> None:
    _LOG.info("%s runs in torch: %s", op, reason)
