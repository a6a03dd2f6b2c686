"""What `comfy node pack` publishes: the files that git tracks, less those that .comfyignore names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pathspec
import pytest

ROOT = Path(__file__).resolve().parents[1]


def left_out(path: str) -> bool:
    """Whether .comfyignore keeps `path` out of the archive."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    return pathspec.GitIgnoreSpec.from_lines(lines).match_file(path)


def published_files() -> list[str]:
    """Every path in the archive, as it would be made of this checkout. Skips where git does not know the files."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed: what is tracked, and so published, is not known")
    done = subprocess.run([git, "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        pytest.skip("not a git checkout: what is tracked, and so published, is not known")
    return [path for path in done.stdout.split("\0") if path and (ROOT / path).is_file() and not left_out(path)]


def unpack(folder: Path) -> Path:
    """The pack as ComfyUI-Manager unpacks it, under the name that the registry gives it. -> its folder"""
    pack = folder / "qvg"
    for path in published_files():
        (pack / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, pack / path)
    return pack
