"""`--engine ray` on a real cluster of Ray's on this machine: whatever dies, every video has one result."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is an extra: pip install ray")
import ray
from comfyui_qvg.qvg.errors import ConfigError
from comfyui_qvg.qvg.harness.plan import StudyPlan, read_plan
from comfyui_qvg.qvg.harness.ray_engine import run_ray
from comfyui_qvg.qvg.harness.store import Store
from comfyui_qvg.qvg.harness.work import batches, counted
from ray.cluster_utils import Cluster

from ...helpers import ROOT


def ports() -> dict[str, int]:
    """Chosen beforehand: a node waits but seconds for programs of its own to choose theirs, and a busy machine takes longer."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in names]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return {name: probe.getsockname()[1] for name, probe in zip(names, probes, strict=True)}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without room for tasks and two workers with one CPU each, which import this tree."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "comfyui_qvg").symlink_to(ROOT, target_is_directory=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **ports()})
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def plan(**changes: Any) -> StudyPlan:
    data: dict[str, Any] = {
        "methods": ["balanced", "qvg", "RTN_INT4"],
        "seeds": [1, 2, 3],
        "frames": [12],
        "prompts": ["a", "b"],
        "targets": [{"kind": "rehearsal", "seconds": 0.5}],
    }
    return read_plan({**data, **changes}, Path())


def test_one_worker_is_killed_and_another_joins(cluster: Cluster, tmp_path: Path) -> None:
    asked, store, told = plan(), Store(tmp_path / "out"), Counter[str]()
    store.prepare(asked)
    victim = cluster.add_node(num_cpus=1, **ports())
    cluster.add_node(num_cpus=1, **ports())
    cluster.wait_for_nodes()

    def hear(job: Any, failure: str = "") -> None:
        assert not failure, failure
        told[job.key] += 1
        if len(told) == 5:
            cluster.remove_node(victim, allow_graceful=False)
        if len(told) == 9:
            cluster.add_node(num_cpus=2, **ports())

    report = run_ray(batches(asked, store), store, hear, address=cluster.address, retries=5)
    assert report.made == 24 and not report.failed and set(told.values()) == {1}
    assert len(list((tmp_path / "out" / "rows").iterdir())) == 24 and counted(batches(asked, store), store) == 0
    # One was gone, which a cluster takes a while to believe, and one came.
    deadline = time.monotonic() + 60
    while all(node["Alive"] for node in ray.nodes()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert sorted(node["Alive"] for node in ray.nodes()) == [False, True, True, True]


def test_a_video_that_fails_is_told_and_the_others_go_on(cluster: Cluster, tmp_path: Path) -> None:
    asked, store = (
        plan(targets=[{"kind": "world"}], prompts=["d-4,a-4", "no path"], frames=[6], methods=["RTN_INT4"]),
        Store(tmp_path),
    )
    store.prepare(asked)
    cluster.add_node(num_cpus=1, **ports())
    os.environ["OMP_NUM_THREADS"] = "1"
    report = run_ray(batches(asked, store), store, lambda job, failure="": None, address=cluster.address)
    assert report.made == 6 and len(report.failed) == 6
    assert all("no path" in why for _, why in report.failed)


def test_no_cluster_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no cluster answers at 127.0.0.1:1"):
        run_ray([], Store(tmp_path), lambda job, failure="": None, address="127.0.0.1:1")
