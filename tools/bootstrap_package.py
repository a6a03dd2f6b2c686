"""Name the repository `comfyui_qvg` for scripts in this folder, whatever the clone is called, without touching `sys.path`."""

import sys
import types
from pathlib import Path

comfyui_qvg = sys.modules.setdefault("comfyui_qvg", types.ModuleType("comfyui_qvg"))
comfyui_qvg.__path__ = [str(Path(__file__).resolve().parents[1])]
