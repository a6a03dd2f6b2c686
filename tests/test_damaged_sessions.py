"""tools/damaged_sessions.py: a small sample of what it makes, and that it would notice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from comfyui_qvg.qvg.session.manifest import Index

from .helpers import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the tool ends what hangs by a signal that Windows does not have")
UNCHECKED = """
import collections, sys
sys.path.insert(0, sys.argv[1])
import damaged_sessions as tool
from comfyui_qvg.qvg.session.segment import OpenSegment


class Same:
    def __ne__(self, other):
        return False


known = OpenSegment._read_header
def unchecked(self, header):
    known(self, header)
    self._checksums = collections.defaultdict(Same)
OpenSegment._read_header = unchecked
tool.KINDS = ["a bit of a tensor turned"]
sys.argv = ["tool", "--count", "12"]
sys.exit(tool.main())
"""


def _ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600, env=environment)


def test_every_kind_of_damage() -> None:
    ran = _ran(str(ROOT / "tools" / "damaged_sessions.py"), "--seed", "3", "--count", "90")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("90 sessions, 19 kinds of damage, seed 3: ") and " 0 wrong; " in ran.stdout and not ran.stderr


def test_damage_that_nobody_looks_for_is_noticed() -> None:
    """Were tensors not compared with their checksums."""
    ran = _ran("-c", UNCHECKED, str(ROOT / "tools"))
    assert ran.returncode == 1 and "nothing says so" in ran.stderr, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "C:\\x", "..", "", "a\x00b", "Blocks", "a" * 300, 7, None])
def test_names_that_lead_away_are_no_segments(name: object) -> None:
    with pytest.raises(ValueError, match=r"names are of small letters, digits and dashes|must hold names"):
        Index().apply({"add": [[name, 1, "00000000"]], "gone": [], "origins": {}})
