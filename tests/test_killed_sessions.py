"""tools/killed_sessions.py: a small sample of its kills, and that it would notice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .helpers import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the tool forks, and ends by a signal that Windows does not have")


def test_a_few_kills_of_a_causal_wan() -> None:
    command = [sys.executable, str(ROOT / "tools" / "killed_sessions.py"), "--run", "causal-wan", "--count", "4"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("causal-wan: 4 kills in ") and ran.stdout.endswith(", 0 wrong\n") and not ran.stderr


def test_what_is_wrong_is_noticed() -> None:
    """The same with a session that forgets what was waiting to be encoded."""
    lost = (
        "import sys; sys.path.insert(0, sys.argv[1]); import killed_sessions as tool\n"
        "from comfyui_qvg.qvg.session import recorder\n"
        "new = recorder.CacheRecorder._new_exact\n"
        "recorder.CacheRecorder._new_exact = lambda self, folder: (new(self, folder)[0][:1], [])\n"
        "sys.argv = ['tool', '--run', 'causal-wan', '--count', '2']; sys.exit(tool.main())"
    )
    command = [sys.executable, "-c", lost, str(ROOT / "tools")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 1 and "0 wrong" not in ran.stdout, ran.stdout + ran.stderr
