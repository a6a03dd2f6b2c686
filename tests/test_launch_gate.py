"""The launch gate: what its GPU counts, what it refuses, and the program itself on its smallest case."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from .helpers import ROOT
from .triton_interpreter import why_not

TOOLS = ROOT / "tools"
SMALLEST = "Self-Forcing, 180 frames/exact/commit"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(TOOLS))
    yield


@pytest.fixture
def card(tools: None) -> ModuleType:
    return importlib.import_module("counting_gpu")


def test_kernels_and_bytes_are_counted_and_views_are_free(card: ModuleType) -> None:
    with torch.no_grad(), card.CountingGpu() as gpu:
        x = gpu.tensor(torch.zeros(4, 8))
        counts = gpu.counted(lambda: x[1:3, None].expand(2, 5, 8).transpose(0, 2).flatten(1).shape)
        assert counts.row() == {"launches": 1, "read": 2 * 8 * 4, "written": 8 * 10 * 4, "syncs": 0}  # flatten copies
        counts = gpu.counted(lambda: x[:, 2:].mul_(2).add_(x[:, :6]))
        assert counts.row() == {"launches": 2, "read": 96 + 2 * 96, "written": 2 * 96, "syncs": 0}
        counts = gpu.counted(lambda: x.copy_(torch.ones(4, 8)))
        assert counts.row() == {"launches": 1, "read": 0, "written": 128, "syncs": 0}
        counts = gpu.counted(lambda: torch.tensor([1.5, 2.0], device=card.DEVICE) * 2)
        assert counts.kernels == {"copy to device": 1, "mul": 1}
        with gpu.paused():
            x * 2
        assert counts.launches == 2


def test_numbers_of_the_host_stay_known_and_others_are_not(card: ModuleType) -> None:
    with torch.no_grad(), card.CountingGpu() as gpu:
        small = torch.tensor([3.0, 4.0], device=card.DEVICE)
        assert float((small * 2).sum()) == 14 and gpu.counts.syncs == 1
        assert small.tolist() == [3, 4] and gpu.counts.syncs == 2
        with pytest.raises(RuntimeError, match="must not wait for the GPU"):
            float(gpu.tensor(torch.ones(2)).sum())
        table = torch.tensor([small.data_ptr()], device=card.DEVICE)
        (found,) = card.pointed_to([table])
        assert found is small


def test_two_memories_are_refused_as_a_gpu_does(card: ModuleType) -> None:
    with torch.no_grad(), card.CountingGpu() as gpu:
        x = gpu.tensor(torch.zeros(4, 8))
        assert (x + torch.tensor(1.0)).shape == x.shape
        with pytest.raises(RuntimeError, match="add got tensors on cpu and on cuda:0"):
            x + torch.zeros(8)
    with pytest.raises(RuntimeError, match="outside of the counting GPU"):
        x + 1


def test_values_are_those_of_a_cpu(card: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 30, 8, generator=generator)

    def work(x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([x, x.flip(1)], 1).double()
        y[:, 3:5] = 0
        values, vectors = torch.linalg.eigh(y.mT @ y)
        y[y > 1] = 1
        return torch.where(values[:, None] > 0, y @ vectors.abs(), 0.0).float().topk(3, 1).values

    with torch.no_grad(), card.CountingGpu(values=True) as gpu:
        found = work(gpu.tensor(x)).cpu()
    assert torch.equal(found, work(x)) and gpu.counts.syncs == 1


def test_what_a_kernel_stores_to_is_read_from_its_source(tools: None) -> None:
    """In a process of its own: here kernels may be interpreted ones."""
    if reason := why_not():
        pytest.skip(reason)
    done = _python(
        "import bootstrap_package, importlib, json, pathlib\n"
        "from stored_arguments import stored_arguments\n"
        "found = {}\n"
        "for file in sorted(pathlib.Path('kernels').glob('*/triton_kernel.py')):\n"
        "    module = importlib.import_module(f'comfyui_qvg.kernels.{file.parent.name}.triton_kernel')\n"
        "    for case in getattr(module, 'compile_cases', list)():\n"
        "        pointers = {name for name, kind in case.types.items() if '*' in str(kind)}\n"
        "        found[file.parent.name + ' ' + case.kernel.__name__] = sorted(pointers & stored_arguments(case.kernel))\n"
        "print(json.dumps(found))"
    )
    found = json.loads(done.stdout)
    assert found["attention attention_kernel"] == ["LSE", "OUT"] and found["kmeans _sum_clusters"] == ["COUNTS", "SUMS"]
    assert found["transcode transcode_keys_kernel"] == ["OUT", "OUT_SCALES"]
    assert all(found.values()), found


def test_of_a_table_the_tokens_of_a_tile_are_counted(tools: None) -> None:
    """Two stretches of 100 tokens, of which the second hides 60, and two of three heads: of a tile from token 80 to 150 only 20
    tokens are read and written, of all 200 tokens 140. A type that is said, and turns that are not, cost nothing."""
    if reason := why_not():
        pytest.skip(reason)
    done = _python(
        "import bootstrap_package, json, torch\n"
        "from counting_pack import counting\n"
        "from comfyui_qvg.kernels.spans import Place, StretchTable, Tiles, copy_stretches\n"
        "rows = []\n"
        "with torch.no_grad(), counting() as gpu:\n"
        "    x = [torch.empty(1, 3, 100, 64, dtype=torch.bfloat16, device='cuda') for _ in range(4)]\n"
        "    table = StretchTable(tuple(x[:2]), tuple(x[2:]), (Place(0), Place(100, 60)))\n"
        "    table.rows\n"
        "    for start, tokens in ((80, 70), (0, 200)):\n"
        "        tiles = [torch.empty(1, 2, tokens, 64, device='cuda') for _ in range(2)]\n"
        "        counts = gpu.counted(lambda: copy_stretches(table, (0, 2), Tiles(*tiles, start, 1)))\n"
        "        rows.append([counts.read_bytes, counts.written_bytes])\n"
        "print(json.dumps(rows))"
    )
    numbers, value = 2 * 2 * 7 * 8, 2 * 2 * 64  # the table; of a token, keys and values of two heads
    first = 20  # tokens 100 to 150 of the second stretch are hidden
    assert json.loads(done.stdout) == [
        [numbers + first * value * 2, first * value * 4],
        [numbers + (100 + 40) * value * 2, (100 + 40) * value * 4],
    ]


@pytest.mark.parametrize(
    ("found", "frozen", "says"),
    [
        ({"then": {"launches": 3}}, {"then": {"launches": 3}}, []),
        ({"then": {"launches": 2}}, {"then": {"launches": 3}}, ["a/b/c, then: launches 3 -> 2; if that is meant: python tools/"]),
        ({"then": {"launches": 4}}, None, ["a/b/c has no frozen numbers; python tools/launch_gate.py --only 'a/b/c' --freeze"]),
        ({}, {"first": {"launches": 3}}, ["a/b/c, first: launches 3 -> None; if that is meant: "]),
    ],
    ids=["the_same", "fewer", "new", "gone"],
)
def test_every_difference_fails(
    tools: None, found: dict[str, dict[str, int]], frozen: dict[str, dict[str, int]] | None, says: list[str]
) -> None:
    sentences = importlib.import_module("launch_gate").judge("a/b/c", found, frozen)
    assert len(sentences) == len(says) and all(one.startswith(other) for one, other in zip(sentences, says, strict=True))


def test_freezing_keeps_other_cases_and_drops_unknown_ones(tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = importlib.import_module("launch_gate")
    monkeypatch.setattr(gate, "FROZEN", tmp_path / "frozen.json")
    row = {"commit": {"launches": 1, "read": 2, "written": 3, "syncs": 4}}
    gate.freeze({SMALLEST: row, "a model that left/exact/commit": row})
    gate.freeze({"Self-Forcing, 180 frames/exact/exact": row})
    assert gate.read_frozen() == {"Self-Forcing, 180 frames/exact/exact": row, SMALLEST: row}


def test_the_program_holds_what_is_frozen() -> None:
    """As CI starts it, on one case; the whole sample is CI's step `launches`."""
    if reason := why_not():
        pytest.skip(reason)
    done = _program("--only", SMALLEST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 cases counted" in done.stdout and "0 wrong" in done.stdout


def test_ci_holds_a_number_for_every_case_it_counts(tools: None) -> None:
    gate = importlib.import_module("launch_gate")
    samples = {case.name for case in gate.all_cases() if case.is_sample}
    assert samples and samples <= gate.read_frozen().keys()


def _program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return _started(str(TOOLS / "launch_gate.py"), *arguments)


def _python(code: str) -> subprocess.CompletedProcess[str]:
    done = _started("-c", f"import sys; sys.path.insert(0, {str(TOOLS)!r})\n{code}")
    assert done.returncode == 0, done.stderr
    return done


def _started(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300, cwd=ROOT)
