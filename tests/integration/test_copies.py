"""More than one copy of the pack in custom_nodes: one warning that names them, and one whose nodes are used."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from .client import ROOT, node, workflow
from .conftest import started

PARTS = ("assets", "kernels", "nodes", "qvg", "web")


def copied(pack: Path, old: bool) -> None:
    """A copy; an old one knows nothing of other copies, and has a node less."""
    for folder in PARTS:
        shutil.copytree(ROOT / folder, pack / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", pack)
    if old:
        (pack / "nodes" / "comfy" / "copies.py").unlink()
        nodes = pack / "nodes" / "__init__.py"
        text = nodes.read_text(encoding="utf-8").replace("from .comfy.copies import counts\n", "counts = lambda: True\n")
        nodes.write_text(text.replace("    QVGCompare,\n", ""), encoding="utf-8")


@pytest.mark.parametrize(
    ("names", "old"),
    [
        (("comfyui-qvg", "comfyui-qvg.bak"), ()),
        (("comfyui-qvg", "zz-qvg-old"), ("zz-qvg-old",)),
        ((".comfyui-qvg.bak", "comfyui-qvg", "qvg"), (".comfyui-qvg.bak",)),
    ],
    ids=["backup", "older", "three"],
)
def test_one_warning_names_all_copies_and_the_one_that_counts(
    tmp_path: Path, names: tuple[str, ...], old: tuple[str, ...]
) -> None:
    packs = tmp_path / "custom_nodes"
    packs.mkdir()
    for name in names:
        copied(packs / name, name in old)
    (packs / "comfyui-qvg.disabled").mkdir()
    with started(tmp_path) as client:
        order = [name for name in os.listdir(packs) if name in names]
        said = re.findall(r"QVG is there (\d) times: (.*); only the nodes of (\S+) count", client.log())
        assert said == [(str(len(names)), " and ".join(str(packs / name) for name in order), str(packs / order[-1]))]
        for info in (client.get(f"/object_info/{kind}")[kind] for kind in ("QVGKVCache", "QVGSampler", "QVGLoadDemoWorld")):
            assert info["python_module"] == f"custom_nodes.{order[-1]}"
        prompt = workflow(frames=6)
        assert client.run(prompt).status == "success" and node(prompt, "QVGSampler")
    assert "Traceback" not in client.log()


def test_one_copy_says_nothing(tmp_path: Path) -> None:
    packs = tmp_path / "custom_nodes"
    packs.mkdir()
    (packs / "any name").symlink_to(ROOT, target_is_directory=True)
    shutil.copytree(ROOT / "nodes", packs / "comfyui-qvg.disabled" / "nodes")
    (packs / "other").mkdir()
    (packs / "other" / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}")
    with started(tmp_path) as client:
        assert "QVG is there" not in client.log() and "QVGKVCache" in client.get("/object_info")
