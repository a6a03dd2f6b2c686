"""Imports point right only: request -> nodes/ -> qvg/sampling -> qvg/models -> qvg/cache ... -> qvg/codec -> kernels/; and no
file reaches itself through others.

Reads imports with `ast`, also those inside functions, and runs nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .imports import import_graph, imports, module_name

ROOT = Path(__file__).resolve().parents[1]

# A module may import what has its own number or a smaller one. Names are relative to the root; the longest that fits counts.
RANKS = {
    "kernels": 1,
    # the words everybody in qvg/ speaks
    "qvg.config": 2,
    "qvg.errors": 2,
    "qvg.file_names": 2,
    "qvg.files": 2,
    "qvg.json_text": 2,
    "qvg.metrics": 2,
    "qvg.safetensors_writer": 2,
    "qvg.positions": 2,
    "qvg.camera": 3,
    "qvg.codec": 3,
    "qvg.media": 3,
    "qvg.attention": 4,
    "qvg.cache": 5,
    "qvg.session": 6,
    "qvg.study": 9,  # methods to compare with: caches of their own, and a denoiser that reuses
    "qvg.models": 7,
    "qvg.plan": 8,  # what a run will take, for `qvg plan` and the nodes
    "qvg.sampling": 8,
    "qvg": 9,  # the package itself: public names for those outside
    "qvg.convert": 10,
    "qvg.demo": 10,
    "qvg.doctor": 10,  # reads sources; imports nothing of ComfyUI
    "qvg.server": 10,  # `qvg run`: knows a ComfyUI by its HTTP interface only
    "qvg.bench": 11,
    "qvg.harness": 11,  # `qvg study`: plans of videos by the instruments of bench, or by servers
    "qvg.cli": 12,
    "nodes": 13,
    "": 14,  # the root's __init__
}
PROGRAMS = ("qvg.bench", "qvg.cli", "qvg.convert", "qvg.demo", "qvg.doctor", "qvg.harness", "qvg.server")
LIBRARY_MAY_IMPORT = {"PIL", "av", "einops", "numpy", "safetensors", "scipy", "torch"}
PROGRAMS_MAY_IMPORT = LIBRARY_MAY_IMPORT | {"matplotlib", "tqdm", "websocket"}
# Attention kernels that a user may have installed: looked for by one module, when attention first runs.
INSTALLED_MAY_IMPORT = {
    "kernels.attention.library": {"flash_attn_interface", "sageattention"},
    # extras of `qvg study`, each imported by one file, when it is asked for
    "qvg.harness.page": {"plotly"},
    "qvg.harness.perceptual": {"lpips", "vbench"},
    "qvg.harness.ray_engine": {"ray"},
}
COMFYUI_INTERNALS = {"comfy", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview", "nodes", "server"}


def rank(name: str) -> int:
    """The layer's number of a module of ours."""
    parts = name.split(".")
    rooms = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    (nearest, *_) = [room for room in rooms if room in RANKS]
    assert nearest != "qvg" or name == "qvg", f"{name} has no place in the order of qvg's rooms; give it one in RANKS"
    return RANKS[nearest]


def complaint(name: str, target: str, ours: bool) -> str | None:
    """Why the module `name` may not import `target`, or None if it may."""
    if ours:
        if target == "above the root":
            return "reaches above the root"
        return f"rank {rank(name)} imports {target or 'the root'}, rank {rank(target)}" if rank(target) > rank(name) else None
    top = target.split(".")[0]
    if top in sys.stdlib_module_names:
        return None
    if top == "triton":
        allowed = name.startswith("kernels.") and name.endswith(".triton_kernel")
        return None if allowed else "only kernels/*/triton_kernel.py imports triton"
    in_nodes = name.split(".")[0] in ("nodes", "")
    if top == "comfy_api":
        return None if in_nodes else "qvg/ and kernels/ know nothing of ComfyUI"
    if top in COMFYUI_INTERNALS:
        return None if name.startswith("nodes.comfy") else "only nodes/comfy/ touches ComfyUI's internals"
    may = PROGRAMS_MAY_IMPORT if name.startswith(PROGRAMS) else LIBRARY_MAY_IMPORT
    may = may | INSTALLED_MAY_IMPORT.get(name, set())
    return None if top in may else f"{top} is not among {', '.join(sorted(may))}"


def violations(root: Path) -> list[str]:
    """Every forbidden import under root, as `file:line: what (why)`."""
    folders = (root / name for name in ("nodes", "qvg", "kernels"))
    files = [root / "__init__.py", *(file for folder in folders for file in sorted(folder.rglob("*.py")))]
    found = []
    for file in (file for file in files if file.is_file()):
        for line, target, ours in imports(file, root):
            why = complaint(module_name(file, root), target, ours)
            if why:
                found.append(f"{file.relative_to(root).as_posix()}:{line}: {target or 'the root'} ({why})")
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Files that reach each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            circle, stack[at:] = stack[at:], []
            if len(circle) > 1:
                found.append(sorted(circle))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def test_no_file_reaches_itself():
    assert circles(import_graph(ROOT)) == []


@pytest.mark.parametrize(
    "files",
    [
        {"qvg/cache/a.py": "from .b import x", "qvg/cache/b.py": "from .a import y"},
        {"qvg/cache/a.py": "from .b import x", "qvg/cache/b.py": "def late():\n    from . import a"},
        {
            "qvg/cache/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import x",
            "qvg/cache/b.py": "from .c import x",
            "qvg/cache/c.py": "from .a import y",
        },
        {"nodes/comfy/attach.py": "", "nodes/comfy/adapter.py": "from .attach import x"},
    ],
    ids=["plain", "in a function", "for types", "by name"],
)
def test_a_circle_is_found(tmp_path, files):
    (circle,) = circles(import_graph(tree(tmp_path, files)))
    assert circle == sorted(name.removesuffix(".py").replace("/", ".") for name in files)


def test_imports_point_right_only():
    assert violations(ROOT) == []


def test_the_library_is_looked_at():
    read = {module_name(file, ROOT) for folder in ("qvg", "kernels") for file in (ROOT / folder).rglob("*.py")}
    assert {"qvg", "qvg.cache.kv_cache", "qvg.codec", "kernels", "kernels.dispatch"} <= read


def tree(root: Path, files: dict[str, str]) -> Path:
    """A made-up repository: the usual packages, and these files in it."""
    for folder in ("nodes/comfy", "qvg/cache", "qvg/codec", "qvg/models", "qvg/sampling", "kernels/kmeans"):
        (root / folder).mkdir(parents=True)
        (root / folder / "__init__.py").touch()
    for name in ("qvg/cache/kv_cache.py", "qvg/errors.py", "qvg/config.py", "qvg/cli.py", "kernels/packing.py"):
        (root / name).touch()
    for name, source in files.items():
        (root / name).write_text(source, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("kernels/packing.py", "from ..qvg import errors"),
        ("kernels/packing.py", "from ..qvg.errors import ConfigError"),
        ("qvg/errors.py", "from .cache import KVCache"),
        ("qvg/codec/exact.py", "from ..cache import KVCache"),
        ("qvg/codec/exact.py", "from .. import cache"),
        ("qvg/codec/exact.py", "def late():\n    from .. import models"),
        ("qvg/cache/kv_cache.py", "from ..models import demo_world"),
        ("qvg/cache/kv_cache.py", "from .. import KVCache"),
        ("qvg/models/wan.py", "from ..sampling import generate"),
        ("qvg/sampling/loop.py", "from ..cli import main"),
        ("qvg/sampling/loop.py", "from ...nodes import loaders"),
        ("qvg/cache/kv_cache.py", "from .... import anything"),
        ("qvg/cache/kv_cache.py", "import triton"),
        ("kernels/kmeans/__init__.py", "import triton.language as tl"),
        ("kernels/kmeans/__init__.py", "import importlib\nimportlib.import_module('triton')"),
        ("nodes/loaders.py", "import triton"),
        ("qvg/cache/kv_cache.py", "import comfy.ops"),
        ("qvg/models/wan.py", "from comfy_api.latest import io"),
        ("kernels/packing.py", "import folder_paths"),
        ("qvg/cli.py", "import nodes"),
        ("nodes/loaders.py", "import comfy.model_management"),
        ("nodes/loaders.py", "import matplotlib"),
        ("qvg/cache/kv_cache.py", "import tqdm"),
        ("qvg/cache/kv_cache.py", "from matplotlib import pyplot"),
        ("qvg/cli.py", "import requests"),
        ("qvg/cache/kv_cache.py", "import qvg.codec"),
        ("qvg/cache/kv_cache.py", "from comfyui_qvg.qvg import codec"),
        ("qvg/cache/kv_cache.py", "from kernels import packing"),
        ("__init__.py", "import comfy"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, file, source):
    found = violations(tree(tmp_path, {file: source}))
    assert len(found) == 1
    assert found[0].startswith(f"{file}:{len(source.splitlines())}: ")


def test_allowed_imports_pass(tmp_path):
    allowed = {
        "__init__.py": "if __package__:\n    from .nodes import comfy_entrypoint",
        "nodes/loaders.py": "from comfy_api.latest import io\nfrom ..qvg import KVCache\nfrom .comfy import patch",
        "nodes/camera.py": "from ..qvg.models import wan\nfrom ..qvg.sampling import loop",
        "nodes/comfy/patch.py": "import comfy.ops\nimport folder_paths\nfrom ...qvg import cache",
        "qvg/__init__.py": "from .cache import KVCache\nfrom . import errors",
        "qvg/cli.py": "import tqdm\nimport matplotlib.pyplot\nfrom . import sampling\nfrom .models import wan",
        "qvg/models/wan.py": "import torch.nn.functional\nfrom safetensors.torch import load_file\nfrom ..cache import KVCache",
        "qvg/sampling/loop.py": "from ..models import wan\nfrom .. import cache",
        "qvg/codec/exact.py": "import math\nfrom ...kernels import packing\nfrom ..config import QVGConfig\nfrom . import base",
        "kernels/__init__.py": "import importlib\nimportlib.import_module('.kmeans.triton_kernel', __package__)",
        "kernels/kmeans/__init__.py": "from .. import packing",
        "kernels/kmeans/triton_kernel.py": "import triton\nimport triton.language as tl\nfrom ..packing import unpack",
    }
    assert violations(tree(tmp_path, allowed)) == []
