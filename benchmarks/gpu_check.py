"""`qvg check-gpu`, and then all else that a clone has to say of this machine's GPU, in under fifteen minutes.

    python benchmarks/gpu_check.py            the check; the kernels' tests, compiled instead of interpreted; then every benchmark
                                              there is, whose rows go to benchmarks/results
    python benchmarks/gpu_check.py --tiny     the same rehearsed with small shapes, on any machine

Each step has its share of the time; one that fails or runs over does not keep the others from running. The exit code is 0 only if
all went well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOTAL_SECONDS = 890
_CHECK = f"""import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import bootstrap_package
from comfyui_qvg.qvg.cli import main
sys.exit(main(sys.argv[1:]))"""


def steps(tiny: bool) -> list[tuple[str, list[str], int]]:
    """(name, command, seconds at most)."""
    tests = [sys.executable, "-c", "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))", "-q", "-x"]
    check = [sys.executable, "-c", _CHECK, "check-gpu", "--out", str(ROOT / "gpu_check"), *(["--rehearse"] if tiny else [])]
    found: list[tuple[str, list[str], int]] = [
        ("qvg check-gpu", check, 330),
        ("kernels against torch", [*tests, "tests/kernels"], 240),
        ("the cache on the GPU", [*tests, "tests/test_gpu.py"], 90),
    ]
    # A third of the 1.3B's minute, so that it ends in time; `benchmarks/wan.py --save` alone runs it whole.
    for name, sizes in (
        ("attention", []),
        ("codec", []),
        ("offload", []),
        ("wan", ["--frames", "60"]),
        ("world", []),
    ):
        command = [sys.executable, f"benchmarks/{name}.py", "--tiny" if tiny else "--save", *sizes]
        found.append((" ".join(["benchmark:", name, *sizes]), command, 240))
    return found


def main() -> int:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes on any machine")
    options = parser.parse_args()
    began, outcomes = time.monotonic(), []
    for name, command, seconds in steps(options.tiny):
        left = TOTAL_SECONDS - (time.monotonic() - began)
        print(f"\n== {name}", flush=True)
        if left < 5:
            outcomes.append((name, "no time left"))
            continue
        started = time.monotonic()
        try:
            code = subprocess.run(command, cwd=ROOT, timeout=min(seconds, left), stdin=subprocess.DEVNULL).returncode
            outcome = "passed" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired as late:
            outcome = f"not done after {late.timeout:.0f} s"
        outcomes.append((name, f"{outcome}, {time.monotonic() - started:.0f} s"))
    print(f"\n== summary, {time.monotonic() - began:.0f} s")
    for name, outcome in outcomes:
        print(f"{name}: {outcome}")
    return 0 if all(outcome.startswith("passed") for _, outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
