"""More than one copy of this pack in `custom_nodes`, such as a backup: ComfyUI loads all, and nodes of one would meet another's.

ComfyUI goes through its folders as the system lists them, and of nodes with one id the last one stays. So the last copy counts:
ids are only ever added, so it replaces all that older ones have brought, and copies that know of this rule bring nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

HERE = Path(__file__).parents[2]
# What every copy has, and what those have that know of this rule.
_OF_ANY, _OF_THESE = ("nodes/cache.py", 'node_id="QVGKVCache"'), "nodes/comfy/copies.py"
# Without these a copy that was made by half is not loaded, and must not be waited for.
_NEEDED = ("__init__.py", "nodes/__init__.py", "qvg/__init__.py", "kernels/__init__.py")


def counts() -> bool:
    """Whether this copy is the one whose nodes are used. Warns, once for all copies, where there are several."""
    import folder_paths

    copies = found_in(folder_paths.get_folder_paths("custom_nodes"))
    here = next((copy for copy in copies if _is_here(copy)), None)
    if here is None or len(copies) == 1:
        return True
    speaker = next(copy for copy in copies if (copy / _OF_THESE).is_file())
    if here == speaker:
        logger.warning(
            "QVG is there %d times: %s; only the nodes of %s count, which is loaded last. Take the others out of custom_nodes, "
            "or let their names end in .disabled",
            len(copies),
            " and ".join(map(str, copies)),
            copies[-1],
        )
    return here == copies[-1]


def found_in(roots: Iterable[str]) -> list[Path]:
    """Copies in the order in which ComfyUI loads them."""
    found = []
    for root in roots:
        try:
            names = os.listdir(os.path.realpath(root))
        except OSError:
            continue
        found += [Path(root, name) for name in names if _is_loaded(name) and _is_copy(Path(root, name))]
    return found


def _is_loaded(name: str) -> bool:
    """Whether ComfyUI loads what is called so: as it was started, perhaps only a few."""
    try:
        from comfy.cli_args import args
    except ImportError:
        return not name.endswith(".disabled")
    some = getattr(args, "disable_all_custom_nodes", False)
    return not name.endswith(".disabled") and (not some or name in getattr(args, "whitelist_custom_nodes", ()))


def _is_copy(folder: Path) -> bool:
    file, text = _OF_ANY
    try:
        whole = all((folder / needed).is_file() for needed in _NEEDED)
        return whole and text in (folder / file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _is_here(copy: Path) -> bool:
    """By its path and not by what that leads to: of two links to one folder both are loaded."""
    return os.path.abspath(copy) == os.path.abspath(HERE)
