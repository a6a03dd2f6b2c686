"""The benchmark programs run: dry, with tiny shapes, on this machine. Their numbers are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from .helpers import ROOT


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, str(ROOT / "benchmarks" / "codec.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_codec_rows_name_their_conditions() -> None:
    done = _run("--tiny")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {row["what"] for row in rows} == {"copy", "decode", "decode and rotate", "assign", "update", "encode"}
    for row in rows:
        assert row["ms"] > 0
        assert {"date", "device", "torch", "triton", "shape", "tokens", "repetitions"} <= set(row)
    assert {row["codec"].split()[0] for row in rows if row["what"] == "encode"} == {"qvg", "klt"}
    assert all(row["error"] <= 6e-3 for row in rows if row["what"] == "decode")


@pytest.mark.skipif(torch.cuda.is_available(), reason="refusals of a machine without a GPU")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [((), "there is no GPU here; --tiny is a dry run"), (("--tiny", "--save"), "--save keeps measurements of a GPU")],
    ids=["full_size", "save"],
)
def test_a_machine_without_a_gpu_measures_nothing(arguments: tuple[str, ...], says: str) -> None:
    done = _run(*arguments)
    assert done.returncode == 2 and says in done.stderr
    assert not done.stdout
