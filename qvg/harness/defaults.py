"""What the command offers by itself: built-in plans, and how often a machine that dies is forgiven."""

from __future__ import annotations

from pathlib import Path

BUILT_IN = {file.stem: file for file in sorted((Path(__file__).parent / "plans").glob("*.toml"))}
RETRIES = 3
