"""The one import of ComfyUI's node interface, and the types of ours that travel along links."""

from __future__ import annotations

try:
    from comfy_api.latest import ComfyExtension, InputImpl, Types, io, ui
except ImportError as error:
    raise ImportError(f"QVG needs ComfyUI 0.21 or newer: this one has no complete comfy_api.latest ({error})") from error

if not hasattr(io, "DynamicCombo"):
    raise ImportError("QVG needs ComfyUI 0.21 or newer: this one's comfy_api.latest has no io.DynamicCombo")

CATEGORY = "QVG"
Camera = io.Custom("QVG_CAMERA")
Report = io.Custom("QVG_REPORT")

__all__ = ["CATEGORY", "Camera", "ComfyExtension", "InputImpl", "Report", "Types", "io", "ui"]
