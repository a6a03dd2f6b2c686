"""A forced backend runs or raises; auto explains itself once; what could hang or crash is found out before it can."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from comfyui_qvg.kernels import assign_clusters, dispatch, explain, probe, quantize_groups, reconstruct
from comfyui_qvg.kernels.errors import BackendError

from ..triton_interpreter import DEVICE

X = torch.zeros(1, 1, 4, 64)
CUDA = torch.device("cuda")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is remembered from other tests, and nothing of this one is kept."""
    dispatch._device_refusal.cache_clear()
    yield
    dispatch._device_refusal.cache_clear()


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; the folder of the probe's files in it."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    return probe.memory("").parent


def _program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What the probe runs instead of its kernel."""
    file = tmp_path / "program.py"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(probe, "PROGRAM", file)


def test_forced_triton_raises_where_it_cannot_run() -> None:
    with pytest.raises(BackendError, match=r"'triton' was forced for kmeans, but .*; use backend 'auto' or 'torch'") as caught:
        assign_clusters(X, X, backend="triton")
    assert caught.value.op == "kmeans" and caught.value.backend == "triton"
    assert caught.value.reason == "our Triton kernels do not run on cpu tensors"


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match="known: auto, torch, triton"):
        assign_clusters(X, X, backend="cuda")


def test_auto_says_once_why_for_all_ops(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        ids = assign_clusters(X, X)
        assign_clusters(X, X)
        quantize_groups(X, ids[:, :, None], X[:, :, None], 2, 64)
    said = [record for record in caplog.records if "kernels run in torch" in record.message]
    assert len(said) == 1 and said[0].levelno == logging.INFO


def test_a_gpu_without_triton_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        dispatch._say_once("Triton is not installed", is_loss=True)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_explain_names_every_op() -> None:
    assert set(explain()) == set(dispatch.OPS)
    assert all(reason.startswith("torch (") for reason in explain("cpu").values())


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (None, "Triton is not installed .Linux: pip install triton; Windows: pip install triton-windows"),
        ("3.5.1", "Triton 3.5.1 is older than 3.6"),
        ("2.1.0", "Triton 2.1.0 is older than 3.6"),
    ],
)
def test_no_triton_or_an_old_one(fresh: None, monkeypatch: pytest.MonkeyPatch, version: str | None, says: str) -> None:
    """Refused before any GPU is asked."""
    monkeypatch.setattr(dispatch, "triton_version", lambda: version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("the GPU was asked"))
    with pytest.raises(BackendError, match=says):
        dispatch.require_backend("triton")


def test_version_is_the_installed_one() -> None:
    """Read from its source: importing a broken Triton could end the process."""
    try:
        installed = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("triton is not installed (pip install triton==3.7.1)")
    assert dispatch.triton_version() == installed


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.7.1")
    with pytest.raises(BackendError, match="torch sees no GPU"):
        dispatch.require_backend("triton")


@pytest.mark.parametrize(
    ("hip", "properties", "refused"),
    [
        (None, {"name": "RTX 2080", "major": 7, "minor": 5}, "RTX 2080 has compute capability 7.5; kernels need 8.0"),
        (None, {"name": "RTX 3090", "major": 8, "minor": 6}, None),
        (None, {"name": "RTX 5090", "major": 12, "minor": 0}, None),
        ("6.4", {"name": "RX 6800", "gcnArchName": "gfx1030"}, "RX 6800 is gfx1030, where Triton kernels may hang"),
        ("6.4", {"name": "RX 5700", "gcnArchName": "gfx1010:xnack-"}, "RX 5700 is gfx1010, where"),
        ("6.4", {"name": "MI300X", "gcnArchName": "gfx942:sramecc+:xnack-"}, None),
        ("6.4", {"name": "RX 7900", "gcnArchName": "gfx1100"}, None),
        ("6.4", {"name": "odd"}, "odd is of unknown architecture"),
    ],
    ids=lambda value: value.get("name", "") if isinstance(value, dict) else None,
)
def test_architectures(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, properties: dict[str, object], refused: str | None
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    reason = dispatch.architecture_refusal(SimpleNamespace(**properties))
    assert reason is None if refused is None else reason and reason.startswith(refused)


@pytest.mark.parametrize(
    ("channels", "group_size", "refused"),
    [(128, 64, None), (64, 16, None), (256, 128, None), (96, 32, "head_dim 96 has no"), (128, 8, "group_size 8 has no")],
)
def test_shapes_without_a_kernel(
    fresh: None, monkeypatch: pytest.MonkeyPatch, channels: int, group_size: int, refused: str | None
) -> None:
    """Auto takes torch for them, a forced Triton says why not."""
    reason = dispatch.shape_refusal(channels, group_size)
    assert reason is None if refused is None else reason and reason.startswith(refused)
    if refused:
        monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None)
        x = torch.randn(1, 1, 5, channels)
        none = torch.zeros(1, 1, 0, 5, dtype=torch.uint8), torch.zeros(1, 1, 0, 1, channels)
        assert quantize_groups(x, *none, 2, group_size).codes.shape == (1, 1, 5, channels // 4)
        with pytest.raises(BackendError, match=refused):
            quantize_groups(x, *none, 2, group_size, backend="triton")


# ---------------------------------------------------------------------------------------------------------------------- the probe


def test_probe_remembers_what_works(memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path, monkeypatch, "print('works')")
    assert probe.probe(0, "a card") is None
    assert len(list(memory.iterdir())) == 1
    monkeypatch.setattr(probe, "_run", lambda index: pytest.fail("tried again"))
    assert probe.probe(0, "a card") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import os; os.abort()", "failed with exit code -6"),
        ("raise ImportError('no module named triton._C')", "no module named triton._C"),
        ("print('nothing')", "failed with exit code 0"),
    ],
    ids=["aborts", "raises", "ends_early"],
)
def test_probe_survives_and_remembers_what_does_not(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    _program(tmp_path, monkeypatch, text)
    reason = probe.probe(0, "a card, Triton 3.7.1")
    assert reason and says in reason and reason.startswith("a card, Triton 3.7.1: ") and str(memory) in reason
    monkeypatch.setattr(probe, "_run", lambda index: pytest.fail("tried again"))
    assert probe.probe(0, "a card, Triton 3.7.1") == reason


@pytest.mark.parametrize(
    "text",
    [
        "raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 MiB')",
        "raise RuntimeError('CUDA error: all CUDA-capable devices are busy or unavailable')",
        "raise OSError(28, 'No space left on device')",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
    ids=["memory", "busy", "disk", "killed"],
)
def test_probe_forgets_what_passes(memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    _program(tmp_path, monkeypatch, text)
    assert "this may pass: the next start tries again" in (probe.probe(0, "a card") or "")
    _program(tmp_path, monkeypatch, "print('works')")
    assert probe.probe(0, "a card") is None


def test_an_installed_compiler_is_another_try(memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_compiler", lambda: "none")
    _program(tmp_path, monkeypatch, "raise RuntimeError('Failed to find C compiler')")
    assert "Failed to find C compiler" in (probe.probe(0, "a card") or "")
    _program(tmp_path, monkeypatch, "print('works')")
    assert "Failed to find C compiler" in (probe.probe(0, "a card") or "")
    monkeypatch.setattr(probe, "_compiler", lambda: "/usr/bin/cc")
    assert probe.probe(0, "a card") is None


@pytest.mark.parametrize("flags", [["-s"], ["-I"], ["-E"], ["-s", "-E"], []], ids=" ".join)
def test_the_probe_s_process_has_this_one_s_flags(flags: list[str]) -> None:
    """Windows' portable ComfyUI runs with -s: without it the child would import the user's own packages."""
    root = Path(probe.__file__).parents[2]
    told = (
        "import sys, types; pack = sys.modules['pack'] = types.ModuleType('pack'); pack.__path__ = [sys.argv[1]]; "
        "from pack.kernels import probe; print(*probe.interpreter_flags())"
    )
    done = subprocess.run([sys.executable, *flags, "-c", told, str(root)], capture_output=True, text=True, check=True)
    assert set(flags) <= set(done.stdout.split()) and (flags or not done.stdout.split())


def test_processes_that_write_at_once_lose_nothing(memory: Path) -> None:
    keys = [f"card {number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: probe._write(key, "works"), keys))
    assert [probe._read(key) for key in keys] == ["works"] * 40


def test_probe_ends_what_hangs(memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path, monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(probe, "_TIMEOUT_SECONDS", 1)
    assert "not done after 1 s" in (probe.probe(0, "a card") or "")


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"'])
def test_a_damaged_memory_is_written_anew(memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    _program(tmp_path, monkeypatch, "print('works')")
    assert probe.probe(0, "a card") is None
    (file,) = memory.iterdir()
    file.write_text(content, encoding="utf-8")
    assert probe.probe(0, "a card") is None
    assert json.loads(file.read_text(encoding="utf-8"))["outcome"] == "works"


def test_a_memory_that_cannot_be_written_is_harmless(memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    _program(tmp_path, monkeypatch, "print('works')")
    assert probe.probe(0, "a card") is None


def test_the_real_probe(fresh: None, memory: Path) -> None:
    """With a GPU it works; without one it ends with torch's own codewords, and nothing else does."""
    if dispatch.triton_version() is None:
        pytest.skip("triton is not installed (pip install triton==3.7.1)")
    reason = probe.probe(0, "this machine")
    assert reason is None if DEVICE == "cuda" else reason and "a tiny kernel failed with exit code 1" in reason


def test_the_probes_kernel_is_right(triton_kernel: Callable[[str], ModuleType]) -> None:
    triton_kernel("probe").check(torch.device(DEVICE))


def test_public_ops_reach_their_kernels(triton_kernel: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced Triton, as a caller forces it; only what is asked about the device is answered for the interpreter."""
    triton_kernel("kmeans")
    monkeypatch.setattr(dispatch, "triton_refusal", lambda *_: None)
    x = torch.randn(1, 1, 20, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    restored = {}
    for backend in ("triton", "torch"):
        ids = assign_clusters(x, x[:, :, :3], backend)
        parts = quantize_groups(x, ids[:, :, None], x[:, :, None, :3], 4, 32, False, backend)
        angles = torch.zeros(20, 32, device=DEVICE), torch.ones(20, 32, device=DEVICE)
        restored[backend] = reconstruct(
            *parts, ids[:, :, None], x[:, :, None, :3], 4, 32, torch.empty_like(x), backend, rotation=angles
        )
    assert torch.allclose(restored["triton"], restored["torch"], atol=1e-5)
    # A quarter turn swaps the halves.
    assert torch.allclose(torch.cat([restored["torch"][..., 32:], -restored["torch"][..., :32]], -1), x, atol=0.4)
